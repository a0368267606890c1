"""The policy: makes plans one after the other, each starting from the one before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from picardsolve import FrozenSample, Guess, Iteration, Secant
from picardsolve.extend import (
    check_callable,
    check_not_negative,
    check_optional_positive_integer,
    check_type,
)
from picardsolve.integrations.policies.arguments import (
    batch_of,
    check_executed,
    check_held,
    check_iteration,
    check_seed,
    check_shape,
    check_states,
    numbers_of,
)
from picardsolve.integrations.policies.chain import PlanChain, TowardsPlan
from picardsolve.integrations.policies.model import PlanModel
from picardsolve.integrations.policies.noise import Drawn, Noise
from picardsolve.integrations.policies.one_by_one import Faster, may_be_tried
from picardsolve.integrations.policies.solver import Plan, Solver
from picardsolve.integrations.policies.steps import PlanSteps

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


_PAYS = 4  # times as many calls in a row as a plan takes, where it breaks even: fifteen steps in docs/robots.md


class ParallelPolicy:
    """Makes plans of actions with a denoiser and a diffusers scheduler, all diffusion steps of a plan at once.

    A plan is what the scheduler's own loop makes with the same random generator:

        x = torch.randn((B, *shape), generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, observation), t, x, generator=generator).prev_sample

    From the second plan of an episode on, states start on the way to the plan before, without the actions that were
    executed, and with the noise of the new plan. That saves rounds, and changes the plan by no more than the tolerance,
    as far as is estimated. If the size of the batch changes, states start without it.

    Plans of at most 20 model calls, without a budget of rounds, are made one step after the other where the last
    plans have shown that to be faster; not after ``torch.use_deterministic_algorithms(True)``.

    The noise goes on from plan to plan, and over `reset` from episode to episode. So a seed determines a sequence of
    episodes, each with noise of its own.

    Args:
        model: called as ``model(x, t, observation)`` with ``x`` of shape ``(rows, *shape)``, ``t`` ``(rows,)`` of the
            scheduler's timesteps, and the observation of each row's plan; returns the shape of ``x``, or an object
            with ``sample``. Encode images before: the observation is repeated for every row.
        scheduler: `DDPMScheduler`, `DDIMScheduler`, `DPMSolverMultistepScheduler` (DPM-Solver++),
            `FlowMatchEulerDiscreteScheduler` or `FlowMatchHeunDiscreteScheduler` of diffusers, with its timesteps set.
            It is read here, and never stepped. Or a `FlowMatching`, for a model that is a velocity field.
        shape: shape of a plan: the horizon, then the shape of an action.
        executed: number of actions that are executed before the next plan, from 1 to the horizon; the next plan is
            expected to start there. Default 8, or a shorter horizon. If the first k actions of a plan lie in the past,
            as with k + 1 observations, at most the horizon less k can be executed.
        tol: largest estimated distance to the sequential sampler's plan, in root mean square and in the model's units
            (actions of diffusion policies are scaled to [-1, 1]). 0: to the last bits.
        max_rounds: the latency budget: after so many model calls the plan is returned as it is. None: no limit. Where
            a step takes several calls (Heun), those of one step are always made.
        seed: seed of the random generator that all noise is drawn from, below 2**64.
        iteration: the iteration of the window, by default `Secant`; not `Newton`.
        spread: standard deviation that actions are expected to have, given the observation. It changes the number of
            rounds only.
        dtype: dtype of the plans.
        mesh: as for `picardsolve.solve`: ranks that share the rows of every model call, and make every plan together.
        devices: as for `picardsolve.solve`: devices of this process that share them.

    Raises:
        TypeError: an argument has the wrong type, or the scheduler is not one of these.
        ValueError: an argument has a wrong value, such as more actions to execute than a plan has, or the scheduler's
            steps are not linear but for a clipped sample.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Any], Any],
        scheduler: Any,
        shape: tuple[int, ...],
        *,
        executed: int | None = None,
        tol: float = 5e-3,
        max_rounds: int | None = None,
        seed: int = 0,
        iteration: Iteration | None = None,
        spread: float = 0.1,
        dtype: torch.dtype = torch.float32,
        mesh: "DeviceMesh | None" = None,
        devices: Sequence[Any] | None = None,
    ):
        check_callable("model", model)
        check_shape(shape)
        executed = min(8, shape[0]) if executed is None else executed
        check_executed(executed, shape[0])
        check_not_negative("tol", tol)
        check_optional_positive_integer("max_rounds", max_rounds)
        check_seed(seed)
        check_not_negative("spread", spread)
        check_iteration(iteration)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}; pass torch.float32.")
        self._shape, self._executed, self._tol = tuple(shape), executed, tol
        self._model = PlanModel(model, self._shape, mesh, devices)
        self._max_rounds, self._iteration = max_rounds, iteration or Secant()
        self._steps = PlanSteps.of(scheduler, spread)
        self._ts = torch.cat([self._steps.timesteps.double(), torch.tensor([self._steps.end]).double()])
        self._noise = Noise(self._shape, dtype, self._steps.noisy, self._steps.noise_dtype)
        self._noise.begin(seed)
        self._steps_on: dict[torch.device, PlanSteps] = {}
        self._faster: dict[Any, Faster] = {}
        self._previous: Tensor | None = None
        self._warm = torch.zeros(0, dtype=torch.bool)  # robots that have a plan to start the next one from

    def reset(self, seed: int | None = None, *, generator: torch.Generator | None = None, robots: Any = None) -> None:
        """Begin an episode: forget the last plans, and let the noise go on or begin again.

        Args:
            seed: seed of the noise from now on; the same seed gives the same noise. None: the noise goes on.
            generator: the generator of the noise from now on, instead of a seed.
            robots: the robots whose episode begins: a number, several, or a mask of booleans. None: all. The plans of
                the other robots do not change. With a seed or a generator, these robots draw from then on what a batch
                of them alone would draw.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: it has a wrong value, or there is no such robot.
        """
        if seed is not None:
            check_seed(seed)
        if generator is not None:
            check_type("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
            if seed is not None:
                raise ValueError("generator: expected a seed or a generator, got both; pass one of them.")
        given = seed if generator is None else generator
        if robots is None:
            numbers, self._previous = None, None
        else:
            numbers = numbers_of(robots, None if self._previous is None else len(self._previous))
            self._warm[[number for number in numbers if number < len(self._warm)]] = False
        if given is not None and numbers != []:
            self._noise.begin(given, numbers)

    @torch.no_grad()
    def plan(
        self,
        observation: Any,
        *,
        start: Tensor | None = None,
        held: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
        max_rounds: int | None = None,
        throw: bool = True,
    ) -> Plan:
        """Make plans for a batch of observations. The plan of a robot does not depend on the other robots.

        Args:
            observation: a tensor, or a tuple, list or dict of tensors, each with leading dimension B, on one device.
            start: ``(B, *shape)`` noise that the plans start from. None: it is drawn.
            held: a mask and values, ``(B, *shape)`` both: where the mask is true, the value is put into the plan before
                each step and after the last one, as inpainting does it.
            generator: where the noise of this plan and of those after it is drawn from, but for robots that were reset
                with noise of their own. Unlike `reset`, it forgets no plan. None: noise goes on.
            max_rounds: the latency budget of this plan, instead of the policy's.
            throw: whether to raise if the steps of a robot are not finite, as with NaN in its observation. Otherwise
                its actions are NaN, and `Plan.failed` says so. Either way the other robots keep their plans.

        Raises:
            TypeError: the observation holds no tensors, or another argument has the wrong type.
            ValueError: the tensors differ in B, another argument has the wrong shape, or the model's output has.
            SolveError: the steps of a robot are not finite; ``error.solution.ys[-1]`` has the plans of the others.
        """
        check_optional_positive_integer("max_rounds", max_rounds)
        check_type("throw", throw, bool, "True or False")
        batch, device = batch_of(observation)
        shape = batch, *self._shape
        if start is not None:
            check_states("start", start, shape)
        if held is not None:
            check_held(held, shape)
        if generator is not None:
            check_type("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
            self._noise.follow(generator)
        self._noise.check(batch)
        before = self._noise.state()
        try:
            plan = self._planned(observation, self._noise.draw(batch, device, start), held, max_rounds)
        except BaseException:  # a plan that failed draws no noise
            self._noise.wind(before)
            raise
        self._previous, self._warm = plan.actions.clone(), ~plan.failed
        error = plan.error() if throw else None
        if error is not None:
            raise error
        return plan

    def _planned(
        self, observation: Any, drawn: Drawn, held: tuple[Tensor, Tensor] | None, max_rounds: int | None
    ) -> Plan:
        (x, noise), max_rounds = drawn, max_rounds or self._max_rounds
        batch, device = len(x), x.device
        if held is not None:
            held = held[0].to(device).flatten(1), held[1].to(x).flatten(1)
        self._model.stands(device)
        if device not in self._steps_on:
            self._steps_on[device] = self._steps.to(x)
        chain = PlanChain(self._steps_on[device], partial(self._model, observation, batch), x, noise, held)
        x = chain.with_held(x)
        guess: Guess = FrozenSample()
        if self._previous is not None and len(self._previous) == batch and self._warm.any():
            expected = None if self._warm.all() else self._warm.to(device)
            guess = TowardsPlan(self._expected().to(device), expected)
        solver = Solver(chain, x, self._shape, self._ts, self._iteration, self._tol)
        alike = {
            "observation": observation,
            "seed": (x, noise),
            "held": held,
            "max_rounds": max_rounds,
            "tol": self._tol,
        }

        def together() -> Plan:
            return self._model.together(partial(solver.solve, guess, max_rounds), alike)

        if chain.rounds == 1 and not self._model.shared and may_be_tried(chain.length, max_rounds):
            faster = self._faster.setdefault((batch, device), Faster())
            plan = faster.plan(partial(solver.one_by_one, self._steps.numbers), together)
        else:
            plan = together()
        notes = (*plan.solution.notes, *self._model.notes, *_few_steps(plan, chain))
        return replace(plan, solution=replace(plan.solution, notes=notes)) if notes else plan

    def _expected(self) -> Tensor:
        """The last plan without the executed actions, then its last action repeated, ``(B, D)``."""
        assert self._previous is not None
        left, end = self._previous[:, self._executed :], self._previous[:, -1:]
        return torch.cat([left, end.expand(-1, self._shape[0] - left.shape[1], *end.shape[2:])], 1).flatten(1)


def _few_steps(plan: Plan, chain: PlanChain) -> Iterator[str]:
    """A note where so few calls are saved that a loop may be faster."""
    alone = chain.length * chain.rounds
    if plan.rounds == alone:
        yield "one step after the other: there was nothing to save, or it was faster here, by the clock."
    elif plan.rounds * _PAYS > alone:
        yield (
            f"few steps: {plan.rounds} model calls in a row instead of {alone}; the loop over single steps may be as "
            "fast, above all with a small model, or where a call of many rows takes longer than one of a single row."
        )
