"""A guess from an earlier trajectory."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.guesses.base import Entering, Guess, copies_where_not_finite
from picardsolve.fixed_point.guesses.polynomial import Polynomial, extrapolated
from picardsolve.fixed_point.placement import Pick, sent
from picardsolve.integrators.base import Chain, Evaluated
from picardsolve.problem.checks import check_choice
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import ODE, SDE, SemilinearODE, Term
from picardsolve.results.solution import Solution


@dataclass(frozen=True, eq=False)
class FromTrajectory(Guess):
    """An earlier trajectory on the same grid, such as the trajectory of the last plan, frame or prompt.

    The trajectory is shifted by its distance to the last known state. For an `ODE` the distance is extrapolated as in
    `Polynomial`. For an `SDE` the distance is constant. For a `Denoiser` the distance shrinks as a step shrinks its
    state while the predicted clean sample is held fixed. The first round already covers a full window.

    Args:
        previous: a `Solution` with ``save="all"``, or tensors ``(N + 1, *y0.shape)`` in the structure of y0. Copies of
            the last known state replace states that are not finite.
        noise: "same", the default: the trajectory has the same Brownian path, or none. "new", for a `Denoiser`: it has
            another path. Only its last state, the clean sample, is used, and steps go towards it with the new noise.

    Raises:
        ValueError: ``noise`` is neither; in a solve, the trajectory has another length or shape.
        TypeError: in a solve, the trajectory is not made of tensors like y0, or has other noise than the `SDE`.
    """

    previous: Any = field(repr=False)
    noise: Literal["same", "new"] = "same"
    rows: Tensor | None = field(default=None, repr=False, kw_only=True)  # (N + 1, B, D), set for a problem
    problem: Problem | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self):
        check_choice("noise", self.noise, ("same", "new"))

    def prepared(self, problem: Problem, chain: Chain) -> Guess:
        """This guess with the trajectory packed as rows."""
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
        """As after an evaluation."""
        return self.ahead(entering)

    def ahead(self, entering: Entering) -> Tensor:
        """The earlier states, shifted."""
        assert self.rows is not None
        chain, n, start = entering.chain, entering.n, entering.start
        if self.noise == "new":
            source = entering.source or Evaluated(n[:1], start, self.rows[-1])
            states = chain.extend(n, "sample", start, source, entering.noise)
        else:
            step = np.asarray(n) + np.zeros(len(start), dtype=np.int64)
            there, here = Pick.at(step + 1), Pick.at(step[:1])
            sent(start.device, [there, here], [])
            states = there.of(self.rows) + self._distance(entering, start - here.of(self.rows)[0])
        return copies_where_not_finite(states, start)

    def _distance(self, entering: Entering, now: Tensor) -> Tensor:
        """The distance to the trajectory at later steps, ``(L, B, D)`` or ``(B, D)``, from the present distance."""
        assert self.problem is not None
        term: Term = self.problem.term
        if isinstance(term, Denoiser):
            zero = torch.zeros_like(now)
            return entering.chain.extend(entering.n, "sample", now, Evaluated(entering.n[:1], zero, zero), None)
        if isinstance(term, ODE | SemilinearODE) and entering.trail is not None:
            return extrapolated(entering, self.problem.ts, Polynomial.degree, self.rows)
        return now
