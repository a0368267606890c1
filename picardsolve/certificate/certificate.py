"""What a solve can say of its own error, what it takes to be sure, and what the sequential solver says to it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.certificate.accepted import Accepted
from picardsolve.certificate.growth import Growth
from picardsolve.certificate.remaining_rounds import rounds_expected
from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.problem.recurrence import rms
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.carried import Carried, Packed
from picardsolve.results.diagnostics import Facts, diagnose
from picardsolve.results.history import History
from picardsolve.theory.bounds import propagated_bound, total_variation

if TYPE_CHECKING:
    from picardsolve.results.solution import Solution

_PIPELINE = "run the pipeline itself with the same generator and compare"
Kind = Literal["estimated", "certified"]
FACTOR = 4.0  # of errors to bounds, see docs/certificates.md


class Again(Protocol):
    """A solve that can be repeated."""

    def chain(self) -> DriftChain:
        """The chain, made anew."""
        ...

    def rows(self, solution: "Solution") -> Tensor:
        """``(T, B, D)``, the states of a solution."""
        ...

    def finer(self, solution: "Solution", factor: float) -> "Solution":
        """Solve again, from a solution and to a fraction of the tolerance."""
        ...

    def sequential(self) -> "Solution":
        """Solve step by step."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What a certificate is made from, and what it can ask more of.

    Attributes:
        history: the rounds.
        path: ``(T, B, D)`` states: all of them, or the last alone. None are left where it was pickled.
        steps: of the grid, N.
        tolerance: what was asked for.
        again: the solve, an `Again`; None for the steps of somebody else's scheduler.
        taken: ``(N,)`` slopes of the steps by which states were accepted, where these are not the sweep's but take the
            outputs of their round as they are, as a pipeline's scheduler does; 1 where not known. None: the sweep's.
        batched: whether the user's states are samples.
        denoises: whether the steps are a sampler's.
        implicit: whether the steps are equations.
        growth: of errors along the solution, as it was measured; None: not known.
    """

    history: History
    path: Tensor
    steps: int
    tolerance: Tolerance
    again: Carried | Packed | None = None
    taken: Tensor | None = None
    batched: bool = True
    denoises: bool = True
    implicit: bool = False
    growth: Growth | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "path": self.path[:0].clone()}  # the solution has them

    @property
    def full(self) -> bool:
        """Whether the state at every time is known."""
        return len(self.path) == self.steps + 1


@dataclass(frozen=True)
class Certificate:
    """How far a solution is from the one of its sequential integrator.

    Distances are root mean squares over a state. Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the
    times of the solution. None of this says how far the sequential solution is from the truth.

    Attributes:
        error: the estimated distance: residuals of the accepted states as the rounds foretold them, carried on by the
            growth that was measured along the solution; where it is not known, added up as if errors neither grew nor
            shrank. A denoiser's are carried on by the slopes of the steps (methods C2), of which the root is taken
            below 1. NaN where nothing was estimated, as of `Parareal`.
        bound: what the distance is at most. "estimated": four times what the error is if nothing is ever forgotten;
            not proven, see docs/certificates.md for how often it held. "certified": proven, for constants that the user
            gave; see `certified`.
        kind: which of the two.
        residuals: root mean square of ``Phi_n(X[n]) - X[n+1]``, ``(N,)`` or ``(N, B)``: expected, or measured.
        precision_floor: what rounding alone may have left, in this solution and in the sequential one: unit roundoff
            times the largest state times the largest growth between two times, where it is known; ``()`` or ``(B,)``.
        contraction: largest Picard number of a window, the sum of ``|J_n - c_n|`` along what changed (C5).
        growth: by how much a small change of y0 has grown, at most, by any later time, in the mean over all directions
            (see `growth`; a denoiser's as far as slopes tell); ``()`` or ``(B,)``. NaN: not known, as of noise
            that depends on the state, states of more than 64 numbers, and tolerance 0.
        rounds: sweeps of the window.
        warnings: what to know, and what to do about it.
        solution: what this is about; None for a pipeline's run.
        better: the one that `recheck` compared it with.
    """

    error: Tensor
    bound: Tensor
    kind: Kind
    residuals: Tensor
    precision_floor: Tensor
    contraction: float
    growth: Tensor
    rounds: int
    warnings: tuple[str, ...]
    _evidence: Evidence = field(repr=False)
    solution: "Solution | None" = field(repr=False, default=None)
    better: "Solution | None" = field(repr=False, default=None)

    @staticmethod
    def of(evidence: Evidence, solution: "Solution | None" = None) -> "Certificate":
        """Read the rounds of a solve."""
        size, history = (evidence.steps, evidence.path.shape[1]), evidence.history
        exact = not history or (evidence.tolerance.nothing and history[0].step is None)
        implicit, denoises, grown = evidence.implicit, evidence.denoises, evidence.growth
        known = Accepted.exact(*size)
        if not exact:
            known = Accepted.of(history, *size, evidence.taken, implicit, denoises, grown)
        missing = evidence.path.isnan().any(-1).cpu()
        rounding = torch.finfo(evidence.path.dtype).eps * rms(evidence.path.nan_to_num(0)).double().cpu()
        allowed = evidence.tolerance.size(evidence.path).double().cpu()
        if denoises:
            growth = largest = known.product_of_slopes()
        elif grown is None:
            growth = largest = torch.full((size[1],), torch.nan, dtype=torch.float64)
        else:
            growth, largest = grown.since_start, grown.largest
        kept = slice(None) if evidence.full or evidence.again is None else slice(evidence.steps, None)
        rounds = history.stacked()
        facts = Facts(rounds, evidence.steps, denoises, largest, known.errors[kept], rounding, allowed, implicit)
        shown = (lambda value: value) if evidence.batched else (lambda value: value[..., 0])
        return Certificate(
            error=shown(known.errors[kept].masked_fill(missing, torch.nan)),
            bound=shown(FACTOR * known.most[kept].masked_fill(missing, torch.nan)),
            kind="estimated",
            residuals=shown(known.expected),
            precision_floor=shown(rounding.amax(0) * largest.nan_to_num(1, torch.inf)),
            contraction=rounds.contraction,
            growth=shown(growth),
            rounds=len(history),
            warnings=diagnose(facts),
            _evidence=evidence,
            solution=solution,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "total_variation": self.total_variation}  # may call the diffusion, here for the last time

    @cached_property
    def total_variation(self) -> float | None:
        """Bound on the total variation distance between the laws of this solution and of the sequential one (C8).

        An estimate of `theory.total_variation`, for the expectation is taken over the samples at hand, of states before
        the last step without noise. None where a step's noise is none, or depends on the state.
        """
        again = self._evidence.again
        deviation = None if again is None else again.get("total_variation").chain().deviation
        if deviation is None:
            return None
        noisy, size = deviation > 0, self._evidence.path.shape[-1]
        return float(total_variation(size**0.5 * self.residuals[noisy], deviation[noisy]))

    @property
    def rounds_predicted(self) -> tuple[float, ...]:
        """After each round, how many were expected in all (C6)."""
        return rounds_expected(self._evidence.history, self._evidence.steps)

    def certified(self, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> "Certificate":
        """A proven bound, from the true residuals of all states: each step is evaluated once, in windows (C3).

        ``E[n+1] = L_n E[n] + |r_n| + rounding of the states``, with ``L_n`` a Lipschitz constant of the step, which
        follows from the drift's: Hairer, Norsett & Wanner 1993, section I.10. It is as true as the constants are.

        Args:
            lipschitz: constant of the drift in y; of a `Denoiser`, of the predicted clean sample. A number, or
                ``(N,)``, one for each step.
            one_sided: constant m with ``<f(x) - f(y), x - y> <= m |x - y|^2``, in the direction of time; sharper for
                contracting problems. Of `Euler` on an `ODE` only.

        Raises:
            ValueError: the solution was not kept at all times, or a constant has a wrong value or shape.
            TypeError: a constant is no number, the integrator has none (an `SDE`), or the steps are a scheduler's.
        """
        evidence = self._evidence
        if evidence.again is None or self.solution is None:
            raise TypeError(f"certified: the steps are a scheduler's, of which no constants are known; {_PIPELINE}.")
        if len(self.solution.ts) != evidence.steps + 1:
            raise ValueError("certified: needs the state at every time; solve with save='all'.")
        again: Again = evidence.again.get("certified")
        chain, path = again.chain(), again.rows(self.solution)
        lipschitz = _per_step("lipschitz", lipschitz, evidence.steps)
        if not bool((lipschitz >= 0).all()):
            raise ValueError("lipschitz: expected constants >= 0, got a negative one; see one_sided for what shrinks.")
        if one_sided is not None:
            one_sided = torch.minimum(_per_step("one_sided", one_sided, evidence.steps), lipschitz)
        constants = chain.step_constants(lipschitz, one_sided)
        residuals = measured_residuals(chain, path, max(int(r.width.max()) for r in evidence.history))
        rounding = 4 * torch.finfo(path.dtype).eps * rms(path[1:]).double().cpu()
        bound = propagated_bound(residuals + rounding, constants[:, 0], earlier=constants[:, 1:])
        bound = torch.cat([torch.zeros_like(bound[:1]), bound])
        shown = (lambda value: value) if evidence.batched else (lambda value: value[..., 0])
        return replace(self, bound=shown(bound), kind="certified", residuals=shown(residuals))

    def recheck(self, factor: float = 0.03) -> "Certificate":
        """Solve on from this solution, to a fraction of the tolerance, and take what that changes for its error.

        It costs half as many rounds as the solve did, or as many. Its estimate does not rest on what was estimated
        before; it finds most samples that ended in another mode.

        Args:
            factor: of the tolerance, at least 0 and below 1.

        Returns:
            A certificate of the same solution, with the distance to the ``better`` one for its error, twice that for
            its bound.

        Raises:
            TypeError: factor is not a number, or it is a pipeline's run.
            ValueError: factor is not in that range.
        """
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            raise TypeError(f"factor: expected a number in [0, 1), got {factor!r}.")
        if not 0 <= factor < 1:
            raise ValueError(f"factor: expected a number in [0, 1), got {factor!r}.")
        if self._evidence.again is None or self.solution is None:
            raise TypeError(f"recheck: only a solve of a term can be repeated; {_PIPELINE}.")
        better = self._evidence.again.get("recheck").finer(self.solution, factor)
        error = distance(self.solution, better, self._evidence.batched)
        return replace(self, error=error, bound=2 * error, kind="estimated", better=better)

    def verify(self) -> "Verification":
        """Run the sequential solver, and hold the claims against it."""
        if self._evidence.again is None or self.solution is None:
            raise TypeError(f"verify: only a solve of a term can be done step by step from here; {_PIPELINE}.")
        reference = self._evidence.again.get("verify").sequential()
        return Verification(distance(self.solution, reference, self._evidence.batched), self, reference)

    def __str__(self) -> str:
        rounding = f"rounding {float(self.precision_floor.max()):.0e}"
        if bool(self.error[-1:].isnan().all()) and bool(self.residuals.isnan().all()):
            text = f"distance to the sequential solution: not estimated, {rounding}"
        else:
            text = (
                f"estimated distance to the sequential solution at the end: {_latest(self.error):.1e}, {self.kind} "
                f"bound {_latest(self.bound):.1e}, {rounding}"
            )
        if bool(self.growth.isnan().any()) and float(self.error.nan_to_num(0).max()) > 0:
            text += "; how errors grow along the solution is not known, recheck() tells"
        if self.total_variation is not None:
            text += f", total variation {self.total_variation:.2g}"
        return "\n".join([text, *self.warnings])


@dataclass(frozen=True)
class Verification:
    """Claims beside the truth.

    Attributes:
        error: true distance to the sequential solution, of the shape of the certificate's.
        certificate: the claims.
        reference: the sequential solution.
    """

    error: Tensor
    certificate: Certificate
    reference: "Solution"

    @property
    def effectivity(self) -> Tensor:
        """Estimated over true error; NaN where both are 0."""
        return self.certificate.error / self.error

    @property
    def rounding(self) -> Tensor:
        """What rounding may have made of the distance, of the shape of the error.

        Roundings of all steps, which go either way, carried on as the precision floor is; and of the states themselves,
        which half precision shows less of than they are computed to.
        """
        floor = self.certificate.precision_floor * len(self.certificate.residuals) ** 0.5
        leaves = pytree.tree_leaves(self.reference.ys)
        sizes = [leaf.reshape(*self.error.shape, -1).abs().amax(-1).double().cpu() for leaf in leaves]
        return floor + torch.finfo(leaves[0].dtype).eps * torch.stack(sizes).amax(0)

    @property
    def holds(self) -> bool:
        """Whether every true error is within its bound, up to rounding; of states that were not reached, nothing is.

        False, too, where no bound was claimed.
        """
        return not bool(self._broken().any())

    def _broken(self) -> Tensor:
        """Where an error is beyond its bound, or has none."""
        reached = ~(self.error.isnan() & self.certificate.bound.isnan())
        return reached & ~(self.error <= self.certificate.bound + self.rounding)

    def __str__(self) -> str:
        bound, broken = self.certificate.bound, self._broken()
        true, claimed, most = (_latest(value) for value in (self.error, self.certificate.error, bound))
        text = f"true distance at the end {true:.1e}"
        if bool((bound.isnan() & ~self.error.isnan()).any()):
            return f"{text}; no bound was claimed"
        text += f"; estimated {claimed:.1e}; the bound of {most:.1e}"
        if not bool(broken.any()):
            return f"{text} holds"
        excess = torch.where(broken, (self.error / bound).nan_to_num(torch.inf), -1)
        step, sample = divmod(int(excess.argmax()), max(excess[0].numel(), 1))
        of = f" of sample {sample}" if excess.dim() > 1 else ""
        error, claimed = (float(value.reshape(len(excess), -1)[step, sample]) for value in (self.error, bound))
        where = f"at t = {float(self.reference.ts[step]):g}{of}"
        return f"{text} does NOT hold {where}, of a distance of {error:.1e}: {claimed:.1e}"


def _latest(values: Tensor) -> float:
    """The largest of any sample at the last time that it reached; NaN where there is none."""
    rows = values.reshape(len(values), -1)
    last = [column[~column.isnan()][-1:] for column in rows.T]
    return float(torch.cat(last).max()) if sum(map(len, last)) else float("nan")


def _per_step(name: str, value: float | Tensor, steps: int) -> Tensor:
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, or a tensor of one for each of {steps} steps, got {value!r}.")
    table = torch.as_tensor(value, dtype=torch.float64).cpu()
    if table.dim() and table.shape != (steps,):
        raise ValueError(f"{name}: expected a number, or one for each of {steps} steps, got {tuple(table.shape)}.")
    if not bool(table.isfinite().all()):
        raise ValueError(f"{name}: expected finite constants, got {value!r}.")
    return table.expand(steps)


@torch.no_grad()
def measured_residuals(chain: DriftChain, path: Tensor, width: int) -> Tensor:
    """Root mean square of ``Phi_n(X[n]) - X[n+1]``, ``(N, B)`` float64 on the CPU; every step is evaluated once.

    Args:
        chain: of N steps.
        path: ``(N + 1, B, D)``.
        width: steps in a round.
    """
    samples, found, past = path.shape[1], [], None
    for begin in range(0, chain.length, width):
        n = np.arange(begin, min(begin + width, chain.length))
        x = path[n]
        step, sample = np.repeat(n, samples), np.tile(np.arange(samples), len(n))
        out = chain.evaluate(Rows(step, sample, x.flatten(0, 1))).reshape(len(n), samples, -1)
        if past is None:
            past = out.new_zeros(chain.memory, *out.shape[1:])
        noise = chain.increments(step, sample).reshape(*x.shape[:2], -1).to(x) if chain.noise_size else None
        held = torch.cat([past, out])
        found.append(rms(chain.steps(n[:, None], x, held, noise).images() - path[n + 1]))
        past = held[len(held) - chain.memory :]
    return torch.cat(found).double().cpu()


def distance(solution: "Solution", reference: "Solution", batched: bool) -> Tensor:
    """Root mean square distance at each time, ``(T,)`` or ``(T, B)``, over all tensors of a state."""
    pairs = zip(pytree.tree_leaves(solution.ys), pytree.tree_leaves(reference.ys), strict=True)
    apart = [(_reals(a) - _reals(b)).reshape(*a.shape[: 1 + batched], -1) for a, b in pairs]
    return rms(torch.cat(apart, -1)).cpu()


def _reals(states: Tensor) -> Tensor:
    """In float64, complex numbers as pairs."""
    return torch.view_as_real(states.resolve_conj()).double() if states.is_complex() else states.double()
