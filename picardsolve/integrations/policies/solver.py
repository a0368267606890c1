"""Solving the diffusion steps of a batch of plans: once, more sharply, or one after the other."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from picardsolve.certificate.certificate import Certificate, Evidence
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.iterations import Iteration
from picardsolve.fixed_point.sequential import Stepper
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrations.policies.chain import PlanChain
from picardsolve.integrations.policies.guess import Towards
from picardsolve.problem.machine import drive
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.carried import Carried
from picardsolve.results.history import History
from picardsolve.results.solution import Result, Solution, SolveError, Stats

_ROOM = 2**20  # bytes of a model and its observations that go along into a pickle


@dataclass(frozen=True)
class Solved:
    """Plans, and how they came about.

    Attributes:
        plans: ``(B, *shape)``; NaN of those that failed.
        solution: where the budget was spent, states of which the last round says nothing are NaN.
        failed: ``(B,)`` whether a step of the sequential sampler is not finite.
        error: of the first that failed; None where none did.
    """

    plans: Tensor
    solution: Solution
    failed: Tensor
    error: SolveError | None


@dataclass(frozen=True)
class Solver:
    """What is solved, and by which iteration.

    Attributes:
        chain: of all steps.
        x: ``(B, D)`` the first states.
        shape: of a plan.
        ts: ``(N + 1,)`` the timesteps, and what stands behind the last one.
        iteration: of the window, which holds all steps.
    """

    chain: PlanChain
    x: Tensor
    shape: tuple[int, ...]
    ts: Tensor
    iteration: Iteration

    def solve(self, guess: Guess, tol: float, max_rounds: int | None) -> Solved:
        """Run rounds until the plans have converged or failed, or the budget is spent."""
        length, tiny = self.chain.length, torch.finfo(self.x.dtype).eps
        estimate = ErrorEstimate(Tolerance(atol=tol or tiny), length)
        exact = None if tol else Increment(Tolerance())
        settings = Settings(length, self.iteration, guess, exact or estimate, meter=exact and estimate)
        path, before = self.x.new_full((length + 1, *self.x.shape), torch.nan), self.chain.counts()
        with torch.inference_mode():
            window, plans = self._run(settings, path, max_rounds)
        result = Result.converged if window.done else Result.max_rounds
        result = Result.nonfinite if window.failed.any() else result
        solution = self._solution(path, result, window.history, before, estimate.tolerance)
        # a copy may be differentiated, unlike what is inferred
        return Solved(
            plans.clone().reshape(-1, *self.shape),
            solution,
            torch.from_numpy(window.failed),
            self._error(window, solution),
        )

    def _error(self, window: Window, solution: Solution) -> SolveError | None:
        if not window.failed.any():
            return None
        sample = int(window.failed.argmax())
        step = int(window.begin[sample])
        time, others = float(self.ts[step]), int((~window.failed).sum())
        message = f"Step {step} of plan {sample}, at timestep {time:g}, is not finite: check "
        message += "the observation, and the model's output there."
        if others:
            message += f" The plans of the {others} others are not touched by it: pass throw=False for them."
        return SolveError(message, solution, step, time)

    def _run(self, settings: Settings, path: Tensor, max_rounds: int | None) -> tuple[Window, Tensor]:
        """The window after its rounds, and the plans ``(B, D)``."""
        window, predicted = Window(self.chain, self.x, settings, path), self.x.clone()
        while not window.done and (max_rounds is None or len(window.history) < max_rounds):
            rows = window.ask()
            outputs = self.chain.evaluate(rows)
            furthest = len(rows.sample) - 1 - np.unique(rows.sample[::-1], return_index=True)[1]
            predicted[torch.from_numpy(rows.sample[furthest])] = outputs[torch.from_numpy(furthest)]
            window.tell(outputs)
        left = self.chain.length - window.begin
        ends = np.minimum(left, len(window.x) - 1)
        plans = window.x[torch.from_numpy(ends), torch.arange(len(ends))]
        # a window that was narrowed ends in a state with noise: what is predicted from there is nearer to a plan
        short = torch.from_numpy(ends < left)[:, None].to(plans.device)
        plans = torch.where(short, self.chain.clipped(predicted), plans)
        if not window.done:
            _accept_all(window)
        plans = plans.masked_fill(torch.from_numpy(window.failed)[:, None].to(plans.device), torch.nan)
        return window, plans

    def _solution(
        self, path: Tensor, result: Result, history: History, before: tuple[int, int], tolerance: Tolerance
    ) -> Solution:
        calls, evaluations = (now - then for now, then in zip(self.chain.counts(), before, strict=True))
        width = max((int(record.width.max()) for record in history), default=1)
        stats = Stats(self.chain.length, calls, evaluations, calls, width)
        again = Carried(_Again(self, float(tolerance.atol)), _ROOM)
        evidence = Evidence(history, path, self.chain.length, tolerance, again)
        certified = partial(Certificate.of, evidence) if history else None
        return Solution(self.ts, self._states(path), result, stats, history, _certified=certified)

    @torch.no_grad()
    def sequential(self) -> Solution:
        """One step after the other: the reference."""
        path, before = self.x.new_full((self.chain.length + 1, *self.x.shape), torch.nan), self.chain.counts()
        drive(Stepper(self.chain, self.x, path))
        return self._solution(path, Result.converged, History(), before, Tolerance())

    def _states(self, path: Tensor) -> Tensor:
        return path.reshape(*path.shape[:2], *self.shape)


@dataclass(frozen=True)
class _Again:
    """A solve, to be repeated.

    Attributes:
        solver: of the same plans.
        tol: that was asked for.
    """

    solver: Solver
    tol: float

    def chain(self) -> PlanChain:
        """Of all steps."""
        return self.solver.chain

    def rows(self, solution: Solution) -> Tensor:
        """The states of a solution, ``(T, B, D)``."""
        return solution.ys.flatten(2)

    def finer(self, solution: Solution, factor: float) -> Solution:
        """Solve again, from a solution, to a fraction of its tolerance."""
        solved = self.solver.solve(Towards(solution.ys[-1].flatten(1)), factor * self.tol, None)
        if solved.error is not None:
            raise solved.error
        return solved.solution

    def sequential(self) -> Solution:
        """One step after the other."""
        return self.solver.sequential()


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
