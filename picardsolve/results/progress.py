"""The progress bar of a solve."""

from collections.abc import Callable
from math import inf
from time import monotonic

from tqdm.auto import tqdm


class Progress:
    """A bar of the accepted steps, with the number of rounds.

    Attributes:
        shown: whether there is anything to update.
    """

    def __init__(self, steps: int, shown: bool, unit: str = "step"):
        self.shown = shown
        self._bar = tqdm(total=steps, unit=unit) if shown else None
        self._last: tuple[int, Callable[[], float] | None] = (0, None)
        self._drawn = -inf

    def update(self, converged: int, rounds: int, expected: Callable[[], float] | None = None) -> None:
        """Show that ``converged`` steps are accepted after ``rounds`` rounds.

        ``expected``, the rounds of the whole solve, is called only when the bar is drawn: it takes as long as a round.
        """
        if self._bar is None or self._bar.disable:
            return
        self._last = rounds, expected
        if monotonic() - self._drawn >= self._bar.mininterval:
            self._say()
        self._bar.update(converged - self._bar.n)

    def _say(self) -> None:
        assert self._bar is not None
        rounds, expected = self._last
        of = "" if expected is None else f" of about {expected():.0f}"
        self._bar.set_postfix_str(f"rounds={rounds}{of}", refresh=False)
        self._drawn = monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is None:
            return
        if not self._bar.disable and self._last[0]:
            self._say()
        self._bar.close()
