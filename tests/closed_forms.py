"""Exact solutions of the bank's problems that have one, in numpy: times ``(n,)`` to states ``(n, d)``."""

from collections.abc import Callable

import numpy as np
from scipy import fft, linalg, optimize, special

Exact = Callable[[np.ndarray], np.ndarray]


def scalar(function: Callable[[np.ndarray], np.ndarray]) -> Exact:
    return lambda t: function(np.asarray(t, dtype=np.float64))[:, None]


def dahlquist(rate: complex, y0: complex) -> Exact:
    def exact(t: np.ndarray) -> np.ndarray:
        y = y0 * np.exp(rate * np.asarray(t))
        return np.stack([y.real, y.imag], -1)

    return exact


def sine(t: np.ndarray) -> np.ndarray:
    """torchdiffeq's."""
    oscillating = -(t**4) * np.cos(2 * t) / 2 + t**3 * np.sin(2 * t) / 2 + t**2 * np.cos(2 * t) / 4
    return oscillating - t**3 + 2 * t**4 + (np.pi - 0.25) * t**2


def linear(matrix: np.ndarray, y0: np.ndarray) -> Exact:
    return lambda t: np.stack([linalg.expm(matrix * each) @ y0 for each in t])


def kepler(eccentricity: float) -> Exact:
    """From Kepler's equation u - e sin u = t, at pericentre at t = 0."""
    e, minor = eccentricity, np.sqrt(1 - eccentricity**2)

    def exact(t: np.ndarray) -> np.ndarray:
        t = np.asarray(t, dtype=np.float64)
        turns = np.round(t / (2 * np.pi)) * 2 * np.pi
        u = optimize.newton(lambda u: u - e * np.sin(u) - (t - turns), t - turns, lambda u: 1 - e * np.cos(u))
        slow = 1 - e * np.cos(u)
        return np.stack([np.cos(u) - e, minor * np.sin(u), -np.sin(u) / slow, minor * np.cos(u) / slow], -1)

    return exact


def rigid_body(t: np.ndarray) -> np.ndarray:
    return np.stack(special.ellipj(t, 0.51)[:3], -1)


def pendulum(modulus: float) -> Exact:
    """Let go at rest at the angle 2 asin(modulus)."""

    def exact(t: np.ndarray) -> np.ndarray:
        sn, cn, _, _ = special.ellipj(special.ellipk(modulus**2) - t, modulus**2)
        return np.stack([2 * np.arcsin(modulus * sn), -2 * modulus * cn], -1)

    return exact


def airy(t: np.ndarray) -> np.ndarray:
    value, slope, _, _ = special.airy(-np.asarray(t))
    return np.stack([value, -slope], -1)


def bessel(order: int) -> Exact:
    return lambda t: np.stack([special.jv(order, t), special.jvp(order, t)], -1)


def heat(y0: np.ndarray) -> Exact:
    """Sines are the eigenvectors of the second difference."""
    modes, width = np.arange(1, len(y0) + 1), 1 / (len(y0) + 1)
    rates = -((2 / width * np.sin(modes * np.pi * width / 2)) ** 2)
    return lambda t: fft.idst(fft.dst(y0, 1) * np.exp(np.multiply.outer(t, rates)), 1)


def gaussian_flow(deviations: np.ndarray, span: float, y0: np.ndarray) -> Exact:
    def variance(t: np.ndarray) -> np.ndarray:
        kept = np.exp(t - span)[:, None]
        return kept * deviations**2 + 1 - kept

    return lambda t: y0 * np.sqrt(variance(np.asarray(t)) / variance(np.zeros(1)))


def mixture_flow(weights: np.ndarray, means: np.ndarray, deviations: np.ndarray, span: float, y0: np.ndarray) -> Exact:
    """A probability flow in one dimension keeps quantiles."""

    def below(t: float, y: float) -> float:
        kept = np.exp(t - span)
        return float(weights @ special.ndtr((y - np.sqrt(kept) * means) / np.sqrt(kept * deviations**2 + 1 - kept)))

    def quantile(t: float, level: float) -> float:
        return optimize.brentq(lambda y: below(t, y) - level, -10, 10, xtol=1e-15, rtol=1e-15)

    levels = [below(0.0, y) for y in y0]
    return lambda t: np.array([[quantile(each, level) for level in levels] for each in t])
