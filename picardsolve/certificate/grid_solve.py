"""A whole solve on a grid: the parts are chosen, the rounds are run, and what came of them is a `Solution`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from picardsolve.certificate.again import Again
from picardsolve.certificate.certificate import Certificate
from picardsolve.certificate.evidence import Evidence
from picardsolve.certificate.growth import Growth, measurable
from picardsolve.certificate.running import Pacing, last_states, result_of, run_rounds
from picardsolve.certificate.second_look import SecondLook
from picardsolve.certificate.sharpening import Sharpening
from picardsolve.fixed_point.automatic_width import ChoosesWidth, Pace
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.grid_machine import GridMachine, forget_beyond
from picardsolve.fixed_point.guesses import guess_for
from picardsolve.fixed_point.iterations import Method, iteration_for
from picardsolve.fixed_point.stopping import MakesRule
from picardsolve.fixed_point.stopping_rules import stopping_of
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.problem.tolerances import Stop, Tolerance
from picardsolve.problem.validation import tolerance_of
from picardsolve.results.carried import Carried
from picardsolve.results.failure import failure_of
from picardsolve.results.progress import Progress
from picardsolve.results.solution import Result, Solution, Stats

_KEPT = 2**22  # numbers of a solution that is kept while it is solved, to measure growth along it
_ROOM = 2**20  # bytes of functions that go along into a pickle
_WIDEST = 256  # rows of a window that is tried by itself, where max_batch does not say


@dataclass
class GridSolve:
    """One solve of the steps of a chain in rounds.

    Attributes:
        problem: what is solved.
        y: ``(B, D)`` the initial states.
        chain: the steps.
        method: how they are solved in rounds.
        machine: the solve under way.
        tolerance: the tolerance of errors.
        pace: see `run_rounds`.
        keeps: whether the user wants the state at every time.
        looks: whether the whole path is looked at once more, see `SecondLook`.
        rounds: rounds so far.
        growth: growth of errors along the solution; None: not known.
        errors: ``(N + 1, B)``, what a second look has found of them; None: there was none.
        within: whether errors are estimated to be within the tolerance.
        evidence: what a certificate of the solution is made from; None before `solution`.
    """

    problem: Problem
    y: Tensor
    chain: DriftChain
    method: Method
    machine: GridMachine
    tolerance: Tolerance
    pace: Pacing
    keeps: bool
    looks: bool = False
    rounds: int = 0
    growth: Growth | None = None
    errors: Tensor | None = None
    within: bool = True
    evidence: Evidence | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        problem: Problem,
        y: Tensor,
        chain: DriftChain,
        iteration: Method | None,
        guess: Any,
        window: int | Literal["auto"],
        stop: Stop | MakesRule,
        tolerances: tuple[Any, Any, Any],
        keeps: bool,
        certify: bool | None = None,
    ) -> "GridSolve":
        """Choose the parts; arguments are those of `picardsolve.solve`, ``tolerances`` is its tol, rtol and atol.

        Raises:
            TypeError: a part does not fit the problem, or a tolerance has the wrong type.
            ValueError: a tolerance has a wrong value or shape.
        """
        method = iteration_for(iteration, chain)
        looks = stop == "error" and method.stop is None and not chain.smooth and y.shape[-1] <= LARGEST_DENSE
        sharp = looks and method.solves_equations  # changes are errors then
        rule = method.stop or ("increment" if sharp else stop)
        named: Stop = "error" if callable(rule) else rule
        asked, tolerance = (tolerance_of(problem.term, problem.layout, *tolerances, each) for each in (named, "error"))
        if certify is None:
            certify = rule == "error" and chain.trusts_slopes
        stopping, meter = stopping_of(rule, asked, chain, chain.trusts_slopes, certify and not sharp), None
        if method.stop is None and rule != "error" and not asked.nothing:
            meter = ErrorEstimate(tolerance, chain.length, chain.trusts_slopes, implicit=chain.implicit)
        checked = stop == "error" and measurable(problem, chain, y.shape[-1]) and chain.length * y.numel() <= _KEPT
        path = y.new_full((chain.length + 1, *y.shape), torch.nan) if keeps or checked else None
        workers = 1 if problem.crew is None else problem.crew.workers
        most = max((problem.max_batch or _WIDEST) * workers // len(y), 1)  # each holds so many rows
        widest = window if window != "auto" else min(chain.length, most)
        parts = {"guess": guess_for(guess, problem, chain), "stopping": stopping, "meter": meter}
        machine = method.machine(chain, y, path, width=widest, lockstep=problem.term.takes == "batch", **parts)
        pace: Pacing = "auto" if window == "auto" else "single" if window == 1 else "fixed"
        if method.stop is not None or chain.implicit:  # cores along the grid, and equations that a window iterates
            pace = "fixed"
        return cls(problem, y, chain, method, machine, tolerance, pace, keeps, looks and not asked.nothing)

    @torch.no_grad()
    def run(self, max_rounds: int | None, bar: Progress, chooses: Callable[[int], ChoosesWidth] = Pace) -> None:
        """Run the rounds, and those of samples whose errors are then estimated beyond the tolerance.

        Args:
            max_rounds: most rounds; None: any number.
            bar: is shown the progress.
            chooses: makes what chooses an automatic width, from the largest one.
        """
        self.rounds = run_rounds(self.machine, self.pace, max_rounds, bar, chooses)
        if self.machine.path is not None:
            forget_beyond(self.machine.path, self.machine.begin)
        if self.looks:
            look = SecondLook(self.chain, cast(Window, self.machine), self.y, self.tolerance)
            self.errors, self.within = look.found(max_rounds)
            self.rounds += look.rounds
        elif self.method.stop is None and not self.machine.exact:
            sharpening = Sharpening(self.problem, cast(Window, self.machine), self.y, max_rounds)
            if self.chain.trusts_slopes:
                sharpening.of_denoiser()
            else:
                self.growth, self.within = sharpening.of_grown_errors(self.tolerance)
            self.rounds += sharpening.rounds
        bar.update(int(self.machine.begin.min()), self.rounds * self.chain.rounds)
        if self.problem.term.takes == "batch":
            self.machine.fail_where_not_finite()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know of the solution, a sentence each."""
        return () if self.evidence is None else self.evidence.warnings

    @torch.no_grad()
    def solution(self, throw: bool, again: Callable[..., Again]) -> Solution:
        """What came of it.

        Args:
            throw: whether a solve that could not be finished raises its error.
            again: makes the solve that can be repeated, from the tolerance and the choices that are not its own.

        Raises:
            SolveError: a step is not finite, or there were not enough rounds; it carries the solution.
        """
        machine, chain, problem = self.machine, self.chain, self.problem
        path = machine.path if self.keeps else None
        path = last_states(machine.x[0], machine.begin == chain.length) if path is None else path
        more = {} if self.method.stop else {"iteration": self.method}
        evidence = self.evidence = Evidence(
            machine.history,
            path,
            chain.length,
            self.tolerance,
            Carried(again(tolerance=self.tolerance, more=more), _ROOM + 2 * self.y.nbytes),
            batched=problem.layout.batched,
            denoises=chain.trusts_slopes,
            implicit=chain.implicit,
            growth=self.growth,
            exact=machine.exact,
            seen=self.errors,
        )
        width = machine.history.widest
        return finished(
            problem,
            chain,
            path,
            result_of(machine, self.within),
            (self.rounds, width),
            machine.begin,
            machine.failed,
            throw,
            history=machine.history,
            notes=machine.notes,
            _certified=partial(Certificate.of, evidence),
        )


def finished(
    problem: Problem,
    chain: DriftChain,
    path: Tensor,
    result: Result,
    counts: tuple[int, int],
    reached: Any,
    failed: Any,
    throw: bool,
    **more: Any,
) -> Solution:
    """The solution of a path ``(T, B, D)``; its error is raised if it could not be finished and ``throw`` is true.

    Args:
        problem: what was solved.
        chain: its steps.
        path: states at the last T times of the grid.
        result: how it ended.
        counts: rounds, and the largest number of steps of one sample in a round.
        reached: ``(B,)`` steps of each sample that are known.
        failed: ``(B,)`` whether the step after them is not finite.
        throw: whether to raise.
        **more: further attributes of the solution.
    """
    calls, evaluations = chain.counts()
    rounds, width = counts
    stats = Stats(chain.length, rounds * chain.rounds + chain.further_rounds, evaluations, calls, width)
    solution = Solution(problem.ts[-len(path) :], problem.layout.unpack_path(path), result, stats, **more)
    if throw and result in (Result.nonfinite, Result.max_rounds):
        raise failure_of(solution, problem.ts, reached, failed, problem.layout.batched)
    return solution
