"""What is shown while a solve runs."""

from collections.abc import Callable

from tqdm.auto import tqdm


class Progress:
    """A bar of the steps that have converged, with the rounds so far; silent unless shown."""

    def __init__(self, steps: int, shown: bool, unit: str = "step"):
        self._bar = tqdm(total=steps, unit=unit, disable=not shown)

    def update(self, converged: int, rounds: int, expected: Callable[[], float] | None = None) -> None:
        """Show that ``converged`` steps are done after ``rounds`` rounds, of as many as are ``expected`` in all."""
        if not self._bar.disable:
            of = "" if expected is None else f" of about {expected():.0f}"
            self._bar.set_postfix_str(f"rounds={rounds}{of}", refresh=False)
            self._bar.update(converged - self._bar.n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
