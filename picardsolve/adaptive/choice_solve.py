"""A solve that goes over to another method where that is faster, or where the first one fails."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from picardsolve.adaptive.contender import Call, Contender, Stepping
from picardsolve.adaptive.costs import Costs
from picardsolve.collocation import AdaptiveSolve
from picardsolve.embedded.embedded_solve import EmbeddedSolve
from picardsolve.integrators.adaptive import AdaptiveMachine
from picardsolve.problem.stopwatch import seconds
from picardsolve.results.solution import Solution, SolveError

_FASTER = 0.6  # of the time that is left: what another method has to be predicted for
_FEW = 2.0  # steps that are counted on before the first one is over
_CHANGES = 3  # at most
_PIECE = 4  # rows of a sample that show what rows cost


@dataclass
class ChoiceSolve(AdaptiveMachine):
    """The machine of `Adaptive`: another machine, which may change between two rounds.

    Attributes:
        costs: what the problem is expected to cost.
        collocation: one contender.
        pair: the other.
        said: what was decided.
    """

    most_rounds: ClassVar[int] = 1_000_000
    costs: Costs
    collocation: Contender[AdaptiveSolve]
    pair: Stepping[EmbeddedSolve]
    said: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._left = np.nan  # steps of the pair
        self._drift_call = np.inf  # seconds of a drift call with a row for each sample
        steps_first = self.costs.round_itself > self.pair.stages * self.costs.stage_itself
        self._now: Contender[Any] = self.pair if steps_first else self.collocation

    @property
    def solver(self) -> AdaptiveMachine:
        """The machine that is at work, or was at last."""
        return self._now.machine

    @property
    def done(self) -> bool:
        """Whether every sample is over."""
        return self.solver.done

    @property
    def failed(self) -> bool:
        """Whether samples ended before their time."""
        return self.solver.failed

    @property
    def beyond(self) -> bool:
        """Whether the estimated error of a sample stays above the tolerance."""
        return self.solver.beyond

    @property
    def percent(self) -> int:
        """How far the slowest sample has come."""
        return self.solver.percent

    def ask(self) -> Any:
        """The rows of the next round."""
        self._began = seconds()
        rows = self.solver.ask()
        if self._now is self.collocation and self._too_dear(rows):
            self._go(self.pair, "rows are dear")
            return self.ask()
        return rows

    def evaluate(self, rows: Any) -> Tensor:
        """The drift at the rows."""
        drift, self._drift = self._timed(rows)
        return drift

    def tell(self, outputs: Tensor) -> None:
        """Take the drifts; and decide who goes on."""
        self.solver.tell(outputs)
        took = seconds() - self._began
        self._now.calls.append(Call(len(outputs), took, took - self._drift))
        self._drift_call = min(self._drift_call, self._drift)
        if self.done:
            self._after_failure()
        elif len(self.said) < _CHANGES:
            self._after_round() if self._now is self.collocation else self._after_stage()

    def _go(self, other: Contender[Any], why: str) -> None:
        self.said.append(f"{other.name} took over: {why}")
        self._now = other

    def _after_failure(self) -> None:
        """Let the method solve that was not tried, where this one could not."""
        others = [each for each in (self.collocation, self.pair) if each is not self._now]
        untried = [each for each in others if not each.started or not each.machine.done]
        if untried and (self.failed or self.beyond):
            self._go(untried[0], f"{self._now.name} did not reach the tolerance")

    def _after_stage(self) -> None:
        """Look whether what is left takes less time by collocation."""
        pair, drift = self.pair, self._drift_call
        first_look = len(pair.calls) == 3 and not self.collocation.started
        if len(pair.calls) % pair.stages and not first_look:
            return  # in the midst of a step
        steps = _FEW if first_look else pair.machine.steps_left
        if np.isnan(steps):
            return
        if not first_look:
            self._left = steps
        left = steps * pair.stages * pair.whole
        if self.costs.rounds(steps, pair.order) * self._round < _FASTER * left:
            why = f"a call takes {_ms(drift)}" if first_look else f"steps would take {_ms(left)} more"
            self._go(self.collocation, why)

    def _after_round(self) -> None:
        """Look whether what is left takes less time by steps."""
        calls = self.collocation.calls
        if len(calls) < 3 or calls[-1].rows <= 2 * self.costs.samples:
            return
        pair, stage, steps = self.pair, self._stage, self._steps
        if not steps:
            return  # no segment is in flight: what is left is to look at what was found
        left = max(self.costs.rounds(steps, pair.order) - len(calls), 1.0) * self.collocation.whole
        if steps * pair.stages * stage < _FASTER * left:
            self._go(pair, f"a round of collocation takes {_ms(self.collocation.whole)}, a stage {_ms(stage)}")

    @property
    def _round(self) -> float:
        """Seconds of a round of collocation: measured, or as on a machine whose stages take what they were seen to."""
        slower = max(np.nan_to_num(self.pair.beside) / self.costs.stage_itself, 1.0)
        return max(self._drift_call + self.costs.round_itself * slower, np.nan_to_num(self.collocation.whole))

    @property
    def _stage(self) -> float:
        """Seconds of a stage of a step: measured, or as on a machine whose rounds take what they were seen to."""
        if len(self.pair.calls) > 2:
            return self.pair.whole
        slower = max(np.nan_to_num(self.collocation.beside) / self.costs.round_itself, 1.0)
        return self._drift_call + self.costs.stage_itself * slower

    @property
    def _steps(self) -> float:
        """Steps that are left: as the pair said, or as the segments in flight suggest."""
        if np.isnan(self._left):
            return self.costs.steps(self.collocation.machine.pieces, self.pair.order)
        return self._left

    def _too_dear(self, rows: Any) -> bool:
        """Whether large rounds would take longer than the steps that are left; a piece shows what rows cost."""
        count, samples = len(rows[0]), self.costs.samples
        largest = max((call.rows for call in self.collocation.calls), default=0)
        if not largest or count <= 2 * max(largest, _PIECE * samples):
            return False
        if self._pays(count, self._drift_call, self._drift_call / samples):
            return False
        pieces = (tuple(part[: each * samples] for part in rows) for each in (1, _PIECE))
        one, more = (self._timed(piece)[1] for piece in pieces)
        self._drift_call = one
        return not self._pays(count, one, max(more - one, 0.0) / ((_PIECE - 1) * samples))

    def _pays(self, rows: int, drift: float, row: float) -> bool:
        """Whether rounds of so many rows take less time than steps, where a call and a row more take so long."""
        steps, pair = self._steps, self.pair
        by_steps = steps * pair.stages * (drift + self._stage - self._drift_call)
        return self.costs.rounds(steps, pair.order) * (drift + row * rows) <= by_steps

    def _timed(self, rows: Any) -> tuple[Tensor, float]:
        """The drift at rows, and its seconds."""
        began = seconds()
        return self.solver.evaluate(rows), seconds() - began

    def solution(self, rounds: int, throw: bool) -> Solution:
        """What was found, after so many rounds.

        Raises:
            SolveError: a sample failed, and ``throw`` is true; it carries the solution.
        """
        try:
            return self._counted(self.solver.solution(rounds, throw))
        except SolveError as error:
            raise SolveError(str(error), self._counted(error.solution), error.step, error.time) from None

    def _counted(self, solution: Solution) -> Solution:
        """With the calls of all that was tried."""
        machines = [each.machine for each in (self.collocation, self.pair) if each.started]
        evaluations = sum(each.function.evaluations for each in machines)
        calls = sum(each.function.calls for each in machines)
        stats = replace(solution.stats, evaluations=evaluations, calls=calls)
        return replace(solution, stats=stats, notes=(*solution.notes, *self.said))


def _ms(duration: float) -> str:
    return f"{1e3 * duration:.2g} ms"
