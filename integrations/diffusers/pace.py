"""How wide a window pays: found by trying, in the rounds that are run anyway."""

from dataclasses import dataclass, field

_FIRST = 8  # steps in the first window
_ROUNDS = 4  # rounds that a width is judged by, after as many to get going
_BETTER = 1.05  # how much faster a width must be to be worth changing to


@dataclass
class Pace:
    """Climbs through widths of 1, 2, 4, ... to the one that makes most steps a second.

    Attributes:
        most: no wider.
        width: of the next round.
        settled: no longer trying.
    """

    most: int
    width: int = field(init=False)
    settled: bool = field(init=False, default=False)
    _hopeless: int = field(init=False, default=0)
    _single: float = field(init=False, default=0.0)
    _rates: dict[int, float] = field(init=False, default_factory=dict)
    _rounds: list[tuple[int, float]] = field(init=False, default_factory=list)

    def __post_init__(self):
        self.width = min(_FIRST, self.most)

    def note(self, width: int, stride: int, seconds: float) -> None:
        """Take a round of ``width`` steps that accepted ``stride`` of them; choose the width of the next one."""
        if width == 1:
            self._single = min(self._single or seconds, seconds)
        elif self._single and width * self._single < _BETTER * seconds and not self.settled:
            self._hopeless += 1  # not even a round that accepts all its steps would pay
            if self._hopeless == 2:
                self.width, self.settled = 1, True
        if width != self.width or self.settled:
            return
        self._rounds.append((stride, seconds))
        if len(self._rounds) < 2 * _ROUNDS:
            return
        judged = self._rounds[_ROUNDS:]
        self._rates[width] = sum(stride for stride, _ in judged) / sum(seconds for _, seconds in judged)
        self._rounds = []
        self.width = self._next(width)
        self.settled = self.width in self._rates or self.width == 1

    def _next(self, width: int) -> int:
        rates, here = self._rates, self._rates[width]
        wider, narrower = rates.get(2 * width), rates.get(width // 2)
        if narrower is None and self._single and here * self._single < 1:
            return width // 2 if width > 2 else 1  # slower than one step at a time
        if wider is None and 2 * width <= self.most and (narrower is None or here > _BETTER * narrower):
            return 2 * width
        best = max(rates, key=lambda w: rates[w])
        return 1 if self._single and rates[best] * self._single < 1 else best
