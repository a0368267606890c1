"""A guess from outside the library; its mistakes cost rounds and never change the answer."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess, copies_where_not_finite


def checked(guess: Guess) -> Guess:
    """The guess itself if it is the library's, otherwise a `CheckedGuess`."""
    ours = type(guess).__module__.partition(".")[0] == "picardsolve"
    return guess if ours else CheckedGuess(guess)


@dataclass(frozen=True)
class CheckedGuess(Guess):
    """Calls another guess with copies, checks the shape of its states, and makes them finite."""

    guess: Guess

    def first(self, entering: Entering) -> Tensor | None:
        """The first states of the other guess, if it has any."""
        states = self.guess.first(entering.copied())
        return None if states is None else self._checked(states, entering.start, len(entering.n))

    def ahead(self, entering: Entering) -> Tensor:
        """The states of the other guess; ValueError if they have another shape."""
        return self._checked(self.guess.ahead(entering.copied()), entering.start, len(entering.n))

    def _checked(self, states: object, start: Tensor, count: int) -> Tensor:
        shape = (count, *start.shape)
        if not isinstance(states, Tensor) or tuple(states.shape) != shape:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"guess: {self.guess!r} must return states {shape}, got {got}.")
        return copies_where_not_finite(states.detach().to(start), start)
