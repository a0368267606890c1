"""What a state that enters the window starts from."""

from abc import ABC
from dataclasses import dataclass

from picardsolve.integrators.base import Hold
from picardsolve.terms import SDE, Denoiser, Term


class Guess(ABC):
    """How the states ahead of the window's end are filled in.

    Attributes:
        hold: what of the last evaluation is held fixed while the chain is continued; None: the last state is copied.
    """

    hold: Hold | None


@dataclass(frozen=True)
class Copy(Guess):
    """Copies of the last state (Shih et al. 2023)."""

    hold = None


@dataclass(frozen=True)
class FrozenOutput(Guess):
    """Continue with the last drift (of an SDE also diffusion) held fixed; of a denoiser, the predicted noise.

    The best known for ODE chains, DDIM among them.
    """

    hold = "output"


@dataclass(frozen=True)
class FrozenSample(Guess):
    """Continue towards the last predicted clean sample, with the steps' own known noise (Lu et al. 2025).

    For a `Denoiser` with noise: the largest single saving there.
    """

    hold = "sample"


def default_guess(term: Term, stochastic: bool) -> Guess:
    """`FrozenSample` for a denoiser's SDE chain, `FrozenOutput` for everything else."""
    return FrozenSample() if isinstance(term, Denoiser) and stochastic else FrozenOutput()


def check_guess(guess: Guess, term: Term) -> None:
    """Refuse a guess that the term has no meaning for."""
    if guess.hold == "sample" and not isinstance(term, Denoiser):
        kind = "SDE" if isinstance(term, SDE) else "ODE"
        raise TypeError(f"guess: FrozenSample needs a Denoiser, got an {kind}; pass FrozenOutput() or Copy().")
