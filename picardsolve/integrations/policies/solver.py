"""Solving the diffusion steps of a batch of plans: once, more sharply, or one after the other."""

from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from picardsolve import Certificate, FrozenSample, Guess, Iteration, Result, Solution, SolveError, Stats
from picardsolve.distributed import RankError
from picardsolve.extend import Carried, ErrorEstimate, Evidence, History, Increment, Stopping, Tolerance, Window, drive
from picardsolve.integrations.policies.chain import PlanChain, TowardsPlan

_ROOM = 2**20  # bytes that a model and its observations may take in a pickle


@dataclass(frozen=True)
class Plan:
    """A plan, and what it took.

    Attributes:
        actions: ``(B, horizon, ...)``; NaN for robots whose steps are not finite.
        solution: the states at all diffusion steps, the rounds, and whether they converged. Where the budget was spent,
            states that the last round did not reach are NaN.
        failed: ``(B,)`` whether a step of the sequential sampler is not finite.
    """

    actions: Tensor
    solution: Solution
    failed: Tensor

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
        """Whether the plan is estimated to be the sequential sampler's to the tolerance.

        False where ``max_rounds`` came first, or a robot failed.
        """
        return self.solution.result is Result.converged

    @property
    def certificate(self) -> Certificate:
        """How far the plan may be from the sequential sampler's, as the rounds tell; ``error[-1]`` is ``(B,)``."""
        return cast(Certificate, self.solution.certificate)

    def error(self) -> SolveError | None:
        """The error of the first robot that failed; None if none did."""
        if not self.failed.any():
            return None
        sample, others = int(self.failed.int().argmax()), int((~self.failed).sum())
        step = int(self.solution.ys[:, sample].flatten(1).isfinite().all(1).sum()) - 1
        time = float(self.solution.ts[step])
        message = f"Step {step} of plan {sample}, at timestep {time:g}, is not finite: check "
        message += "the observation, and the model's output there."
        if others:
            message += f" The plans of the {others} others are not touched by it: pass throw=False for them."
        return SolveError(message, self.solution, step, time)


