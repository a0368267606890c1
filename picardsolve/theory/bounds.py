"""How far an iterate may be from the sequential solution: bounds, each under the hypothesis it states."""

import math
import sys

import torch
from torch import Tensor

from picardsolve.problem.checks import check_count, check_not_negative, check_positive_integer


def contraction(h: Tensor, lipschitz: float | Tensor) -> Tensor:
    """``Lambda = sum_n |h_n| L_n``, the Picard number of a window: what `factorial_bound` is a function of.

    Args:
        h: lengths of the steps, ``(N,)``, of either sign.
        lipschitz: Lipschitz constants of the drift, a number, ``(N,)``, or ``(N, B)`` with one for each sample.

    Returns:
        0-d, or ``(B,)``.

    Raises:
        ValueError: h is not ``(N,)``, or lipschitz is a tensor of another length.
    """
    if h.dim() != 1:
        raise ValueError(f"h: expected the lengths of the steps, shape (N,), got {tuple(h.shape)}.")
    constants = torch.as_tensor(lipschitz, dtype=None if isinstance(lipschitz, Tensor) else h.dtype, device=h.device)
    if constants.dim() and len(constants) != len(h):
        raise ValueError(
            f"lipschitz: expected a number or one for each of {len(h)} steps, got {tuple(constants.shape)}."
        )
    return (h.abs().reshape(-1, *[1] * (constants.dim() - 1)) * constants).sum(0)


def factorial_bound(k: int, contraction: float) -> float:
    """``Lambda^k / k!``: Picard's error after k rounds, relative to the largest error of the guess.

    It is ``|e_k(t)| <= L int_0^t |e_{k-1}|``, k times over (Lindelof 1894). Equality holds for ``y' = lambda y``,
    lambda > 0, and a guess with a constant error. It is a bound for Euler's method on any grid, too, where
    `binomial_bound` is sharper.

    Args:
        k: rounds.
        contraction: Lambda of `contraction`, with true Lipschitz constants.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative.
    """
    check_count("k", k)
    check_not_negative("contraction", contraction)
    if k == 0 or contraction == 0:
        return float(k == 0)
    return _exp(k * math.log(contraction) - math.lgamma(k + 1))


def binomial_bound(k: int, steps: int, ratio: float) -> float:
    """``C(N - 1, k) (hL)^k``: `factorial_bound` for Euler's method on a window of N steps; 0 from round N on.

    ``e^k_n = sum_{j < n} h (f(x^{k-1}_j) - f(x*_j))``, k times over, is a sum over ``n > j_1 > ... > j_k >= 1``, since
    the initial state j = 0 is exact. Equality holds for ``y' = lambda y``, lambda > 0, and a guess with a constant
    error, apart from the initial state. On other grids the sum is the k-th elementary symmetric polynomial of ``|h_j|
    L_j``. By Maclaurin's inequality the bound then holds with ``ratio`` the mean over all steps but the first.

    Args:
        k: rounds.
        steps: N, or the number n of a state within the window.
        ratio: ``|h| L``, the largest, or the mean over steps 1, ..., N - 1.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, or steps below 1.
    """
    check_count("k", k)
    check_positive_integer("steps", steps)
    check_not_negative("ratio", ratio)
    if k == 0 or k >= steps or ratio == 0:
        return float(k == 0)
    return _exp(math.log(math.comb(steps - 1, k)) + k * math.log(ratio))


def root_factorial_bound(k: int, lipschitz_drift: float, lipschitz_diffusion: float, span: float) -> float:
    """``(C T)^k / k!`` with ``C = 2 T L_f^2 + 8 L_g^2``, a bound of ``E sup|e_k|^2 / E sup|e_0|^2`` for Ito SDEs.

    In root mean square that is ``(C T)^{k/2} / sqrt(k!)``: noise that depends on the state makes Picard slower than any
    drift does. By the inequalities of Cauchy and Schwarz and of Doob and by Ito's isometry, ``E sup|e_k|^2 <= C int E
    sup|e_{k-1}|^2`` (the existence proof of strong solutions, Karatzas & Shreve 1991, section 5.2). Euler-Maruyama
    obeys the same sums. No state, and no guess, may depend on noise of later times.

    Args:
        k: rounds.
        lipschitz_drift: L_f, of the drift.
        lipschitz_diffusion: L_g, of the diffusion, in the Frobenius norm; 0 for additive noise, where the error is
            an ODE's and `factorial_bound` much sharper.
        span: T, the length of the window.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative.
    """
    check_not_negative("lipschitz_drift", lipschitz_drift)
    check_not_negative("lipschitz_diffusion", lipschitz_diffusion)
    check_not_negative("span", span)
    rate = 2 * span * lipschitz_drift**2 + 8 * lipschitz_diffusion**2
    return factorial_bound(k, rate * span)


