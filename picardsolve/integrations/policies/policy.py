"""The policy: plans one after the other, each from the one before."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.certificate import Certificate
from picardsolve.checks import (
    check_callable,
    check_count,
    check_not_negative,
    check_optional_positive_integer,
    check_positive_integer,
    check_type,
)
from picardsolve.guesses import FrozenSample
from picardsolve.integrations.policies.chain import PlanChain
from picardsolve.integrations.policies.guess import Towards
from picardsolve.integrations.policies.solver import Solver
from picardsolve.integrations.policies.steps import PlanSteps
from picardsolve.integrators.base import Index
from picardsolve.iterations import Iteration, Newton, Secant
from picardsolve.solution import Result, Solution


@dataclass(frozen=True)
class Plan:
    """A plan, and what it took.

    Attributes:
        actions: ``(B, horizon, ...)``.
        solution: the states at all diffusion steps, the rounds, and whether they converged.
    """

    actions: Tensor
    solution: Solution

    @property
    def rounds(self) -> int:
        """Model calls that followed each other; the sequential sampler takes one for each diffusion step."""
        return self.solution.stats.rounds

    @property
    def evaluations(self) -> int:
        """Rows that the model was given."""
        return self.solution.stats.evaluations

    @property
    def converged(self) -> bool:
        """Whether it is the sequential sampler's to the tolerance; False where ``max_rounds`` came first."""
        return self.solution.result is Result.converged

    @property
    def certificate(self) -> Certificate:
        """How far it may be from the sequential sampler's, as the rounds tell; ``error[-1]`` is ``(B,)``."""
        return self.solution.certificate


