"""How wide the next window may be, after what went wrong in earlier ones: so that a hopeless case costs little."""

from dataclasses import dataclass

_STALLS = 5  # rounds of one step each until a window is narrowed
_REST = 16  # plain steps before a window of two, which did not pay, is tried again


@dataclass
class WindowLimit:
    """Narrows windows that do not get anywhere, and pauses after setbacks.

    Attributes:
        most: steps of the widest window.
        cap: steps that the next window may have.
    """

    most: int
    cap: int
    _stalled: int = 0
    _pause: int = 0
    _patience: int = 0

    @property
    def pausing(self) -> bool:
        """Whether the next step is taken alone."""
        return self._pause > 0

    def step(self) -> None:
        """A plain step was taken."""
        self._pause -= 1

    def success(self) -> None:
        """A remembered output was used."""
        self._patience = 0

    def set_back(self) -> None:
        """Something did not fit: pause, the longer the more often that happened without a success in between."""
        self._pause = self._patience
        self._patience = max(1, 2 * self._patience)
        self.cap = max(2, self.cap // 4)

    def round(self, width: int, stride: int) -> None:
        """A round of ``width`` steps accepted ``stride``: narrow windows that stall, and widen them again."""
        if width == 1:
            return
        self._stalled = self._stalled + 1 if stride == 1 else 0
        if self._stalled == _STALLS:
            self.cap, self._stalled = max(2, width // 2), 0
            self._pause = 0 if width > 2 else _REST
        elif stride > width // 4:
            self.cap = min(2 * self.cap, self.most)
