"""Claims of a certificate beside the sequential solution."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.recurrence import rms
from picardsolve.results.abstract_certificate import AbstractCertificate
from picardsolve.results.solution import Solution


@dataclass(frozen=True)
class Verification:
    """The claims of a certificate beside the true errors.

    Attributes:
        error: true distance to the sequential solution, of the shape of the certificate's error.
        certificate: the certificate that made the claims.
        reference: the sequential solution.
    """

    error: Tensor
    certificate: AbstractCertificate
    reference: Solution

    @property
    def effectivity(self) -> Tensor:
        """Estimated over true error; NaN where both are 0."""
        return self.certificate.error / self.error

    @property
    def rounding(self) -> Tensor:
        """How much of the distance rounding may have caused, of the shape of the error.

        The roundings of all steps have either sign, and grow as the precision floor does. The rounding of the states
        themselves is added: in half precision states are less precise than what they are computed from.
        """
        floor = self.certificate.precision_floor * self.reference.stats.steps**0.5
        leaves = pytree.tree_leaves(self.reference.ys)
        sizes = [leaf.reshape(*self.error.shape, -1).abs().amax(-1).double().cpu() for leaf in leaves]
        return floor + torch.finfo(leaves[0].dtype).eps * torch.stack(sizes).amax(0)

    @property
    def holds(self) -> bool:
        """Whether every true error is within its bound, up to rounding.

        States that were not reached are left out. False where no bound was claimed.
        """
        return not bool(self._broken().any())

    def _broken(self) -> Tensor:
        """Where an error is above its bound, or has no bound."""
        reached = ~(self.error.isnan() & self.certificate.bound.isnan())
        return reached & ~(self.error <= self.certificate.bound + self.rounding)

    def __str__(self) -> str:
        bound, broken = self.certificate.bound, self._broken()
        true, claimed, most = (latest(value) for value in (self.error, self.certificate.error, bound))
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


def latest(values: Tensor) -> float:
    """The largest value of a sample at the last time that it reached; NaN where none reached any."""
    rows = values.reshape(len(values), -1)
    last = [column[~column.isnan()][-1:] for column in rows.T]
    return float(torch.cat(last).max()) if sum(map(len, last)) else float("nan")


def distance(solution: Solution, reference: Solution, batched: bool) -> Tensor:
    """Root mean square distance at each time, ``(T,)`` or ``(T, B)``, over all tensors of a state."""
    pairs = zip(pytree.tree_leaves(solution.ys), pytree.tree_leaves(reference.ys), strict=True)
    apart = [(_reals(a) - _reals(b)).reshape(*a.shape[: 1 + batched], -1) for a, b in pairs]
    return rms(torch.cat(apart, -1)).cpu()


def _reals(states: Tensor) -> Tensor:
    """States in float64, complex numbers as pairs."""
    return torch.view_as_real(states.resolve_conj()).double() if states.is_complex() else states.double()
