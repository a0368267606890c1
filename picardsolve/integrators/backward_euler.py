"""Backward Euler: a step that is an equation, solved by Newton's method, of one step or of a window of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, Steps, per_step, refuse
from picardsolve.integrators.step_maps import AffineSteps
from picardsolve.problem.clock import Clock
from picardsolve.problem.problem import Problem
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.problem.terms import ODE, SemilinearODE

PATIENCE = 50  # of Newton's method, in calls, for one step from one start
_ROUNDING = 8.0  # of a drift, in units of the last place of what it is summed from


@dataclass(frozen=True)
class BackwardEuler(Integrator):
    """``x[n+1] = x[n] + h f(t[n+1], x[n+1])`` on a stiff `ODE` of at most 64 numbers in a state (Hairer & Wanner 1996).

    In `solve` the equations of all steps in the window are one system, and a round is one Newton step for it, with f
    and its Jacobian at all states of the window in one call (`Newton`, the default and only iteration here; with the
    linear recurrence of Lim et al. 2024, DEER). The states that enter are copies of the last one by default. In
    `sequential` each step is solved by Newton's method from a copy of the state before. Either ends where Newton's
    correction is within the rounding of the equation; with a tolerance, `solve` ends where changes or estimated errors
    are within it. A round may accept no step at all: Newton's method is tried for 50 rounds on a step, and 50 more from
    the start that `sequential` takes; then, as there, the step counts as not finite: take shorter ones.

    Where h times the one-sided Lipschitz constant of f reaches 1, a step may have several solutions, or none. One at
    which an eigenvalue of h J has a real part of 1 or more is refused: there backward Euler makes decay of growth, and
    follows branches that repel. Of others, it may depend on the start which one is found.

    The drift must be differentiable by `torch.func.jvp` and liftable by `torch.func.vmap`; a round of R rows is
    R (1 + D) evaluations. ``window="auto"`` takes as many steps as ``max_batch`` allows, or 256 rows.

    Raises:
        TypeError: in a solve, the term is no `ODE`, or the iteration another.
        ValueError: in a solve, a state has more than 64 numbers, or the drift cannot be differentiated.
    """

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain of an `ODE`."""
        if not isinstance(problem.term, ODE | SemilinearODE):
            raise refuse(self, problem.term, "an ODE", "Euler() for an SDE, DDIM() for a Denoiser")
        if problem.layout.size > LARGEST_DENSE:
            raise ValueError(
                f"integrator: BackwardEuler keeps Jacobians of states of at most {LARGEST_DENSE} numbers, got "
                f"{problem.layout.size}; where the stiff part is linear, pass a SemilinearODE with ETDRK4(), and where "
                "states are independent of each other, pass them as samples with batch_dims=1."
            )
        return BackwardEulerChain(problem, problem.term)


class BackwardEulerChain(DriftChain):
    """The output of a row: the state after the step, solved for or a Newton step from the one that was given; and 1.

    The last number is 0 instead where an eigenvalue of ``h J`` has a real part of 1 or more, and a solution is refused.
    """

    iteration, guess, implicit = "newton", "copy", True

    def __init__(self, problem: Problem, term: ODE | SemilinearODE):
        self.length = len(problem.ts) - 1
        self._t, self._h = problem.ts[1:], problem.ts.diff()
        self._drift = RowFunction(
            *("drift", term.drift, problem.layout, Clock.of(problem.ts, problem.layout), problem.args, term.takes),
            max_batch=problem.max_batch,
        )

    def evaluate(self, rows: Rows) -> Tensor:
        """The outputs, ``(R, D + 1)``, and their derivatives by the states before the steps."""
        if rows.after is None:
            state = self._solved(rows)
            return torch.cat([state, torch.ones_like(state[:, :1])], -1)
        state, derivative, proper = self._corrected(rows.step, rows.sample, rows.state, rows.after)
        output = torch.cat([state, proper[:, None].to(state)], -1)
        if rows.tangents is None:
            return output
        moved = torch.einsum("rij,prj->pri", derivative, rows.tangents)
        return torch.cat([output[None], torch.cat([moved, torch.zeros_like(moved[..., :1])], -1)])

    def _solved(self, rows: Rows) -> Tensor:
        """Newton's method for each row by itself, from a copy of the state before; NaN where there is no solution."""
        state, left = rows.state.clone(), np.arange(len(rows.step))
        for _ in range(PATIENCE):
            at = torch.from_numpy(left)
            before = state[at]
            after, _, proper = self._corrected(rows.step[left], rows.sample[left], rows.state[at], before)
            settled = (after == before).all(-1)
            state[at] = after.masked_fill((settled & ~proper)[:, None], torch.nan)
            self.further_rounds += 1
            left = left[(~settled & after.isfinite().all(-1)).cpu().numpy()]
            if not len(left):
                break
        state[torch.from_numpy(left)] = torch.nan
        self.further_rounds -= 1
        return state

    def _corrected(self, step: Index, sample: Index, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A Newton step for ``after``, ``(R, D)``, ``(I - h J)^-1``, ``(R, D, D)``, and whether that may be taken.

        A correction is left out where rounding in the equation could make one as large: f is taken to round as sums of
        ``J_ij x_j`` do.
        """
        h = per_step(self._h, step, after)
        unit = torch.eye(after.shape[-1]).to(after)
        directions = unit[:, None].expand(-1, *after.shape)
        value, *columns = self._drift(self._t[step], torch.cat([after[None], directions]), torch.from_numpy(sample))
        jacobian = h[..., None] * torch.stack(columns, -1)
        missing = torch.addcmul(before - after, value, h)
        right = torch.cat([missing[..., None], unit.expand_as(jacobian)], -1)
        solved, singular = torch.linalg.solve_ex(unit - jacobian, right)
        solved = solved.masked_fill((singular > 0)[:, None, None], torch.nan)
        correction, derivative = solved[..., 0], solved[..., 1:]
        summed = before.abs() + after.abs() + (h * value).abs() + (jacobian.abs() @ after.abs()[..., None])[..., 0]
        rounding = (derivative.abs() @ summed[..., None])[..., 0] * (_ROUNDING * torch.finfo(after.dtype).eps)
        settled = (correction.abs() <= rounding).all(-1, keepdim=True)
        known = jacobian.isfinite().all(-1).all(-1)  # eigvals raises otherwise
        growth = torch.linalg.eigvals(torch.where(known[:, None, None], jacobian, 0)).real.amax(-1)
        return torch.where(settled, after, after + correction), derivative, known & (growth < 1)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window."""
        return AffineSteps(outputs[..., :-1].clone(), admissible=outputs[..., -1] > 0)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps along the slope of the last one."""
        slope = (source.output[..., :-1] - source.state) / per_step(self._h, source.step, start)[0]
        slope = torch.where(slope.isfinite(), slope, 0)
        return torch.addcmul(start, per_step(self._h, n, start).cumsum(0), slope)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``1 / (1 - h m)``, m one-sided (Hairer & Wanner 1996, section IV.12); by the two-sided constant otherwise."""
        name, constant = ("lipschitz", lipschitz) if one_sided is None else ("one_sided", one_sided)
        left = 1 - self._h.abs() * constant
        if not bool((left > 0).all()):
            raise ValueError(
                f"{name}: expected below 1 / h, got {float((1 - left).max()):.3g} / h, with which a step of "
                "BackwardEuler may have no solution; pass one_sided, which is smaller, or take shorter steps."
            )
        return (1 / left)[:, None]

    def counts(self) -> tuple[int, int]:
        """Drift calls and evaluations so far."""
        return self._drift.calls, self._drift.evaluations
