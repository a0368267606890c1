"""All samples of a solve, from the choice of their iteration to their ends or failures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from picardsolve.collocation.arrays import Array
from picardsolve.collocation.events import EventWatches
from picardsolve.collocation.failures import Failure, Stiff
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.iteration_choice import newton_pays, rounds_if_stiff
from picardsolve.collocation.march import March
from picardsolve.collocation.refinement import refine
from picardsolve.collocation.sweeps import Choice, Rows

if TYPE_CHECKING:
    from picardsolve.collocation.method import Collocation

_MARCHES = 4  # at most, of a sample


class Marches:
    """The samples of a solve: a march of all with one iteration; others for samples that go on with another one.

    A sample marches again, guided by its own path, until its error is within tolerance.

    Args:
        problem: the samples.
        method: the user's.
        choice: the iteration; None: by the size of the state, and Newton's method where others find samples stiff.
        watches: look for events; None: there are none.

    Attributes:
        marches: by iteration.
        over: ``(B,)`` whether nothing is left to be done.
        failures: why samples ended before their times.
        beyond: ``(B,)`` whether the estimated error stays above the tolerance.
        times: ``(B,)`` how many marches of the same iteration there were.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        method: "Collocation",
        choice: Choice | None = None,
        watches: EventWatches | None = None,
    ):
        self.problem, self.watches = problem, watches
        self._method, self._choice = method, choice
        self.marches: dict[tuple[Choice, int], March] = {}
        self.failures: dict[int, Failure] = {}
        self.over = np.zeros(problem.samples, bool)
        self.times = np.ones(problem.samples, int)
        self.beyond = np.zeros(problem.samples, bool)
        self._decisions: list[str] = []
        self._take(choice, np.arange(problem.samples))

    def _take(self, choice: Choice | None, sample: np.ndarray) -> None:
        """Let samples begin with an iteration, those with the same order together."""
        for march in self.marches.values():
            march.leave(sample)
        taken, orders = self._method.plan(self.problem, choice)
        for order in np.unique(orders[sample]).tolist():
            if (taken, order) not in self.marches:
                self.marches[taken, order] = self._method.march(self.problem, taken, order, self.watches)
            self.marches[taken, order].begin(sample[orders[sample] == order])
        self.times[sample] = 1

    # ---- a round

    def ask(self) -> Rows:
        """Elapsed times ``(R,)``, states ``(R, d)`` and samples ``(R,)`` of the next round."""
        self._asked = [march for march in self.marches.values() if march.under_way]
        rows = [march.ask() for march in self._asked]
        self._counts = [len(t) for t, _, _ in rows]
        if len(rows) == 1:
            return rows[0]
        t, states, sample = zip(*rows, strict=True)
        return np.concatenate(t), self.problem.arrays.concat(states), np.concatenate(sample)

    def tell(self, drift: Array) -> None:
        """Take the drifts there, ``(R, d)``, as they are in elapsed time; failures are kept."""
        first = 0
        for march, count in zip(self._asked, self._counts, strict=True):
            march.tell(drift[first : first + count])
            first += count
        for march in self._asked:
            self._fail(march.failures, march)
            if len(march.finished):
                self._refine(march, march.finished)
            if self._choice is None:
                self._reconsider(march)

    def _fail(self, failures: "dict[int, Failure]", march: March) -> None:
        if failures:
            self.failures |= failures
            self.over[list(failures)] = True
            march.stop(np.array(list(failures)))

    def _refine(self, march: March, sample: np.ndarray) -> None:
        """Let those samples march again whose error is too large; the others are over."""
        last, watches = self.problem.elapsed[-1], self.watches
        also = of = np.zeros(0)
        if watches is not None:
            # the terminal event that shortened the span has moved beyond it, or does not happen
            lost = sample[(march.span[sample] < last[sample]) & np.isinf(watches.ends[sample])]
            for i in lost.tolist():
                march.extend(i, float(last[i]))
            sample = np.setdiff1d(sample, lost)
            also, of = watches.times
            own = np.isin(of, sample)
            also, of = also[own], of[own]
        if not len(sample):
            return
        again, failures, late = refine(march, sample, self.times[sample] < _MARCHES, also, of)
        self.times[again] += 1
        self.beyond[late] = True
        self.over[np.setdiff1d(sample, again)] = True
        self._fail(failures, march)

    def _reconsider(self, march: March) -> None:
        """Take Newton's method where an iteration would take too many rounds."""
        if march.sweep.name == "newton":
            return
        sample = march.active
        sample = sample[(self.times[sample] == 1) & ~self.over[sample]]
        rounds = rounds_if_stiff(march, sample)
        stiff = ~np.isnan(rounds)
        if not stiff.any():
            return
        if not self.problem.takes_jacobians:
            found = zip(sample[stiff].tolist(), rounds[stiff].tolist(), strict=True)
            self._fail({i: Stiff(count) for i, count in found}, march)
            return
        self._decisions.append(
            f"stiff: after {march.rounds[sample[stiff]][0]} rounds {rounds[stiff][0]:.0f} were predicted, so Newton's "
            "method took over"
        )
        self._take("newton", sample[stiff])

    def compare(self, calls: Sequence[tuple[int, float]]) -> None:
        """Take a secant in place of Newton's method where that is faster, by rows and seconds of the first calls."""
        slow = [march for march in self.marches.values() if march.sweep.quadratic and march.under_way]
        if self._choice is not None or not slow:
            return
        if not newton_pays(self.problem, slow[0], self._method.order, calls):
            self._decisions.append("Jacobians are expensive, by the size of states and the time of the first calls")
            self._take("secant", np.concatenate([march.active for march in slow]))

    # ---- what was found

    @property
    def shortest(self) -> float:
        """The length of the shortest segment in flight."""
        return min(march.shortest for march in self._asked)

    @property
    def part(self) -> float:
        """How far the slowest sample has come, of 1."""
        on = ~self.over
        return float((self.reached / self.problem.elapsed[-1])[on].min(initial=1.0))

    @property
    def reached(self) -> np.ndarray:
        """``(B,)`` elapsed times up to which segments are accepted."""
        return np.max([march.accepted.reached for march in self.marches.values()], 0)

    @property
    def known(self) -> np.ndarray:
        """``(B,)`` elapsed times up to which states are known: a last segment's end, or a terminal event."""
        return self.reached if self.watches is None else np.minimum(self.watches.ends, self.reached)

    @property
    def count(self) -> np.ndarray:
        """``(B,)`` how many segments are accepted."""
        return np.max([march.accepted.count for march in self.marches.values()], 0)

    @property
    def terminated(self) -> np.ndarray:
        """``(B,)`` whether an event ended samples."""
        ended = self.over & False if self.watches is None else np.isfinite(self.watches.ends)
        ended[list(self.failures)] = False
        return ended & self.over

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may want to know about how it was solved."""
        said = [f"{march.sweep.name} iteration on {march.nodes.n} {march.nodes.kind} nodes" for march in self.taken]
        again = int(self.times.max()) - 1
        last = [f"solved again {again} times to a sharper tolerance, for errors grow"] if again else []
        return (*said, *self._decisions, *last)

    @property
    def taken(self) -> list[March]:
        """The marches that samples ended with."""
        return [march for march in self.marches.values() if march.accepted.count.any() or march.under_way]
