"""An earlier trajectory as a guess."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess, copies_where_not_finite
from picardsolve.fixed_point.guesses.polynomial import Polynomial, extrapolated
from picardsolve.integrators.base import Chain, Evaluated
from picardsolve.problem.checks import check_choice
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import ODE, SDE, Denoiser, SemilinearODE, Term
from picardsolve.results.solution import Solution


@dataclass(frozen=True, eq=False)
class FromTrajectory(Guess):
    """Start from an earlier trajectory on the same grid: the last plan, the last frame, the last prompt.

    It is moved by its distance to the states already known. For an `ODE` this distance is extrapolated (as by
    `Polynomial`), for an `SDE` it is kept, and for a `Denoiser` it shrinks as a step shrinks its
    state with the predicted clean sample held fixed. The first window is full from the first round.

    Args:
        previous: a `Solution` with ``save="all"``, or tensors ``(N + 1, *y0.shape)`` in the structure of y0. Copies of
            the last known state stand in for what is not finite in it.
        noise: "same" if it was computed with the same Brownian path (or there is none). "new": its states say nothing;
            a `Denoiser` starts towards its last state, the clean sample, with the noise of the new path.
    """

    previous: Any = field(repr=False)
    noise: Literal["same", "new"] = "same"
    rows: Tensor | None = field(default=None, repr=False, kw_only=True)  # (N + 1, B, D), once the problem is known
    problem: Problem | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self):
        check_choice("noise", self.noise, ("same", "new"))

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """The same, as rows; with nothing new where there is no noise.

        Raises:
            TypeError: an `SDE` is given a trajectory of other noise, or it is not made of tensors like y0.
            ValueError: it is not of this grid's length or of y0's shape.
        """
        given, times = self.previous, chain.length + 1
        if isinstance(given, Solution):
            if len(given.ts) != times:
                raise ValueError(
                    f"guess: FromTrajectory needs a state for each of {times} times, got a Solution of {len(given.ts)};"
                    " solve it with save='all' on a grid of as many steps."
                )
            given = given.ys
        if self.noise == "new" and isinstance(problem.term, SDE):
            raise TypeError(
                "guess: FromTrajectory of other noise says nothing of an SDE; solve both with the same brownian, or "
                "pass FrozenOutput()."
            )
        noise = self.noise if chain.noise_size else "same"
        return replace(self, noise=noise, rows=problem.layout.pack_path("guess", given, times), problem=problem)

    def first(self, entering: Entering) -> Tensor:
        """The same as later."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """The earlier states, moved."""
        assert self.rows is not None
        chain, n, start = entering.chain, entering.n, entering.start
        if self.noise == "new":
            source = entering.source or Evaluated(n[:1], start, self.rows[-1])
            states = chain.extend(n, "sample", start, source, entering.noise)
        else:
            step, sample = torch.from_numpy(n), torch.arange(len(start))
            states = self.rows[step + 1, sample] + self._distance(entering, start - self.rows[step[0], sample])
        return copies_where_not_finite(states, start)

    def _distance(self, entering: Entering, now: Tensor) -> Tensor:
        """Of the states ahead to the earlier ones, ``(L, B, D)`` or ``(B, D)``, from that of the last known state."""
        assert self.problem is not None
        term: Term = self.problem.term
        if isinstance(term, Denoiser):
            zero = torch.zeros_like(now)
            return entering.chain.extend(entering.n, "sample", now, Evaluated(entering.n[:1], zero, zero), None)
        if isinstance(term, ODE | SemilinearODE) and entering.trail is not None:
            return extrapolated(entering, self.problem.ts, Polynomial.degree, self.rows)
        return now
