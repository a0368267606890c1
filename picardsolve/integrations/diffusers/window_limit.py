"""The widest that the next window may be after earlier ones failed, so that a hopeless run costs little."""

from dataclasses import dataclass

_STALLS = 5  # rounds in a row that accept one step, until a window is narrowed
_REST = 16  # plain steps after a window of two that stalled


@dataclass
class WindowLimit:
    """Narrows windows that accept one step a round, and pauses after setbacks.

    Attributes:
        most: steps of the widest window.
        cap: steps that the next window may have.
    """

    most: int
    cap: int
    _stalled: int = 0
    _pause: int = 0
    _next_pause: int = 0

    @property
    def pausing(self) -> bool:
        """Whether the next step is taken alone."""
        return self._pause > 0

    def step(self) -> None:
        """A plain step was taken."""
        self._pause -= 1

    def success(self) -> None:
        """A remembered output was used: the next setback costs no pause."""
        self._next_pause = 0

    def set_back(self) -> None:
        """Something did not fit: windows a quarter as wide, and a pause that doubles from one setback to the next."""
        self._pause = self._next_pause
        self._next_pause = max(1, 2 * self._next_pause)
        self.cap = max(2, self.cap // 4)

    def round(self, width: int, stride: int) -> None:
        """A round of ``width`` steps accepted ``stride``: narrow windows that stall, widen those that do not."""
        if width == 1:
            return
        self._stalled = self._stalled + 1 if stride == 1 else 0
        if self._stalled == _STALLS:
            self.cap, self._stalled = max(2, width // 2), 0
            self._pause = 0 if width > 2 else _REST
        elif stride > width // 4:
            self.cap = min(2 * self.cap, self.most)