def step_lipschitz(h: float | Tensor, lipschitz: float | Tensor, one_sided: float | Tensor | None = None) -> Tensor:
    """A Lipschitz constant of Euler's step ``Phi(y) = y + h f(y)``: what `propagated_bound` asks for.

    It is ``1 + |h| L``; with a one-sided constant mu ``sqrt(1 + 2 |h| mu + h^2 L^2)``, which is below 1 for short steps
    where mu is negative. Equality holds for ``f(y) = a y`` in the complex plane, ``mu = Re a``, ``L = |a|``.

    Args:
        h: length of the step, a number or a tensor.
        lipschitz: L of the drift, a number or a tensor; taken as ``|mu|`` where that is larger.
        one_sided: mu of the drift in the direction of time: of ``-f`` where h is negative. A number, a tensor or None.

    Returns:
        Tensor of the shape that the arguments broadcast to; float64 if all are numbers.
    """
    length, constant = _tensor(h).abs(), _tensor(lipschitz)
    if one_sided is None:
        return 1 + length * constant
    mu = _tensor(one_sided)
    largest = torch.maximum(*torch.broadcast_tensors(constant, mu.abs()))
    return (1 + 2 * length * mu + (length * largest).square()).clamp(min=0).sqrt()  # (1 - |hL|)^2 at least


def propagated_bound(
    residuals: Tensor, lipschitz: float | Tensor, start: float | Tensor = 0.0, earlier: Tensor | None = None
) -> Tensor:
    """``E[n+1] = L_n E[n] + |r_n|``: a bound of the distance of every state to the sequential solution.

    ``x*_{n+1} - X_{n+1} = Phi_n(x*_n) - Phi_n(X_n) + r_n`` with the residual ``r_n = Phi_n(X_n) - X_{n+1}`` (the
    discrete form of the fundamental lemma, Hairer, Norsett & Wanner 1993, section I.10). It certifies where L_n are
    Lipschitz constants of the STEP Phi_n (not of the drift; see `step_lipschitz`) on a ball of radius ``E[n]`` around
    ``X_n``; with estimates in their place it is an estimate. Equality holds where all residuals point one way and every
    step stretches them by L_n. Rounding is not included. Infinite where a product of L_n overflows.

    Args:
        residuals: norms ``|r_n|``, ``(N,)`` or ``(N, B)``, in the norm that L_n are of.
        lipschitz: L_n, a number, ``(N,)``, ``(N, 1)`` or ``(N, B)``.
        start: ``E[0]``, a number or ``(B,)``; 0 for an exact initial state.
        earlier: of multistep methods, ``(N, M)`` constants of the M states before: ``E[n+1]`` has a term
            ``earlier[n, i] E[n-1-i]`` more for each.

    Returns:
        ``E[1], ..., E[N]``, of the shape of ``residuals``.

    Raises:
        ValueError: lipschitz has another length than residuals, or residuals are not ``(N,)`` or ``(N, B)``.
    """
    if residuals.dim() not in (1, 2):
        raise ValueError(f"residuals: expected norms of shape (N,) or (N, B), got {tuple(residuals.shape)}.")
    norms = residuals.reshape(len(residuals), -1)
    factor = torch.as_tensor(lipschitz, dtype=norms.dtype, device=norms.device)
    if factor.dim() and len(factor) != len(norms):
        raise ValueError(
            f"lipschitz: expected a number or one for each of {len(norms)} steps, got {tuple(factor.shape)}."
        )
    factor = (factor.reshape(len(factor), -1) if factor.dim() else factor).expand(norms.shape)[:, None]
    if earlier is not None:
        factor = torch.cat([factor, earlier.to(norms)[..., None].expand(-1, -1, norms.shape[1])], 1)
    bounds = [torch.as_tensor(start, dtype=norms.dtype, device=norms.device).expand(norms.shape[1:])]
    for norm, constants in zip(norms, factor, strict=True):
        before = torch.stack(bounds[: -1 - len(constants) : -1])  # the newest first
        constants = constants[: len(before)]
        bounds.append(norm + torch.where(constants == 0, 0, constants * before).sum(0))
    return torch.stack(bounds[1:]).reshape(residuals.shape)


