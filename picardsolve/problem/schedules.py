"""Noise schedules: the signal and noise levels of a noisy sample, ``x_t = alpha(t) x_0 + sigma(t) noise``."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.problem.checks import check_callable


class Schedule(ABC):
    """Signal and noise levels as functions of time. Times and levels are float64 tensors of one shape."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level at ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at ``t``."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, ``log(alpha / sigma)`` (Lu et al. 2022, lambda)."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of both levels with respect to time at ``t``; the default differentiates them.

        Raises:
            TypeError: a level changes with time, but was not computed by operations of torch that have a derivative.
        """
        return _derivative(self.alpha, t), _derivative(self.sigma, t)


def _derivative(level: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        at = t.clone().requires_grad_()
        values = level(at)
        if values.requires_grad:
            return torch.autograd.grad(values.sum(), at)[0]
    if bool((values != values.flatten()[0]).any()):
        raise TypeError(
            "schedule: expected levels that torch can differentiate with respect to time, got some that change without "
            "a derivative; compute them with operations of torch, or override rates(t)."
        )
    return torch.zeros_like(t)


@dataclass(frozen=True)
class _OfAlphaBar(Schedule):
    """A schedule with ``alpha^2 = alpha_bar(t)``."""

    alpha_bar: Callable[[Tensor], Tensor]

    def __post_init__(self):
        check_callable("alpha_bar", self.alpha_bar)

    def alpha(self, t: Tensor) -> Tensor:
        """``sqrt(alpha_bar(t))``."""
        return self.alpha_bar(t).sqrt()


@dataclass(frozen=True)
class VP(_OfAlphaBar):
    """The variance preserving schedule, ``alpha^2 = alpha_bar(t)``, ``sigma^2 = 1 - alpha_bar(t)``.

        schedule = ps.schedules.VP(lambda t: torch.exp(-t))

    Source: Ho et al. 2020, eq. 4.

    Args:
        alpha_bar: a function of float64 times, with values from 0 to 1.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alpha_bar(t))``."""
        return (1 - self.alpha_bar(t)).clamp(min=0).sqrt()


@dataclass(frozen=True)
class SubVP(_OfAlphaBar):
    """The sub-VP schedule, with less noise than `VP`: ``alpha^2 = alpha_bar(t)``, ``sigma = 1 - alpha_bar(t)``.

    Source: Song et al. 2021, eq. 29.

    Args:
        alpha_bar: a function of float64 times, with values from 0 to 1.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """``1 - alpha_bar(t)``."""
        return (1 - self.alpha_bar(t)).clamp(min=0)


@dataclass(frozen=True)
class VE(Schedule):
    """The variance exploding schedule, ``alpha = 1`` with any noise level (Song et al. 2021, section 3.4).

    Args:
        noise: the noise level, a function of float64 times.
    """

    noise: Callable[[Tensor], Tensor]

    def __post_init__(self):
        check_callable("noise", self.noise)

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """``noise(t)``."""
        return self.noise(t)


@dataclass(frozen=True)
class EDM(Schedule):
    """The schedule whose time is the noise level: ``alpha = 1``, ``sigma = t`` (Karras et al. 2022, table 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """``t`` itself."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Flow(Schedule):
    """The schedule of flow matching: ``alpha = 1 - t``, ``sigma = t`` (Lipman et al. 2023; Liu et al. 2023).

    Grids go from t = 1, pure noise, to t = 0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """``t`` itself."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1."""
        return -torch.ones_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class _AlphaBarTable:
    log_alpha_bar: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        table = self.log_alpha_bar.to(t.device)
        position = (t + 1).clamp(0, len(table) - 1)
        low = position.floor().long().clamp(max=len(table) - 2)
        return torch.exp(torch.lerp(table[low], table[low + 1], position - low))


def from_betas(betas: Tensor) -> VP:
    """The discrete schedule of a trained DDPM as a function of its timestep.

        schedule = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))

    Args:
        betas: ``(T,)``, the variances that the training timesteps add, each in (0, 1).

    Returns:
        A `VP` with ``alpha_bar(t) = prod_{i <= t} (1 - betas[i])`` at integer t, log-linear in between. At t = -1 it is
        1 (no noise): the last point of a grid that ends in a clean sample.

    Raises:
        TypeError: ``betas`` is no tensor.
        ValueError: it has another shape, or values outside (0, 1).
    """
    if not isinstance(betas, Tensor):
        raise TypeError(f"betas: expected a tensor, got {type(betas).__name__}; pass torch.tensor(betas).")
    if betas.dim() != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"betas: expected shape (T,) with values in (0, 1), got shape {tuple(betas.shape)}.")
    log_alpha_bar = torch.log1p(-betas.double()).cumsum(0)
    return VP(_AlphaBarTable(torch.cat([log_alpha_bar.new_zeros(1), log_alpha_bar])))
