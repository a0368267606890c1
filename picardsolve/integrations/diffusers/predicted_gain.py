"""How much faster than one step at a time a run will be, predicted after its first quarter."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from picardsolve.integrations.diffusers.spans import Span

_FILLING = 2  # rounds before windows are full: the first step alone, and the first window
_called: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()


@dataclass
class TimedRound:
    """A round, and the time that it took.

    Attributes:
        step: the number of its first step.
        start: when its first call was made.
        span: from there to the end of its step.
        width: steps in it.
        warm: whether calls like its own had been made before.
        alone: whether it is a step that is taken alone.
    """

    step: int
    start: float
    span: Span
    width: int
    warm: bool
    alone: bool


@dataclass
class GainPrediction:
    """Takes the rounds of a run as they end.

    The remaining steps are assumed to take as long as the steps since windows were full, with the pipeline's own work
    and the replays. What the first call of a kind took longer than later ones is subtracted.

    Attributes:
        steps: of the run.
        gain: the predicted ratio of times; None before the prediction, or where the time of a single step is unknown.
    """

    steps: int
    gain: float | None = field(init=False, default=None)
    _rounds: int = field(init=False, default=0)
    _begun: float = field(init=False, default=0.0)  # when the first call was made
    _full: tuple[int, float] = field(init=False, default=(0, 0.0))  # the step, and the time, when windows were full
    _first: list[tuple[int, float]] = field(init=False, default_factory=list)  # later first calls: width and seconds
    _usual: dict[int, float] = field(init=False, default_factory=dict)  # the shortest of the other rounds of a width
    _predicted: bool = field(init=False, default=False)

    @staticmethod
    def of(steps: int, rounds: Sequence[TimedRound]) -> float | None:
        """The predicted gain of a run, from its rounds so far."""
        prediction, single = GainPrediction(steps), float("nan")
        for each in rounds:
            if each.alone and each.warm:
                single = min(each.span.seconds, single) if single == single else each.span.seconds
            prediction.note(each, single)
        return prediction.gain

    def note(self, taken: TimedRound, single: float) -> None:
        """Take a round; ``single``: seconds for a step that is taken alone, NaN where unknown."""
        step, start, seconds, width, warm = taken.step, taken.start, taken.span.seconds, taken.width, taken.warm
        if self._rounds == 0:
            self._begun = start
        if self._rounds == _FILLING:
            self._full = step, start
        if self._rounds > _FILLING and not self._predicted and 4 * step >= self.steps:
            self._predict(step, start, single)
        self._rounds += 1
        if warm:
            self._usual[width] = min(seconds, self._usual.get(width, seconds))
        elif self._rounds > _FILLING:
            self._first.append((width, seconds))

    def _predict(self, step: int, now: float, single: float) -> None:
        self._predicted = True
        first_step, then = self._full
        extra = sum(max(0.0, seconds - self._usual.get(width, seconds)) for width, seconds in self._first)
        per_step = (now - then - extra) / (step - first_step)
        gain = single * self.steps / (now - self._begun + per_step * (self.steps - step))
        self.gain = gain if gain > 0 else None  # NaN where the time of a single step is unknown


def called_before(called: Any, form: Hashable) -> bool:
    """Whether something was called in this form before in this process; from now on it was.

    The first call of a form takes longer than all others: libraries choose algorithms, compile and reserve memory.

    Args:
        called: a module or a function; the answer is False for what cannot be remembered.
        form: what tells its calls apart: shapes, types, devices.
    """
    try:
        forms = _called.setdefault(called, set())
    except TypeError:
        return False
    before = form in forms
    forms.add(form)
    return before
