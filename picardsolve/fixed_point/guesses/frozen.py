"""Guesses from the last state, or from the last evaluation held fixed."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess
from picardsolve.integrators.base import Chain, Hold
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE, Denoiser


@dataclass(frozen=True)
class Copy(Guess):
    """Copies of the last state (Shih et al. 2023)."""

    def first(self, entering: Entering) -> Tensor:
        """``start``, L times."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """``start``, L times."""
        return entering.start.expand(len(entering.n), *entering.start.shape)


@dataclass(frozen=True)
class FrozenOutput(Guess):
    """Continue with the last drift (of an SDE also diffusion) held fixed; of a denoiser, the predicted noise.

    The best known for ODE chains, DDIM among them.
    """

    def first(self, entering: Entering) -> Tensor | None:
        """What the chain expects before it knows anything."""
        return foreseen(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """Steps with the output of the last evaluation, and their own noise."""
        return held(entering, "output")


@dataclass(frozen=True)
class FrozenSample(Guess):
    """Continue towards the last predicted clean sample, with the steps' own known noise (Lu et al. 2025).

    For a `Denoiser` with noise: the largest single saving there.
    """

    def first(self, entering: Entering) -> Tensor | None:
        """What the chain expects before it knows anything."""
        return foreseen(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """Steps towards the clean sample of the last evaluation, with their own noise."""
        return held(entering, "sample")

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """Refuse all but a `Denoiser`."""
        if not isinstance(problem.term, Denoiser):
            kind = "SDE" if isinstance(problem.term, SDE) else "ODE"
            raise TypeError(f"guess: FrozenSample needs a Denoiser, got an {kind}; pass FrozenOutput() or Copy().")
        return self


def foreseen(entering: Entering) -> Tensor | None:
    """What the chain expects of the steps ahead before anything has been evaluated, ``(L, B, D)``, if it does."""
    return entering.chain.predict(entering.n, entering.start, entering.noise)


def held(entering: Entering, hold: Hold) -> Tensor:
    """The steps ahead with the last evaluation held fixed, ``(L, B, D)``."""
    assert entering.source is not None
    return entering.chain.extend(entering.n, hold, entering.start, entering.source, entering.noise)
