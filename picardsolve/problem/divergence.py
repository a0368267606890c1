"""The drift of a state and of the log density that flows along with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from picardsolve.problem.checks import check_callable, check_choice, check_optional_positive_integer, check_type
from picardsolve.problem.forward_mode import jvp
from picardsolve.problem.state import Layout

Law = Literal["rademacher", "gaussian"]


def divergence(
    drift: Callable[..., Any], *, probes: int | None = None, seed: int = 0, law: Law = "rademacher"
) -> "Divergence":
    """The drift of ``(y, logp)``: along ``dy/dt = drift(t, y)`` log densities change by ``-tr(d drift / dy)``.

        flow = ps.divergence(lambda t, y: -y)
        y, logp = ps.odeint(flow, (x, torch.zeros(len(x))), torch.tensor([1.0, 0.0]))     # x of shape (B, d)
        likelihood = base.log_prob(y[-1]) - logp[-1]

    **Sign.** The second part is the rate of the log density itself, which is *minus* the divergence of the drift, as in
    torchdiffeq's example of a continuous normalising flow (Chen et al. 2018, theorem 1). From ``logp = 0`` at the data,
    ``logp`` ends as the log density of ``y`` at the base minus that of the data.

    **Shapes.** ``logp`` tells what one sample is: its shape is that of ``y`` without the sample's own dimensions, or
    the same with a last dimension of 1. With `odeint`, ``y`` is ``(B, d)`` and ``logp`` is ``(B,)`` or ``(B, 1)``,
    for B samples of d numbers; images are ``(B, C, H, W)`` with ``(B,)``; for one system ``logp`` is 0-d. With
    ``solve(..., batch_dims=1)`` the initial state is the same, and the drift is called as the drift of any `ODE` is. A
    sample must not depend on the others.

    **Trace.** Exact: one call of the drift with as many forward-mode tangents as a sample has numbers, which takes that
    many times its memory. With ``probes`` it is Hutchinson's estimate (FFJORD, Grathwohl et al. 2019), the mean of
    ``v . (d drift / dy) v`` over that many vectors v for each sample. They are the same at all times, so that the ODE
    is deterministic, and in every solve with the same seed; take another seed for each step of an optimiser. A sample's
    vectors depend on its number in the batch and not on the other samples. (Where a drift of your own calls this one in
    a solve with ``batch_dims=1``, the samples share their vectors, for their numbers are not known there.)

    Gradients go through the trace: parameters of the drift get those of the likelihood.

    Args:
        drift: ``drift(t, y, *args)``, of real tensors, differentiable by `torch.func.jvp`; for one state or many, as
            the term that takes the result says.
        probes: vectors for each sample; None: the exact trace.
        seed: of the vectors.
        law: of their numbers: "rademacher", which are 1 or -1 and have the smaller variance, or "gaussian".

    Returns:
        A function of ``(t, (y, logp), *args)`` that returns ``(dy/dt, dlogp/dt)``, in the shapes of ``y`` and ``logp``.
        It raises a ValueError where a shape does not fit, where samples depend on each other, and where
        `torch.func.jvp` cannot differentiate the drift; a TypeError for another structure and for complex states.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``probes`` is below 1, or ``law`` is none of these.
    """
    check_callable("drift", drift)
    check_optional_positive_integer("probes", probes)
    check_type("seed", seed, int, "an integer")
    check_choice("law", law, get_args(Law))
    return Divergence(drift, probes, seed, law)


@dataclass(eq=False)
class Divergence:
    """What `divergence` returns.

    Attributes:
        drift: of the state alone.
        probes: vectors for each sample; None: the exact trace.
        seed: of the vectors.
        law: of their numbers.
    """

    drift: Callable[..., Any]
    probes: int | None
    seed: int
    law: Law
    _looked: bool = field(default=False, repr=False)  # whether samples were looked at, if they depend on each other
    _kept: tuple[Any, Tensor] = field(default=((), torch.empty(0)), repr=False)  # the last vectors, behind their key

    def __call__(self, t: Tensor, state: Any, *args: Any) -> Any:
        """The drift, and the rate of the log density."""
        y, logp, lead = _parts(state)
        own, shape = y.shape[_rows(t) : lead], y.shape[lead:]  # of the samples that each time has, and of one of them
        if self.probes is None:
            tangents = _basis(y, lead)
        else:
            drawn = self._vectors(self.probes, own.numel(), shape, y.dtype, y.device).movedim(1, 0)
            tangents = drawn.reshape(self.probes, *[1] * _rows(t), *own, *shape).expand(self.probes, *y.shape)
        rate, trace = self._along(t, y, lead, tangents, args)
        return type(state)((rate, -trace.reshape(logp.shape)))

    def of_samples(self, layout: Layout) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
        """This function with the vectors of its samples as its third argument; and these, ``(B, P, *y.shape)``."""
        if self.probes is None:
            return self, ()
        of = layout.batch, layout.shapes[0], layout.dtype, layout.device
        return self._with_vectors, (self._vectors(self.probes, *of),)

    def _with_vectors(self, t: Tensor, state: Any, vectors: Tensor, *args: Any) -> Any:
        """As `__call__`; ``vectors`` of the samples that the states belong to."""
        y, logp, lead = _parts(state)
        rate, trace = self._along(t, y, lead, vectors.movedim(_rows(t), 0), args)
        return type(state)((rate, -trace.reshape(logp.shape)))

    def _along(self, t: Tensor, y: Tensor, lead: int, tangents: Tensor, args: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The drift, and the traces ``y.shape[:lead]`` from tangents ``(P, *y.shape)``."""
        if not self._looked and y.shape[_rows(t) : lead].numel() > 1:
            self._look(t, y, lead, args)

        def along(tangent: Tensor) -> Any:
            return jvp(lambda y: self._checked(self.drift(t, y, *args), y), (y,), (tangent,))

        y = y.clone(memory_format=torch.contiguous_format)  # jvp refuses some views
        try:
            rates, moved = torch.func.vmap(along)(tangents.contiguous())  # all rates are the same
        except Exception as error:
            self._checked(self.drift(t, y, *args), y)  # an error of the drift itself
            raise ValueError(
                "drift: torch.func.jvp and vmap, which its divergence needs, cannot differentiate it; write "
                f"derivatives inside it with torch.func.grad or vjp. It raised {type(error).__name__}: {error}"
            ) from error
        flat = (len(tangents), *y.shape[:lead], -1)
        if self.probes is None:
            return rates[0], moved.reshape(flat).diagonal(0, 0, -1).sum(-1)
        return rates[0], (moved * tangents).reshape(flat).sum(-1).mean(0)

    def _checked(self, rate: Any, y: Tensor) -> Tensor:
        if not isinstance(rate, Tensor) or rate.shape != y.shape:
            got = tuple(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
            raise ValueError(f"drift: expected to return shape {tuple(y.shape)}, that of y, got {got}.")
        return rate

    def _vectors(
        self, probes: int, samples: int, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The vectors of so many samples, ``(samples, P, *shape)``."""
        key = samples, shape, dtype, device
        if self._kept[0] != key:
            generator, size = np.random.default_rng(self.seed), (samples, probes, *shape)  # one sample after the other
            drawn = generator.standard_normal(size)
            drawn = drawn if self.law == "gaussian" else np.where(drawn < 0, -1.0, 1.0)
            with torch.inference_mode(False):  # autograd may save them in a later solve
                self._kept = key, torch.from_numpy(drawn).to(device, dtype)
        return self._kept[1]

    def _look(self, t: Tensor, y: Tensor, lead: int, args: Sequence[Any]) -> None:
        """Refuse samples that depend on each other.

        Values cannot be looked at inside vmap: the states are our own.
        """
        count = y.shape[:lead].numel()
        place = torch.arange(y.numel(), dtype=y.dtype, device=y.device).sin()
        first = torch.zeros_like(place)
        first[: y.numel() // count] = 1
        at = torch.zeros(t.shape, dtype=t.dtype, device=t.device) if isinstance(t, Tensor) else t
        try:
            with torch.no_grad():
                moved = jvp(lambda y: self.drift(at, y, *args), (place.reshape(y.shape),), (first.reshape(y.shape),))[1]
            dependent = bool((moved.reshape(count, -1)[1:].abs() > 0).any())
        except Exception:  # at a place of ours, or with arguments that vmap hides: it says nothing about the solve's
            dependent = False
        if dependent:
            raise ValueError(
                "drift: its value at one sample changes with another sample, so that samples have no divergence of "
                "their own; call .eval() where it is batch norm, or pass a 0-d logp, which makes all of y one system."
            )
        self._looked = True


def _parts(state: Any) -> tuple[Tensor, Tensor, int]:
    """The state, its log density, and how many of the state's dimensions come before those of a sample."""
    if not (isinstance(state, tuple | list) and len(state) == 2 and all(isinstance(part, Tensor) for part in state)):
        raise TypeError(
            f"y0: expected a tuple (y, logp) of two tensors, for a drift with its divergence, got "
            f"{type(state).__name__}; pass (y, torch.zeros(len(y)))."
        )
    y, logp = state
    if y.is_complex() or logp.is_complex():
        raise TypeError(f"y0: expected real tensors, got {y.dtype}; a divergence needs torch.view_as_real(y).")
    lead = logp.dim()
    if logp.shape == y.shape[:lead]:
        return y, logp, lead
    if lead and logp.shape[-1] == 1 and logp.shape[:-1] == y.shape[: lead - 1]:
        return y, logp, lead - 1
    raise ValueError(
        f"y0: expected (y, logp) where logp has one number for each sample of y, got shapes {tuple(y.shape)} and "
        f"{tuple(logp.shape)}; pass torch.zeros(len(y)) for samples y[i]."
    )


def _rows(t: Any) -> int:
    """How many dimensions come before those of a state: one where there are many times."""
    return min(t.dim(), 1) if isinstance(t, Tensor) else 0


def _basis(y: Tensor, lead: int) -> Tensor:
    """One tangent for each number of a sample, the same for all samples, ``(n, *y.shape)``."""
    shape = y.shape[lead:]
    unit = torch.eye(shape.numel(), dtype=y.dtype, device=y.device)
    return unit.reshape(-1, *[1] * lead, *shape).expand(-1, *y.shape)
