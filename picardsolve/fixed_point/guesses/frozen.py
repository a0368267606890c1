"""Guesses from the last state, or from the last evaluation held fixed."""

from dataclasses import dataclass

from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess
from picardsolve.integrators.base import Chain
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import SDE


@dataclass(frozen=True)
class Copy(Guess):
    """Copies of the last state (Shih et al. 2023, ParaDiGMS, algorithm 1).

    sol = ps.solve(term, y0, ts, integrator=ps.Euler(), guess=ps.Copy())
    """

    def first(self, entering: Entering) -> Tensor:
        """``start``, L times."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """``start``, L times."""
        return entering.start.expand(len(entering.n), *entering.start.shape)


@dataclass(frozen=True)
class FrozenOutput(Guess):
    """Steps with the last output held fixed; the default for ODEs, SDEs and `DDIM`.

        sol = ps.solve(model, x, ts, integrator=ps.DDIM(), guess=ps.FrozenOutput())

    The output is the drift for an ODE, drift and diffusion for an `SDE`, and the predicted noise for a `Denoiser`.
    """

    def first(self, entering: Entering) -> Tensor | None:
        """The prediction of the chain, if it has one."""
        return entering.predicted()

    def ahead(self, entering: Entering) -> Tensor:
        """Steps with the output of the last evaluation and the steps' own noise."""
        return entering.extended("output")


@dataclass(frozen=True)
class FrozenSample(Guess):
    """Steps towards the last predicted clean sample, with their own noise (Lu et al. 2025, ParaSolver).

        sol = ps.solve(model, x, ts, integrator=ps.DDPM(), guess=ps.FrozenSample())

    For a `Denoiser` with noise, where no other guess saves as many rounds.
    """

    def first(self, entering: Entering) -> Tensor | None:
        """The prediction of the chain, if it has one."""
        return entering.predicted()

    def ahead(self, entering: Entering) -> Tensor:
        """Steps towards the clean sample of the last evaluation, with their own noise."""
        return entering.extended("sample")

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """This guess; a TypeError for any term but a `Denoiser`."""
        if not isinstance(problem.term, Denoiser):
            kind = "SDE" if isinstance(problem.term, SDE) else "ODE"
            raise TypeError(f"guess: FrozenSample needs a Denoiser, got an {kind}; pass FrozenOutput() or Copy().")
        return self
