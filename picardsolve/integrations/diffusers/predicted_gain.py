"""How much faster than one step at a time a run will turn out, told from its first quarter."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

_SETTLED = 2  # rounds until windows are filled: the first step alone, and the first window


@dataclass
class GainPrediction:
    """Takes the rounds of a run as they end.

    The run so far took what it took; its remaining steps take as long as those since windows are filled, the pipeline's
    own work and the replays included, but for what calls of a kind that had never been made took longer.

    Attributes:
        steps: of the run.
        gain: what is foreseen; None until it is, or where the time of a single step is not known then.
    """

    steps: int
    gain: float | None = field(init=False, default=None)
    _rounds: int = field(init=False, default=0)
    _begun: float = field(init=False, default=0.0)  # when the first call was made
    _settled: tuple[int, float] = field(init=False, default=(0, 0.0))  # where, and when, windows were filled
    _first: list[tuple[int, float]] = field(init=False, default_factory=list)  # later rounds of a kind not seen before
    _usual: dict[int, float] = field(init=False, default_factory=dict)  # the least that others of a width took
    _told: bool = field(init=False, default=False)

    def note(self, step: int, start: float, seconds: float, width: int, warm: bool, single: float) -> None:
        """Take a round.

        Args:
            step: where it stood.
            start: when its first call was made.
            seconds: from there to the end of its step.
            width: steps in it.
            warm: whether its calls were of a kind that had been made before.
            single: what a step that is taken alone takes; NaN where that is not known.
        """
        if self._rounds == 0:
            self._begun = start
        if self._rounds == _SETTLED:
            self._settled = step, start
        if self._rounds > _SETTLED and not self._told and 4 * step >= self.steps:
            self._tell(step, start, single)
        self._rounds += 1
        if warm:
            self._usual[width] = min(seconds, self._usual.get(width, seconds))
        elif self._rounds > _SETTLED:
            self._first.append((width, seconds))

    def _tell(self, step: int, now: float, single: float) -> None:
        self._told = True
        at, then = self._settled
        late = sum(max(0.0, took - self._usual.get(width, took)) for width, took in self._first)
        a_step = (now - then - late) / (step - at)
        gain = single * self.steps / (now - self._begun + a_step * (self.steps - step))
        self.gain = gain if gain > 0 else None  # NaN where a single step's time is not known


_CALLED: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()


def called_before(called: Any, form: Hashable) -> bool:
    """Whether something was called in this form before in this process; from now on it was.

    Args:
        called: a module or function; False of what cannot be remembered.
        form: what tells its calls apart: shapes, types, devices.
    """
    try:
        forms = _CALLED.setdefault(called, set())
    except TypeError:
        return False
    before = form in forms
    forms.add(form)
    return before
