"""How far a solution on a grid is from the sequential one: ``solution.certificate``."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from picardsolve.certificate.evidence import Evidence, Repeatable
from picardsolve.certificate.remaining_rounds import rounds_expected
from picardsolve.certificate.verification import Verification, distance, latest
from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.problem.recurrence import rms
from picardsolve.results.abstract_certificate import AbstractCertificate, Kind
from picardsolve.theory.bounds import propagated_bound, total_variation

if TYPE_CHECKING:
    from picardsolve.results.solution import Solution

_PIPELINE = "run the pipeline itself with the same generator and compare"
_FACTOR = 4.0  # of bounds to errors, see docs/certificates.md


@dataclass(frozen=True)
class Certificate(AbstractCertificate):
    """How far a solution is from the sequential solution with the same integrator, grid and noise.

    Distances are root mean squares over a state. Fields of shape ``(T,)`` or, for samples, ``(T, B)`` belong to the
    times of the solution. How far the sequential solution is from the exact one is not estimated here.

    Attributes:
        error: estimated distance: the expected residuals of the accepted states, which grow as was measured along the
            solution. Where the growth is not known, they are added up. The residuals of a denoiser are multiplied by
            the slopes of the steps, or by the root of slopes below 1. NaN where nothing was estimated, as by
            `Parareal`.
        bound: upper bound of the distance. "estimated": four times the error that there would be if errors never
            decayed. It is not proven; docs/certificates.md has how often it held. "certified": proven for the constants
            that were given to `certified`.
        kind: "estimated" or "certified".
        residuals: root mean square of ``Phi_n(X[n]) - X[n+1]``, ``(N,)`` or ``(N, B)``: the expected one, or the one
            that `certified` measured.
        precision_floor: distance that rounding alone may have caused: unit roundoff times the largest state, times the
            largest growth between two times where it is known; ``()`` or ``(B,)``.
        contraction: the largest Picard number of a window: the sum of ``|J_n - c_n|`` along the changes that were seen,
            with the Jacobian J_n of step n and the slope c_n of the iteration.
        growth: the largest factor by which a small change of y0 grows by any later time, the root mean square over all
            directions; for a denoiser the product of the slopes; ``()`` or ``(B,)``. Perturbed runs showed it within a
            factor of 10. NaN where it is not known: for noise that depends on the state, states of more than 64
            numbers, tolerance 0, slopes that an iteration does not report, and where errors are within the tolerance
            whatever the growth.
        rounds: rounds of the window.
        warnings: what to know and what to do, a sentence each.
        solution: the solution that this is about; None for the run of a pipeline.
        better: the solution that `recheck` compared it with.
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
        known, kept = evidence.accepted, evidence.kept
        missing = evidence.path.isnan().any(-1).cpu()
        shown = (lambda value: value) if evidence.batched else (lambda value: value[..., 0])
        return Certificate(
            error=shown(evidence.errors.masked_fill(missing, torch.nan)),
            bound=shown(_FACTOR * known.most[kept].masked_fill(missing, torch.nan)),
            kind="estimated",
            residuals=shown(known.expected),
            precision_floor=shown(evidence.rounding.amax(0) * evidence.largest_growth.nan_to_num(1, torch.inf)),
            contraction=evidence.history.stacked().contraction,
            growth=shown(evidence.growth_since_start),
            rounds=len(evidence.history),
            warnings=evidence.warnings,
            _evidence=evidence,
            solution=solution,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "total_variation": self.total_variation}  # may call the diffusion, which a copy cannot

    @cached_property
    def total_variation(self) -> float | None:
        """Bound of the total variation distance between the laws of this solution and of the sequential one.

        An estimate of `theory.total_variation`: the mean over the samples takes the place of the expectation, and steps
        without noise are left out. None where no step has noise, or noise depends on the state.
        """
        again = self._evidence.again
        deviation = None if again is None else again.get("total_variation").chain().deviation
        if deviation is None:
            return None
        noisy, size = deviation > 0, self._evidence.path.shape[-1]
        return float(total_variation(size**0.5 * self.residuals[noisy], deviation[noisy]))

    @property
    def rounds_predicted(self) -> tuple[float, ...]:
        """After each round, the number of rounds that the whole solve was expected to take."""
        return rounds_expected(self._evidence.history, self._evidence.steps)

    def certified(self, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> "Certificate":
        """A proven bound, from the true residuals of all states: each step is evaluated once, in windows.

        It is ``E[n+1] = L_n E[n] + |r_n| + rounding of the states``, with a Lipschitz constant ``L_n`` of the step that
        follows from that of the drift (`theory.propagated_bound`; Hairer, Norsett & Wanner 1993, section I.10). It
        holds if the constants do.

        Args:
            lipschitz: Lipschitz constant of the drift in y; for a `Denoiser` of its predicted clean sample. A number,
                or ``(N,)``, one for each step.
            one_sided: constant m with ``<f(x) - f(y), x - y> <= m |x - y|^2``, in the direction of time; sharper for
                contracting problems. For `Euler` on an `ODE` only.

        Raises:
            ValueError: the solution was not kept at all times, or a constant has a wrong value or shape.
            TypeError: a constant is no number, the integrator has none (an `SDE`), or the steps are a scheduler's.
        """
        evidence = self._evidence
        if evidence.again is None or self.solution is None:
            raise TypeError(f"certified: the steps are a scheduler's, of which no constants are known; {_PIPELINE}.")
        if len(self.solution.ts) != evidence.steps + 1:
            raise ValueError("certified: needs the state at every time; solve with save='all'.")
        again: Repeatable = evidence.again.get("certified")
        chain, path = again.chain(), again.rows(self.solution)
        lipschitz = _per_step("lipschitz", lipschitz, evidence.steps)
        if not bool((lipschitz >= 0).all()):
            raise ValueError("lipschitz: expected constants >= 0, got a negative one; see one_sided for what shrinks.")
        if one_sided is not None:
            one_sided = torch.minimum(_per_step("one_sided", one_sided, evidence.steps), lipschitz)
        constants = chain.step_constants(lipschitz, one_sided)
        residuals = measured_residuals(chain, path, max(self.solution.stats.max_width, 1))
        rounding = 4 * torch.finfo(path.dtype).eps * rms(path[1:]).double().cpu()
        bound = propagated_bound(residuals + rounding, constants[:, 0], earlier=constants[:, 1:])
        bound = torch.cat([torch.zeros_like(bound[:1]), bound])
        shown = (lambda value: value) if evidence.batched else (lambda value: value[..., 0])
        return replace(self, bound=shown(bound), kind="certified", residuals=shown(residuals))

    def recheck(self, factor: float = 0.03) -> "Certificate":
        """Solve again from this solution, to a fraction of the tolerance; the error is the distance of the two.

        It takes 0.5 to 1 times as many rounds as the solve did. It does not depend on the first estimate, and finds
        most samples that ended in another mode.

        Args:
            factor: of the tolerance, at least 0 and below 1.

        Returns:
            A certificate of the same solution; its error is the distance to the ``better`` solution, its bound twice
            that distance.

        Raises:
            TypeError: factor is not a number, or the certificate is that of a pipeline's run.
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
        """Run the sequential solver, and compare the claims with it.

        Raises:
            TypeError: the certificate is that of a pipeline's run.
        """
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
                f"estimated distance to the sequential solution at the end: {latest(self.error):.1e}, {self.kind} "
                f"bound {latest(self.bound):.1e}, {rounding}"
            )
        if self._evidence.seen is not None:
            text += "; measured by taking every step once more"
        elif bool(self.growth.isnan().any()) and float(self.error.nan_to_num(0).max()) > 0:
            text += "; how errors grow along the solution is not known, recheck() tells"
        elif float(self.error.nan_to_num(0).max()) > 0:
            text += f"; changes of y0 grow up to {float(self.growth.max()):.2g} times, known within a factor of 10"
        if self.total_variation is not None:
            text += f", total variation {self.total_variation:.2g}"
        return "\n".join([text, *self.warnings])


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
