"""Flow matching: plans that a velocity field carries from noise, and the schedulers of diffusers that step it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Tensor

from picardsolve import Euler, Heun
from picardsolve.extend import RungeKutta, check_type

FLOW_SCHEDULERS = FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler


@dataclass(frozen=True, eq=False)
class FlowMatching:
    """Steps of a velocity field, ``dx/dt = v(x, t, observation)``, in the place of a scheduler.

        steps = FlowMatching(ps.grids.uniform(0, 1, 100))      # noise at t = 0, the plan at t = 1
        policy = ParallelPolicy(velocity, steps, (16, 7))

    The model is given these times. Sources: Lipman et al. 2023; Liu et al. 2023.

    Args:
        ts: ``(N + 1,)`` times from the noise to the plan: they rise within [0, 1], or fall within it where noise is at
            t = 1, as ``ps.grids.uniform(1, 0, 10)``.
        integrator: `picardsolve.Euler`, `Midpoint`, `Heun` or `RK4`, with as many model calls a step as stages.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the times do not rise or fall within [0, 1].
    """

    ts: Tensor | Sequence[float]
    integrator: RungeKutta = field(default_factory=Euler)

    def __post_init__(self):
        check_type("integrator", self.integrator, RungeKutta, "picardsolve.Euler(), Midpoint(), Heun() or RK4()")
        try:
            ts = torch.as_tensor(self.ts, dtype=torch.float64).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"ts: expected times, got {self.ts!r}; pass picardsolve.grids.uniform(0, 1, 100)."
            ) from None
        steps = ts.diff() if ts.dim() == 1 else ts.new_zeros(1)
        falls_or_rises = len(steps) and bool((steps > 0).all() or (steps < 0).all())
        if not falls_or_rises or not bool((ts >= 0).all() and (ts <= 1).all()):
            raise ValueError(
                f"ts: expected times that rise or fall within [0, 1], got {self.ts!r}; pass "
                "picardsolve.grids.uniform(0, 1, 100)."
            )
        object.__setattr__(self, "ts", ts)


@dataclass(frozen=True)
class Stages:
    """The model calls of a step that follow the first one, of a Runge-Kutta method.

    Attributes:
        times: ``(S - 1, N)`` what the model is given.
        inner: ``(S - 1, S - 1, N)``: h a.
        weights: ``(S, N)``: b.
    """

    times: Tensor
    inner: Tensor
    weights: Tensor

    @staticmethod
    def of(integrator: RungeKutta, ts: Tensor) -> "Stages | None":
        """Those of an integrator on a grid; None where a step is one call."""
        a, b = integrator.tableau
        if len(b) == 1:
            return None
        h = ts.diff()
        inner = h.new_zeros(len(a), len(a), len(h))
        for row, weights in zip(inner, a, strict=True):
            row[: len(weights)] = h.new_tensor(weights)[:, None] * h
        return Stages(ts[:-1] + inner.sum(1), inner, h.new_tensor(b)[:, None].expand(-1, len(h)).clone())

    def to(self, like: Tensor) -> "Stages":
        """The same in the dtype and on the device of some states."""
        wide = torch.promote_types(like.dtype, torch.float32)  # for times
        return Stages(self.times.to(like.device, wide), self.inner.to(like), self.weights.to(like))

    def slopes(self, model: Callable[[Tensor, Tensor], Tensor], n: Tensor, x: Tensor, first: Tensor) -> Tensor:
        """The slopes of steps ``n``, ``(R,)``, from states ``(R, D)`` with these outputs of the model."""
        outputs = [first]
        inner, weights = (part.index_select(-1, n)[..., None] for part in (self.inner, self.weights))
        for times, row in zip(self.times.index_select(1, n), inner, strict=True):
            y = x
            for weight, output in zip(row, outputs, strict=False):
                y = torch.addcmul(y, weight, output)
            outputs.append(model(y, times))
        return (
            sum(weight * output for weight, output in zip(weights[1:], outputs[1:], strict=True)) + weights[0] * first
        )


@dataclass(frozen=True)
class Flow:
    """The steps of a flow, ``x' = x + h v``, where v may be made of several model calls; all float64.

    Attributes:
        ts: ``(N + 1,)``, times that rise from noise at 0, or fall from noise at 1.
        timesteps: ``(N,)`` what the model is given first.
        end: what stands behind the last of these.
        stages: the further model calls of a step; None for one call.
        renewed: whether noise is drawn in every step, which ends in ``(1 - sigma) D + sigma z``.
    """

    ts: Tensor
    timesteps: Tensor
    end: float
    stages: Stages | None = None
    renewed: bool = False

    @staticmethod
    def of(scheduler: Any) -> "Flow | None":
        """The steps of a `FlowMatching` or of a scheduler whose timesteps are set; None of another scheduler.

        Raises:
            ValueError: the noise of a scheduler's steps does not rise or fall.
        """
        if type(scheduler) is FlowMatching:
            ts = torch.as_tensor(scheduler.ts)
            return Flow(ts, ts[:-1], float(ts[-1]), Stages.of(scheduler.integrator, ts))
        if type(scheduler) not in FLOW_SCHEDULERS:
            return None
        sigmas, timesteps = scheduler.sigmas.double().cpu(), scheduler.timesteps.double().cpu()
        end = float(sigmas[-1]) * scheduler.config["num_train_timesteps"]
        if type(scheduler) is FlowMatchHeunDiscreteScheduler:
            ts = torch.cat([sigmas[:-1:2], sigmas[-1:]])
            return _checked(Flow(ts, timesteps[::2], end, _without_last_correction(ts, timesteps)))
        return _checked(Flow(sigmas, timesteps, end, renewed=bool(scheduler.config["stochastic_sampling"])))

    @property
    def rises(self) -> bool:
        """Whether times rise from the noise to the plan."""
        return bool(self.ts[-1] > self.ts[0])


def _without_last_correction(ts: Tensor, timesteps: Tensor) -> Stages | None:
    """Heun's stages, but for a last step by Euler's method, whose second stage is the first one again."""
    stages = Stages.of(Heun(), ts)
    if len(ts) == 2 or stages is None:
        return None
    stages.inner[..., -1], stages.weights[:, -1] = 0, stages.weights.new_tensor([1, 0])
    return replace(stages, times=torch.cat([timesteps[1::2], timesteps[-1:]])[None])


def _checked(flow: Flow) -> Flow:
    steps = flow.ts.diff()
    if not bool((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"scheduler: expected noise that falls in every step, got the levels {flow.ts.tolist()}.")
    return flow