def newton_kantorovich(beta: float, eta: float, gamma: float) -> tuple[float, float]:
    """Whether F has a root near x, and how near: ``h = beta gamma eta`` and ``(1 - sqrt(1 - 2h)) / (beta gamma)``.

    Where ``h <= 1/2``, Newton's method from x converges to a root within that radius, the only one within
    ``(1 + sqrt(1 - 2h)) / (beta gamma)`` (Kantorovich 1948; Ortega 1968). Equality holds for a quadratic in one
    variable. For a window ``F_n = Phi_n(X_n) - X_{n+1}``, with a block bidiagonal Jacobian.

    Args:
        beta: a bound of ``||F'(x)^-1||``.
        eta: a bound of ``|F'(x)^-1 F(x)|``, the length of Newton's step.
        gamma: a Lipschitz constant of F' on a ball around x that holds the radius.

    Returns:
        h and the radius; the radius is infinite for h > 1/2, where the theorem says nothing.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative.
    """
    check_not_negative("beta", beta)
    check_not_negative("eta", eta)
    check_not_negative("gamma", gamma)
    h = beta * gamma * eta
    return h, 2 * eta / (1 + math.sqrt(1 - 2 * h)) if h <= 0.5 else math.inf  # without the cancellation


def total_variation(residuals: Tensor, noise: Tensor) -> Tensor:
    """``1/2 sqrt(sum_n E|r_n|^2 / sigma_n^2)``, at most 1: total variation between the law of X and the sequential law.

    It holds for samplers whose step adds ``sigma_n`` times a standard normal vector (DDPM, Euler-Maruyama with additive
    noise). The chain rule of the relative entropy gives ``KL = sum_n E|r_n|^2 / (2 sigma_n^2)`` (Girsanov's theorem in
    discrete time), and Pinsker's inequality ``TV <= sqrt(KL / 2)`` (Chen et al. 2023). E is the mean over runs of X.
    r_n must not depend on the noise of step n and of later steps. That is true of an iterate, unless a stopping rule
    looks ahead.

    Args:
        residuals: EUCLIDEAN norms ``|r_n|`` (not root mean squares: those times ``sqrt(D)``), ``(N,)``, or ``(N, S)``
            of S independent runs, whose mean square takes the place of the expectation. With norms that are bounds in
            every run the result is a bound; with those of sample runs it is an estimate of it.
        noise: ``sigma_n``, ``(N,)``. A step without noise that has a residual makes the laws singular: 1.

    Returns:
        0-d.

    Raises:
        ValueError: residuals are not ``(N,)`` or ``(N, S)``, or noise is not ``(N,)``.
    """
    if residuals.dim() not in (1, 2) or noise.shape != residuals.shape[:1]:
        raise ValueError(
            "residuals, noise: expected shapes (N,) or (N, S), and (N,), got "
            f"{tuple(residuals.shape)} and {tuple(noise.shape)}."
        )
    norms = residuals.reshape(len(residuals), -1)
    shifts = torch.where(norms == 0, 0, norms / noise[:, None].to(norms))
    largest = shifts.abs().amax()  # squares of small ones would underflow
    if not 0 < largest < torch.inf:
        return torch.where(largest == torch.inf, 1, largest)
    return (largest / 2 * (shifts / largest).square().mean(1).sum().sqrt()).clamp(max=1)


def _exp(x: float) -> float:
    return math.exp(x) if x < math.log(sys.float_info.max) else math.inf


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
