"""Somebody else's guess, whose mistakes cost rounds and never change the answer."""

from dataclasses import dataclass, replace

from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess, copies_where_not_finite


def watched(guess: Guess) -> Guess:
    """A guess of this library's as it is, anybody else's within a `Watched`."""
    ours = type(guess).__module__.partition(".")[0] == "picardsolve"
    return guess if ours else Watched(guess)


@dataclass(frozen=True)
class Watched(Guess):
    """Another guess, of copies of what it is given; its states are checked, and copies stand in for what is not finite.

    Attributes:
        guess: somebody else's.
    """

    guess: Guess

    def first(self, entering: Entering) -> Tensor | None:
        """The other's, if it has any."""
        states = self.guess.first(_copied(entering))
        return None if states is None else self._checked(states, entering)

    def ahead(self, entering: Entering) -> Tensor:
        """The other's.

        Raises:
            ValueError: they have another shape.
        """
        return self._checked(self.guess.ahead(_copied(entering)), entering)

    def most(self, rounds: int, width: int) -> int:
        """The other's."""
        return self.guess.most(rounds, width)

    def _checked(self, states: object, entering: Entering) -> Tensor:
        start = entering.start
        shape = (len(entering.n), *start.shape)
        if not isinstance(states, Tensor) or tuple(states.shape) != shape:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"guess: {self.guess!r} must return states {shape}, got {got}.")
        return copies_where_not_finite(states.detach().to(start), start)


def _copied(entering: Entering) -> Entering:
    noise, source, trail = entering.noise, entering.source, entering.trail
    return replace(
        entering,
        n=entering.n.copy(),
        start=entering.start.clone(),
        noise=None if noise is None else noise.clone(),
        source=None if source is None else replace(source, state=source.state.clone(), output=source.output.clone()),
        trail=None if trail is None else replace(trail, start=trail.start.clone(), y=trail.y.clone()),
    )
