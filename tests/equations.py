"""Right-hand sides of the bank of problems, in plain torch.

Each takes t ``(rows, 1)`` and y ``(rows, d)`` of one float dtype and returns ``(rows, d)``; without the rows, as
`torch.func.vmap` calls them, they work as well. Those of the form ``acceleration(t, q)`` give q'' of ``(rows, d / 2)``.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def first_order(acceleration: Field) -> Field:
    """The field of y = (q, v) for q'' = acceleration(t, q)."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        half = y.shape[-1] // 2
        return torch.cat([y[..., half:], acceleration(t, y[..., :half])], -1)

    return f


def constant(values) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def normal(seed: int, *shape: int) -> Tensor:
    """Fixed normal numbers: `RandomState` is the generator whose stream numpy promises never to change."""
    return constant(np.random.RandomState(seed).standard_normal(shape))


# ---- scalar and linear


def dahlquist(rate: complex) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return torch.stack([rate.real * a - rate.imag * b, rate.imag * a + rate.real * b], -1)

    return f


def cubic_decay(t: Tensor, y: Tensor) -> Tensor:
    return -(y**3) / 2


def cosine_growth(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def logistic(t: Tensor, y: Tensor) -> Tensor:
    return y / 4 * (1 - y / 20)


def sine(t: Tensor, y: Tensor) -> Tensor:
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    return y**2


def linear(matrix: Tensor) -> Field:
    return lambda t, y: y @ matrix.to(y).T


def prothero_robinson(rate: float) -> Field:
    return lambda t, y: rate * (y - torch.cos(t)) - torch.sin(t)


def airy(t: Tensor, q: Tensor) -> Tensor:
    return -t * q


def bessel(order: int) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        y, slope = y.unbind(-1)
        t = t[..., 0]
        return torch.stack([slope, -slope / t - (1 - order**2 / t**2) * y], -1)

    return f


# ---- probability flows of the variance-preserving diffusion, alpha_bar = exp(-t), in the time since t = span


def gaussian_flow(deviations: Tensor, span: float) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        kept = torch.exp(t - span)
        variance = kept * deviations.to(y) ** 2 + 1 - kept
        return (1 - 1 / variance) * y / 2

    return f


def mixture_flow(weights: Tensor, means: Tensor, deviations: Tensor, span: float) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        kept = torch.exp(t - span)[..., None]
        variance = kept * deviations.to(y) ** 2 + 1 - kept
        away = torch.sqrt(kept) * means.to(y) - y[..., None]
        density = weights.to(y) / torch.sqrt(variance) * torch.exp(-(away**2) / (2 * variance))
        score = (density * away / variance).sum(-1) / density.sum(-1)
        return (y + score) / 2

    return f


# ---- mechanics


def kepler(t: Tensor, q: Tensor) -> Tensor:
    return -q / (q**2).sum(-1)[..., None] ** 1.5


def pendulum(t: Tensor, q: Tensor) -> Tensor:
    return -torch.sin(q)


def henon_heiles(t: Tensor, q: Tensor) -> Tensor:
    x, y = q.unbind(-1)
    return torch.stack([-x - 2 * x * y, -y - x**2 + y**2], -1)


def rigid_body(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([b * c, -a * c, -0.51 * a * b], -1)


def planar_bodies(masses: Tensor) -> Field:
    """Newton's gravity, G = 1; q is all x, then all y."""
    count = len(masses)
    apart = torch.eye(count, dtype=torch.float64)  # keeps a body's distance to itself from being zero

    def acceleration(t: Tensor, q: Tensor) -> Tensor:
        x, y = q[..., :count], q[..., count:]
        dx, dy = x[..., None, :] - x[..., None], y[..., None, :] - y[..., None]
        pull = masses.to(q) / (dx**2 + dy**2 + apart.to(q)) ** 1.5
        return torch.cat([(pull * dx).sum(-1), (pull * dy).sum(-1)], -1)

    return acceleration


def planets(t: Tensor, q: Tensor) -> Tensor:
    """Five planets around a sun that they pull at, too; q is all x, then all y, then all z."""
    masses = PLANET_MASSES.to(q)
    x = [q[..., 5 * axis : 5 * axis + 5] for axis in range(3)]
    away = [each[..., None, :] - each[..., None] for each in x]
    near = (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) ** 1.5
    apart = (away[0] ** 2 + away[1] ** 2 + away[2] ** 2 + torch.eye(5, dtype=torch.float64).to(q)) ** 1.5
    others = (1 - torch.eye(5, dtype=torch.float64)).to(q) * masses
    return 2.95912208286 * torch.cat(
        [
            -(1.00000597682 + masses) * own / near
            + (others * (gap / apart - own[..., None, :] / near[..., None, :])).sum(-1)
            for own, gap in zip(x, away, strict=True)
        ],
        -1,
    )


PLANET_MASSES = constant([9.54786104043e-4, 2.85583733151e-4, 4.37273164546e-5, 5.17759138449e-5, 2.77777777778e-6])


def arenstorf(t: Tensor, y: Tensor) -> Tensor:
    x, y, u, v = y.unbind(-1)
    moon, earth = 0.012277471, 1 - 0.012277471
    near_earth = ((x + moon) ** 2 + y**2) ** 1.5
    near_moon = ((x - earth) ** 2 + y**2) ** 1.5
    across = x + 2 * v - earth * (x + moon) / near_earth - moon * (x - earth) / near_moon
    return torch.stack([u, v, across, y - 2 * u - earth * y / near_earth - moon * y / near_moon], -1)


def double_pendulum(t: Tensor, y: Tensor) -> Tensor:
    """Equal masses and rods of 1 m, gravity 9.81 m/s^2; y is the two angles, then their rates."""
    a, b, u, v = y.unbind(-1)
    bent, below = torch.sin(a - b), 3 - torch.cos(2 * (a - b))
    straight = torch.cos(a - b)
    upper = -9.81 * (3 * torch.sin(a) + torch.sin(a - 2 * b)) - 2 * bent * (v**2 + u**2 * straight)
    lower = 2 * bent * (2 * u**2 + 2 * 9.81 * torch.cos(a) + v**2 * straight)
    return torch.stack([u, v, upper / below, lower / below], -1)


def extensions(q: Tensor) -> Tensor:
    """How far each spring of a chain with fixed ends is drawn out."""
    return torch.cat([q[..., :1], q[..., 1:] - q[..., :-1], -q[..., -1:]], -1)


def fput(t: Tensor, q: Tensor) -> Tensor:
    drawn = extensions(q)
    force = drawn + drawn**2 / 4
    return force[..., 1:] - force[..., :-1]


def pendulum_chain(t: Tensor, q: Tensor) -> Tensor:
    drawn = extensions(q)
    return 4 * (drawn[..., 1:] - drawn[..., :-1]) - torch.sin(q)


# ---- oscillators and chaos


def lotka_volterra(a: float, b: float, c: float, d: float) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        prey, predators = y.unbind(-1)
        return torch.stack([a * prey - b * prey * predators, d * prey * predators - c * predators], -1)

    return f


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def van_der_pol(mu: float) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return torch.stack([b, mu * (1 - a**2) * b - a], -1)

    return f


def brusselator(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return torch.stack([1 + a**2 * b - 4 * a, 3 * a - a**2 * b], -1)


def duffing(t: Tensor, y: Tensor) -> Tensor:
    x, v = y.unbind(-1)
    return torch.stack([v, x - x**3 - 0.3 * v + 0.37 * torch.cos(1.2 * t[..., 0])], -1)


def fitzhugh_nagumo(t: Tensor, y: Tensor) -> Tensor:
    v, w = y.unbind(-1)
    return torch.stack([v - v**3 / 3 - w + 0.5, 0.08 * (v + 0.7 - 0.8 * w)], -1)


def kuramoto(frequencies: Tensor) -> Field:
    def f(t: Tensor, y: Tensor) -> Tensor:
        sine, cosine, count = torch.sin(y), torch.cos(y), y.shape[-1]
        pull = cosine * sine.sum(-1)[..., None] - sine * cosine.sum(-1)[..., None]
        return frequencies.to(y) + 2 / count * pull

    return f


def roessler(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([-b - c, a + 0.2 * b, 0.2 + c * (a - 5.7)], -1)


def thomas(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(torch.roll(y, -1, -1)) - 0.208186 * y


def chua(t: Tensor, y: Tensor) -> Tensor:
    """With a cubic for the diode."""
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - (2 * a**3 - a) / 7), a - b + c, -100 / 7 * b], -1)


def lorenz96(t: Tensor, y: Tensor) -> Tensor:
    return (torch.roll(y, -1, -1) - torch.roll(y, 2, -1)) * torch.roll(y, 1, -1) - y + 8


def driven_circuit(t: Tensor, y: Tensor) -> Tensor:
    """Coil of 1 mH, 100 ohm, and a capacitor of 1 nF that stiffens with charge, at 1 V; SI units."""
    charge, current = y.unbind(-1)
    voltage = torch.cos(0.9e6 * t[..., 0]) - 100 * current - charge / 1e-9 * (1 + (charge / 1e-8) ** 2)
    return torch.stack([current, voltage / 1e-3], -1)


# ---- chemistry and biology


def robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    slow, fast, middle = 0.04 * a, 3e7 * b**2, 1e4 * b * c
    return torch.stack([middle - slow, slow - middle - fast, fast], -1)


def hires(t: Tensor, y: Tensor) -> Tensor:
    a, b, c, d, e, f, g, h = y.unbind(-1)
    bound = 280 * f * h
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -bound + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            bound - 1.81 * g,
            -bound + 1.81 * g,
        ],
        -1,
    )


