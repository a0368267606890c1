"""What becomes of a small error along a trajectory: Lyapunov exponents and stiffness."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from picardsolve.problem.checks import check_not_negative
from picardsolve.problem.forward_mode import jvp
from picardsolve.results.diagnostics import STIFF


@torch.no_grad()
def lyapunov_exponent(f: Callable[[Tensor, Tensor], Tensor], states: Tensor, times: Tensor, seed: int = 0) -> Tensor:
    """Largest Lyapunov exponent: ``log(|v(t_T)| / |v(t_0)|) / |t_T - t_0|`` with ``v' = J(t, y(t)) v``.

    Between times the flow is one step of the classical fourth-order Runge-Kutta method from the state given; the
    derivatives of all these steps are taken at once, by `torch.func.jvp` in D directions. A tangent that starts in a
    random direction is multiplied by them, and normalised after each (Benettin et al. 1980). An ESTIMATE, since the
    trajectory is finite: too low by about ``1 / |t_T - t_0|``, while the tangent turns into the direction that grows
    most.

    Args:
        f: the drift ``f(t, y)``, of many times at once: y is ``(T - 1, D)`` or ``(T - 1, B, D)``, t is reshaped to
            broadcast against it. Each state is evaluated four times in each of D directions, and T matrices of D x D
            are kept for each sample: D has to be small.
        states: ``(T, D)`` or ``(T, B, D)``, close enough for a Runge-Kutta step from one to the next.
        times: ``(T,)``, of the states, increasing or decreasing.
        seed: of the first tangent, which all samples share.

    Returns:
        0-d, or ``(B,)``.

    Raises:
        ValueError: states are not ``(T, D)`` or ``(T, B, D)`` with T from 2, or times are not ``(T,)``.
    """
    if states.dim() not in (2, 3) or len(states) < 2 or times.shape != states.shape[:1]:
        raise ValueError(
            "states, times: expected shapes (T, D) or (T, B, D), and (T,), with at least two times, got "
            f"{tuple(states.shape)} and {tuple(times.shape)}."
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(states.shape[-1], generator=generator, dtype=torch.float64).to(states)
    v, total = start.expand_as(states[0]) / start.norm(), torch.zeros_like(states[0, ..., 0])
    for matrix in _step_jacobians(f, states[:-1], times.reshape(-1, *[1] * (states.dim() - 1))):
        v = (matrix @ v[..., None])[..., 0]
        size = torch.linalg.vector_norm(v, dim=-1)
        total, v = total + size.log(), v / size[..., None]
    return total / (times[-1] - times[0]).abs()


def _step_jacobians(f: Callable[[Tensor, Tensor], Tensor], y: Tensor, times: Tensor) -> Tensor:
    def step(state: Tensor) -> Tensor:
        return _runge_kutta(f, times[:-1], times[1:], state)

    directions = torch.eye(y.shape[-1]).to(y)
    return torch.stack([jvp(step, (y,), (unit.expand_as(y),))[1] for unit in directions], -1)


def _runge_kutta(f: Callable[[Tensor, Tensor], Tensor], t0: Tensor, t1: Tensor, y: Tensor) -> Tensor:
    h, half = t1 - t0, (t0 + t1) / 2
    k1 = f(t0, y)
    k2 = f(half, y + h / 2 * k1)
    k3 = f(half, y + h / 2 * k2)
    k4 = f(t1, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def predictable_span(exponent: float, tolerance: float, eps: float) -> float:
    """``ln(tolerance / eps) / lambda``: the time in which an error of eps grows to the tolerance.

    Beyond it two correct solvers differ by more than the tolerance in the same arithmetic. An ESTIMATE, as the exponent
    is.

    Args:
        exponent: largest Lyapunov exponent, of either sign.
        tolerance: largest error that is accepted.
        eps: of the first error: the unit roundoff times the size of the state.

    Returns:
        A time; infinity for an exponent that is not positive, 0 for a tolerance below eps.

    Raises:
        TypeError: an argument is not a number.
        ValueError: tolerance or eps is negative or 0.
    """
    check_not_negative("tolerance", tolerance)
    check_not_negative("eps", eps)
    if tolerance == 0 or eps == 0:
        raise ValueError(f"tolerance, eps: expected positive numbers, got {tolerance!r} and {eps!r}.")
    return max(math.log(tolerance) - math.log(eps), 0.0) / exponent if exponent > 0 else math.inf


def is_stiff(h: float | Tensor, lipschitz: float | Tensor, one_sided: float | Tensor) -> bool | Tensor:
    """Whether ``|h| L > 10`` though ``mu < 0``: the problem contracts, yet no explicit step so long is stable.

    The situation of Prothero & Robinson 1974 (``y' = lambda (y - g(t)) + g'``, lambda far below 0). Explicit Euler is
    unstable from ``|h lambda| = 2``. 10 is a RULE OF THUMB: over one such length Picard's iterates grow by
    ``hump(10)``, 2800, before they decay. Use an exponential or an implicit iteration.

    Args:
        h: length of a step (of a segment, for collocation), a number or a tensor.
        lipschitz: L of the drift, a number or a tensor.
        one_sided: its one-sided constant or largest logarithmic norm, a number or a tensor.

    Returns:
        A bool for numbers; for tensors booleans of the shape they broadcast to.
    """
    return (abs(h) * lipschitz > STIFF) & (one_sided < 0)