class ParallelPolicy:
    """Plans actions with a denoiser and a diffusers scheduler, again and again, all diffusion steps of a plan at once.

    A plan is what the scheduler's own loop would have made with the same random generator:

        x = torch.randn((B, *shape), generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, observation), t, x, generator=generator).prev_sample

    From the second plan on, all states start from the way to the plan before, without the actions that were executed
    and with the noise of the new one: that saves rounds, and changes the plan by no more than the tolerance.

    Args:
        model: called as ``model(x, t, observation)`` with ``x`` of shape ``(rows, *shape)``, ``t`` ``(rows,)`` of the
            scheduler's timesteps, and the observation of each row's plan; returns the shape of ``x``, or an object
            with ``sample``. Encode images once, before: the observation is repeated for every row.
        scheduler: `DDPMScheduler`, `DDIMScheduler` or `DPMSolverMultistepScheduler` (DPM-Solver++) of diffusers, with
            its timesteps set. It is read now, and never stepped.
        shape: of a plan: its horizon first, then of an action.
        executed: actions that are executed of a plan before the next one: how far the next starts from it.
        tol: root mean square of the distance to the sequential sampler's plan, in the model's units (actions of
            diffusion policies are scaled to [-1, 1]). 0: to the last bits.
        max_rounds: the latency budget: return what there is after so many model calls. None: no limit.
        seed: of the random generator that all noise is drawn from.
        iteration: how a plan answers to a round.
        spread: standard deviation that actions are expected to have, given the observation; changes rounds alone.
        dtype: of the plans.

    Raises:
        TypeError: an argument has the wrong type, or the scheduler is not one of these.
        ValueError: an argument has a wrong value, or the scheduler's steps are not linear but for a clipped sample.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Any], Any],
        scheduler: Any,
        shape: tuple[int, ...],
        *,
        executed: int = 8,
        tol: float = 5e-3,
        max_rounds: int | None = None,
        seed: int = 0,
        iteration: Iteration | None = None,
        spread: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ):
        check_callable("model", model)
        _check_shape(shape)
        check_positive_integer("executed", executed)
        check_not_negative("tol", tol)
        check_optional_positive_integer("max_rounds", max_rounds)
        check_count("seed", seed)
        check_not_negative("spread", spread)
        _check_iteration(iteration)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}; pass torch.float32.")
        self._model, self._shape, self._executed, self._tol = model, tuple(shape), executed, tol
        self._max_rounds, self._iteration, self._dtype = max_rounds, iteration or Secant(), dtype
        self._steps = PlanSteps.of(scheduler, spread)
        self._ts = torch.cat([self._steps.timesteps, torch.tensor([-1])]).double()
        self._seed = seed
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forget the last plan, and start the noise anew: what to do when an episode begins.

        Args:
            seed: instead of the one before.
        """
        if seed is not None:
            check_count("seed", seed)
            self._seed = seed
        self._previous: Tensor | None = None
        self._generator: torch.Generator | None = None

    @torch.no_grad()
    def plan(self, observation: Any, *, max_rounds: int | None = None) -> Plan:
        """Plan for a batch of observations.

        Args:
            observation: a tensor, or a tuple, list or dict of them, each with leading dimension B.
            max_rounds: instead of the policy's own.

        Raises:
            TypeError: the observation holds no tensors.
            ValueError: they differ in B, or the model returns another shape.
        """
        check_optional_positive_integer("max_rounds", max_rounds)
        batch, device = _batch_of(observation)
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        x, noise = self._drawn(batch, device)
        chain = PlanChain(self._steps.to(x), partial(self._evaluated, observation, batch), noise)
        warm = self._previous is not None and len(self._previous) == batch
        guess = Towards(self._expected()) if warm else FrozenSample()
        solver = Solver(chain, x, self._shape, self._ts, self._iteration)
        self._previous, solution = solver.solve(guess, self._tol, max_rounds or self._max_rounds)
        return Plan(self._previous.clone(), solution)

    def _drawn(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The first states ``(B, D)`` and the noise of all steps, in the order in which the sequential loop draws."""
        shape, steps = (batch, *self._shape), self._steps
        x = torch.randn(shape, generator=self._generator, device=device, dtype=self._dtype).flatten(1)
        if not steps.noisy.any():
            return x, None
        dtype = steps.noise_dtype or self._dtype
        noise = torch.zeros(len(steps.noisy), *shape, dtype=dtype, device=device)
        for n in np.flatnonzero(steps.noisy):
            torch.randn(shape, generator=self._generator, out=noise[n])
        return x, noise.flatten(2).to(x)

    def _expected(self) -> Tensor:
        """The last plan without what was executed of it, its last action for the rest, ``(B, D)``."""
        assert self._previous is not None
        left, end = self._previous[:, self._executed :], self._previous[:, -1:]
        return torch.cat([left, end.expand(-1, self._shape[0] - left.shape[1], *end.shape[2:])], 1).flatten(1)

    def _evaluated(self, observation: Any, batch: int, x: Tensor, t: Tensor, sample: Index) -> Tensor:
        """The model's outputs for rows ``(R, D)``."""
        of = torch.from_numpy(sample)

        def row(leaf: Tensor) -> Tensor:
            return leaf.expand(len(of), *leaf.shape[1:]) if batch == 1 else leaf.index_select(0, of.to(leaf.device))

        out = self._model(x.view(-1, *self._shape), t, pytree.tree_map(row, observation))
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != (len(of), *self._shape):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"model: expected to return shape {(len(of), *self._shape)} for {len(of)} rows, got {shape}; return "
                "one prediction for each row of x."
            )
        return out.reshape(len(of), -1).to(x.dtype)


def _check_shape(shape: object) -> None:
    if not isinstance(shape, tuple) or not shape:
        raise TypeError(f"shape: expected a tuple such as (16, 4), horizon first, got {shape!r}.")
    for size in shape:
        check_positive_integer("shape", size)


def _check_iteration(iteration: object) -> None:
    if iteration is not None:
        check_type("iteration", iteration, Iteration, "picardsolve.Secant()")
    if isinstance(iteration, Newton):
        raise TypeError("iteration: Newton needs derivatives of the model, which are not taken here; pass Secant().")


def _batch_of(observation: Any) -> tuple[int, torch.device]:
    """How many observations there are, and where."""
    leaves = pytree.tree_leaves(observation)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        raise TypeError(
            f"observation: expected tensors with a leading dimension of plans, got {type(observation).__name__}; pass "
            "torch.as_tensor(...)[None] for a single plan."
        )
    sizes = sorted({len(leaf) for leaf in leaves})
    if len(sizes) > 1 or not sizes[0]:
        raise ValueError(f"observation: expected one leading dimension, at least 1, in every tensor, got {sizes}.")
    return sizes[0], leaves[0].device