@dataclass(frozen=True)
class Solver:
    """What is solved, and by which iteration; a certificate repeats the solve with it.

    Attributes:
        steps: the chain of all steps.
        x: ``(B, D)`` the first states.
        shape: shape of a plan.
        ts: ``(N + 1,)`` the timesteps, and what stands behind the last one.
        iteration: the iteration of the window, which holds all steps.
        tol: tolerance, absolute.
    """

    steps: PlanChain
    x: Tensor
    shape: tuple[int, ...]
    ts: Tensor
    iteration: Iteration
    tol: float

    def solve(self, guess: Guess, max_rounds: int | None) -> Plan:
        """Run rounds until the plans have converged or failed, or the budget is spent."""
        tiny = torch.finfo(self.x.dtype).eps
        estimate = ErrorEstimate(Tolerance(atol=self.tol or tiny), self.steps.length)
        rules = (estimate, None) if self.tol else (Increment(Tolerance()), estimate)
        before = self.steps.counts()
        with torch.inference_mode():
            window = self._window(guess, *rules, width=self.steps.length)
            try:
                drive(window, None if max_rounds is None else max(1, max_rounds // self.steps.rounds))
            except RankError as error:
                reached = self._solution(window, Result.interrupted, before, None)
                raise SolveError(f"{error} {Result.interrupted.value}", reached) from error
            plans = self._plans(window)
            if not window.done:
                _accept_all(window)
        result = Result.converged if window.done else Result.max_rounds
        result = Result.nonfinite if window.failed.any() else result
        solution = self._solution(window, result, before, estimate.tolerance)
        # a copy may be differentiated, unlike a tensor made in inference mode
        return Plan(plans.clone().reshape(-1, *self.shape), solution, torch.from_numpy(window.failed))

    def one_by_one(self, numbers: list[list[float]]) -> Plan:
        """Make the plans one step after the other, as lean as it goes; where one failed, states are not told apart."""
        before = self.steps.counts()
        with torch.inference_mode():
            path = self.steps.one_by_one(self.x, numbers)
            failed = ~path[-1].isfinite().all(1).cpu()
        calls, evaluations = (now - then for now, then in zip(self.steps.counts(), before, strict=True))
        history, tolerance = History(), Tolerance(atol=self.tol or torch.finfo(self.x.dtype).eps)
        evidence = Evidence(history, path, self.steps.length, tolerance, Carried(self, _ROOM), exact=True)
        states = path.reshape(*path.shape[:2], *self.shape)
        stats = Stats(self.steps.length, calls, evaluations, calls, 1)
        certified = partial(Certificate.of, evidence)
        solution = Solution(self.ts, states, Result.converged, stats, history, _certified=certified)
        return Plan(path[-1].clone().reshape(-1, *self.shape), solution, failed)

    def _window(self, guess: Guess, stopping: Stopping, meter: ErrorEstimate | None = None, *, width: int) -> Window:
        path = self.x.new_full((self.steps.length + 1, *self.x.shape), torch.nan)
        return self.iteration.machine(
            self.steps, self.x, path, width=width, guess=guess, stopping=stopping, meter=meter
        )

    def _plans(self, window: Window) -> Tensor:
        """The last states, ``(B, D)``, converged or not; NaN for plans that failed."""
        left = self.steps.length - window.begin
        ends = np.minimum(left, len(window.x) - 1)
        plans = window.x[torch.from_numpy(ends), torch.arange(len(ends))]
        # a window that was narrowed ends in a state with noise: the sample predicted there is nearer to a plan
        if (ends < left).any():
            plans = torch.where(_mask(ends < left, plans), self.steps.predicted(), plans)
        return plans.masked_fill(_mask(window.failed, plans), torch.nan) if window.failed.any() else plans

    def _solution(
        self, window: Window, result: Result, before: tuple[int, int], tolerance: Tolerance | None
    ) -> Solution:
        """The solution; without a tolerance it is the reference itself, and has no certificate."""
        path, history = window.path, window.history
        assert path is not None
        calls, evaluations = (now - then for now, then in zip(self.steps.counts(), before, strict=True))
        width = max((int(record.width.max()) for record in history), default=1)
        stats = Stats(self.steps.length, calls, evaluations, calls, width)
        states, certified = path.reshape(*path.shape[:2], *self.shape), None
        if tolerance is not None:
            evidence = Evidence(history, path, self.steps.length, tolerance, Carried(self, _ROOM))
            certified = partial(Certificate.of, evidence)
        return Solution(self.ts, states, result, stats, history, _certified=certified)

    # ---- what a certificate asks for

    def chain(self) -> PlanChain:
        """The chain of all steps."""
        return self.steps

    def rows(self, solution: Solution) -> Tensor:
        """The states of a solution, ``(T, B, D)``."""
        return solution.ys.flatten(2)

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution, to a fraction of the tolerance."""
        sharper = Solver(self.steps, self.x, self.shape, self.ts, self.iteration, factor * self.tol)
        plan = sharper.solve(TowardsPlan(solution.ys[-1].flatten(1)), None)
        error = plan.error()
        if error is not None:
            raise error
        return plan.solution

    @torch.no_grad()
    def sequential(self) -> Solution:
        """One step after the other, which a window of one step does: the reference."""
        before, window = self.steps.counts(), self._window(FrozenSample(), Increment(Tolerance()), width=1)
        drive(window)
        return self._solution(window, Result.converged, before, None)


def _mask(of: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(of)[:, None].to(like.device)


def _accept_all(window: Window) -> None:
    """Take what the last round made of its states for the answer, and note it so in the history."""
    assert window.path is not None
    last = window.history[-1]
    window.history.accept_last()
    end = (last.begin + last.width).numpy()
    row, sample = np.nonzero(np.arange(len(window.x) - 1)[:, None] < end - window.begin)
    step = torch.from_numpy(window.begin[sample] + 1 + row)
    row, sample = torch.from_numpy(row), torch.from_numpy(sample)
    window.path[step, sample] = window.x[row + 1, sample]
