"""How wide the windows of requests are that share a model: as wide as makes most steps a second of all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from picardsolve.fixed_point.width_costs import Strides
from picardsolve.serving.costs import Costs

_BETTER = 1.1  # a window must promise so many times the steps that requests make one at a time
_UNKNOWN = 0.002  # seconds that a call waits for others before any are known
_JUDGED = 32  # rounds of one width whose steps are remembered


@dataclass
class Load:
    """What a model's rounds have shown: what rows cost, what requests spend beside them, and what windows accept.

    K requests whose windows have w steps of c rows make ``K s(w)`` steps in ``K h(w) + t(K w c)`` seconds: t is the
    time of a call of so many rows, h what a request spends between two of its rounds, one request at a time (Python
    runs one thread at a time), and s the steps that a round accepts. The best w is the one that makes most steps a
    second. A single request so fills the rows that cost it little. The more there are, the more of t is shared anyway,
    and the less is gained by rows that are evaluated more than once: windows shrink, at last to one step.

    Attributes:
        max_rows: most rows of a call.
        calls: seconds of calls by their rows.
        between: processor seconds that a request spends beside a round, by the round's width; 1: a step alone.
    """

    max_rows: int
    calls: Costs = field(default_factory=Costs)
    between: Costs = field(default_factory=Costs)
    _strides: dict[int, Strides] = field(default_factory=dict)  # by the steps of a whole solve

    def strides(self, steps: int) -> Strides:
        """What windows accept in solves of so many steps."""
        return self._strides.setdefault(steps, Strides(_JUDGED))

    def called(self, rows: int, seconds: float) -> None:
        """A call of the model is over."""
        self.calls.note(rows, seconds)

    def patience(self, rows: int, others: Sequence[tuple[int, float]]) -> float:
        """Seconds that rows may wait for those of others: what a shared call saves, and what others do meanwhile.

        The work of others is not lost while a call waits for it: Python runs one thread at a time, and a call that is
        made meanwhile takes so much longer.

        Args:
            rows: that wait.
            others: of each that may come the rows of its latest call, and the seconds that it spent before that.
        """
        if not self.calls.known:
            return _UNKNOWN
        coming = sum(rows for rows, _ in others)
        saved = self.calls.of(rows) + self.calls.of(coming) - self.calls.of(rows + coming)
        return saved + sum(own for _, own in others)

    def width(self, requests: int, rows: int, most: int, steps: int) -> int:
        """The width of a request's next round.

        Args:
            requests: how many there are.
            rows: rows of one step.
            most: the largest width.
            steps: of the whole solve.
        """
        room = max(min(most, self.max_rows // (requests * rows)), 1)
        if not self.calls.known:
            return room
        strides = self.strides(steps)

        def rate(width: int) -> float:
            # a step alone costs little beside its call; how little is seen when it is tried
            own = self.between.of(width) if width > 1 or self.between.knows(1) else 0.0
            seconds = requests * own + self.calls.of(requests * width * rows)
            return strides.of(width) / max(seconds, 1e-12)

        best = max((2**k for k in range(room.bit_length())), key=rate)  # few widths, of which much is learnt
        return best if rate(best) >= _BETTER * rate(1) else 1


@dataclass
class LoadPace:
    """Chooses the width of one request's windows, as `picardsolve.extend.Pace` does for a solve by itself.

    Attributes:
        load: of the model.
        most: the largest width.
        steps: of the whole solve.
        company: how many requests there are at present.
        told: is told the width of each round, and whether it is the one that was asked for.
        rows: rows of one step.
        settled: never: others come and go.
    """

    load: Load
    most: int
    steps: int
    company: Callable[[], int]
    told: Callable[[int, bool], None]
    rows: int = 1
    settled: bool = field(init=False, default=False)

    def __post_init__(self):
        self._widest, self._asked, self._before = self.most, 0, 0

    @property
    def width(self) -> int:
        """The width of the next round."""
        self._asked = self.load.width(self.company(), self.rows, self.most, self.steps)
        return self._asked

    @property
    def alone(self) -> bool:
        """Whether the next step is better taken alone."""
        return self.width == 1

    def limit(self, most: int) -> None:
        """For now no wider than ``most``."""
        self.most = max(min(most, self._widest), 1)

    def note(self, width: int, stride: float, seconds: float) -> None:
        """Take a round of ``width`` steps that accepted ``stride`` of them."""
        # at the end of a grid windows are narrower, and all of their steps may be accepted; a new window accepts few
        if width == self._asked == self._before:
            self.load.strides(self.steps).note(width, stride)
        self._before = width
        self.told(width, width == self._asked)
