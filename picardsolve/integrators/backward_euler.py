"""Backward Euler: each step is an equation, solved by Newton's method for one step or for a window of steps at once."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable, Times
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import LARGEST_DENSE
from picardsolve.problem.terms import ODE, SemilinearODE

PATIENCE = 50  # calls of Newton's method for one step from one start
_ROUNDING = 8.0  # rounding of a drift, in units of the last place of what it is summed from


@dataclass(frozen=True)
class BackwardEuler(Integrator):
    """The backward Euler method for a stiff `ODE`, ``x[n+1] = x[n] + h drift(t[n+1], x[n+1])``; order 1.

        sol = ps.solve(ps.ODE(f), y0, ts, integrator=ps.BackwardEuler())

    Source: Hairer & Wanner 1996, section IV.3. A state has at most 64 numbers.

    In `solve`, the equations of all steps in the window are one system, and a round is one Newton step for it: one call
    evaluates the drift and its Jacobian at all states of the window (`Newton` is the default and the only iteration;
    the linear system is a recurrence, see Lim et al. 2024, DEER). New states start as copies of the last one. In
    `sequential`, each step is solved by Newton's method from a copy of the state before. Both end where Newton's
    correction is within the rounding of the equation; with a tolerance, `solve` ends where changes or estimated errors
    are within it. A round may accept no step at all. Newton's method gets 50 rounds for a step, then 50 more from the
    start of `sequential`. Then the step counts as not finite, as in `sequential`; take shorter steps.

    Where h times the one-sided Lipschitz constant of the drift reaches 1, a step may have several solutions, or none. A
    solution at which an eigenvalue of h J has a real part of 1 or more is refused, because backward Euler damps there
    what grows in the equation. Which of several other solutions is found may depend on the start.

    The drift must be differentiable by `torch.func.jvp` and liftable by `torch.func.vmap`. A round of R rows is
    R (1 + D) evaluations. ``window="auto"`` is as many steps as ``max_batch`` allows, or 256 rows.

    Raises:
        TypeError: in a solve, the term is no `ODE`, or another iteration is given.
        ValueError: in a solve, a state has more than 64 numbers, or the drift cannot be differentiated.
    """

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of an `ODE` or a `SemilinearODE`."""
        term = accepted_term(self, problem, ODE, SemilinearODE)
        if problem.layout.size > LARGEST_DENSE:
            raise ValueError(
                f"integrator: BackwardEuler keeps Jacobians of states of at most {LARGEST_DENSE} numbers, got "
                f"{problem.layout.size}; where the stiff part is linear, pass a SemilinearODE with ETDRK4(), and where "
                "states are independent of each other, pass them as samples with batch_dims=1."
            )
        return BackwardEulerChain(replace(problem, parameters=None), term)  # gradients are not recorded


class BackwardEulerChain(DriftChain):
    """The output of a row is the state after the step, and a flag.

    The state is the solution of the step's equation, or one Newton step from the estimate in the row. The flag is 1,
    or 0 where an eigenvalue of ``h J`` has a real part of 1 or more, so that a solution is refused.
    """

    iteration, guess, implicit = "newton", "copy", True

    def __init__(self, problem: Problem, term: ODE | SemilinearODE):
        self.length = len(problem.ts) - 1
        self._h = problem.ts.diff()
        self._table = StepTable(self._h, problem.layout)
        self.function = problem.row_function("drift", term.drift)
        self._t = Times(problem.ts[1:], self.function)

    def evaluate(self, rows: Rows) -> Tensor:
        """The outputs, ``(R, D + 1)``, and their derivatives with respect to the states before the steps."""
        if rows.after is None:
            state = self._solved(rows)
            return torch.cat([state, torch.ones_like(state[:, :1])], -1)
        state, derivative, admissible = self._corrected(rows.step, rows.sample, rows.state, rows.after)
        output = torch.cat([state, admissible[:, None].to(state)], -1)
        if rows.tangents is None:
            return output
        moved = torch.einsum("rij,prj->pri", derivative, rows.tangents)
        return torch.cat([output[None], torch.cat([moved, torch.zeros_like(moved[..., :1])], -1)])

    def _solved(self, rows: Rows) -> Tensor:
        """The solution of each row's equation by Newton's method from the state before; NaN where none is found."""
        state, left = rows.state.clone(), np.arange(len(rows.step))
        for _ in range(PATIENCE):
            at = torch.from_numpy(left)
            before = state[at]
            after, _, admissible = self._corrected(rows.step[left], rows.sample[left], rows.state[at], before)
            settled = (after == before).all(-1)
            state[at] = after.masked_fill((settled & ~admissible)[:, None], torch.nan)
            self.further_rounds += 1
            left = left[(~settled & after.isfinite().all(-1)).cpu().numpy()]
            if not len(left):
                break
        state[torch.from_numpy(left)] = torch.nan
        self.further_rounds -= 1
        return state

    def _corrected(self, step: Index, sample: Index, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Newton step.

        A correction is dropped where the rounding of the equation may cause one as large. The drift is assumed to round
        as sums of ``J_ij x_j`` do.

        Returns:
            The new ``after``, ``(R, D)``, ``(I - h J)^-1``, ``(R, D, D)``, and whether a solution would be accepted,
            ``(R,)``.
        """
        h = self._table.at(step)
        unit = torch.eye(after.shape[-1]).to(after)
        directions = unit[:, None].expand(-1, *after.shape)
        value, *columns = self.function(self._t.numbers(step), torch.cat([after[None], directions]), sample)
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
        """The step maps of a window."""
        return AffineSteps(outputs[..., :-1].clone(), admissible=outputs[..., -1] > 0)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """Steps along the slope of the evaluated step."""
        slope = (source.output[..., :-1] - source.state) / self._table.at(source.step)[0]
        slope = torch.where(slope.isfinite(), slope, 0)
        return torch.addcmul(start, self._table.at(n).cumsum(0), slope)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """``1 / (1 - h m)``, m the one-sided constant or else L (Hairer & Wanner 1996, section IV.12)."""
        name, constant = ("lipschitz", lipschitz) if one_sided is None else ("one_sided", one_sided)
        left = 1 - self._h.abs() * constant
        if not bool((left > 0).all()):
            raise ValueError(
                f"{name}: expected below 1 / h, got {float((1 - left).max()):.3g} / h, with which a step of "
                "BackwardEuler may have no solution; pass one_sided, which is smaller, or take shorter steps."
            )
        return (1 / left)[:, None]