def oregonator(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1)


def e5(t: Tensor, y: Tensor) -> Tensor:
    a, b, c, d = y.unbind(-1)
    first, second, third, fourth = 7.89e-10 * a, 1.1e7 * a * c, 1.13e9 * b * c, 1.13e3 * d
    return torch.stack([-first - second, first - third, first - second + fourth - third, second - fourth], -1)


def sir(t: Tensor, y: Tensor) -> Tensor:
    """In persons and days; a million of them."""
    susceptible, infected, _ = y.unbind(-1)
    caught, recovered = 0.4e-6 * susceptible * infected, 0.1 * infected
    return torch.stack([-caught, caught - recovered, recovered], -1)


def goodwin(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([1 / (1 + c**10) - 0.1 * a, a - 0.1 * b, b - 0.1 * c], -1)


def repressilator(t: Tensor, y: Tensor) -> Tensor:
    """Three messengers, then three proteins, in mol per litre."""
    messengers, proteins = y[..., :3], y[..., 3:]
    made = 2e-5 / (1 + (torch.roll(proteins, 1, -1) / 1e-6) ** 2)
    return torch.cat([made - messengers, 2 * (messengers - proteins)], -1)


def hodgkin_huxley(t: Tensor, y: Tensor) -> Tensor:
    """The squid's axon at 10 uA/cm^2, in mV and ms."""
    v, m, h, n = y.unbind(-1)
    opening = (
        0.1 * (v + 40) / (1 - torch.exp(-(v + 40) / 10)),
        0.07 * torch.exp(-(v + 65) / 20),
        0.01 * (v + 55) / (1 - torch.exp(-(v + 55) / 10)),
    )
    closing = (
        4 * torch.exp(-(v + 65) / 18),
        1 / (1 + torch.exp(-(v + 35) / 10)),
        torch.exp(-(v + 65) / 80) / 8,
    )
    gates = [a * (1 - x) - b * x for a, b, x in zip(opening, closing, (m, h, n), strict=True)]
    current = 120 * m**3 * h * (v - 50) + 36 * n**4 * (v + 77) + 0.3 * (v + 54.387)
    return torch.stack([10 - current, *gates], -1)


# ---- networks and partial differential equations by the method of lines


def network(first: Tensor, bias: Tensor, second: Tensor) -> Field:
    return lambda t, y: torch.tanh(y @ first.to(y).T + bias.to(y)) @ second.to(y).T


def recurrent(weights: Tensor, bias: Tensor) -> Field:
    return lambda t, y: torch.tanh(y) @ weights.to(y).T + bias.to(y) - y


def heat(t: Tensor, y: Tensor) -> Tensor:
    """On the unit interval with cold ends."""
    flux = extensions(y)
    return (flux[..., 1:] - flux[..., :-1]) * (y.shape[-1] + 1) ** 2


def burgers(t: Tensor, y: Tensor) -> Tensor:
    """On a ring of length 1, viscosity 0.01."""
    before, after, width = torch.roll(y, 1, -1), torch.roll(y, -1, -1), 1 / y.shape[-1]
    return (before**2 - after**2) / (4 * width) + 0.01 * (before - 2 * y + after) / width**2


def allen_cahn(t: Tensor, y: Tensor) -> Tensor:
    """On the unit interval with ends held at zero, diffusion 0.01."""
    return 0.01 * heat(t, y) + y - y**3
