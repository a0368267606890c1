"""Components have units of their own: an equation in other units has the same solution, in those units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cases import generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.integrate import solve_ivp
from torch import Tensor

import picardsolve as ps

ITERATIONS = [None, ps.Picard(), ps.Secant(), ps.Newton()]
iterations = st.sampled_from(ITERATIONS)
KINDS = ("linear", "network", "relaxing", "pairs")


@dataclass(frozen=True)
class System:
    """``dy/dt = f(t, y)`` of about unit sizes, times its units."""

    kind: str
    y0: Tensor
    matrix: Tensor
    units: Tensor

    @staticmethod
    def drawn(kind: str, seed: int, d: int, exponents: float, base: float, dtype: torch.dtype) -> "System":
        random = generator(seed)
        matrix, y0 = randn(random, d, d) / d**0.5, randn(random, d)
        y0[torch.rand(d, generator=random) < 0.3] = 0
        units = base ** torch.round(exponents * (2 * torch.rand(d, generator=random, dtype=torch.float64) - 1))
        return System(kind, y0.to(dtype), matrix.to(dtype), units.to(dtype))

    def plain(self, t: Any, y: Tensor) -> Tensor:
        if self.kind == "linear":
            return y @ self.matrix.T
        if self.kind == "network":
            return (y @ self.matrix.T + t).tanh() - y / 2
        if self.kind == "relaxing":
            return 30 * (torch.sin(t + 0 * y) - y) + (y @ self.matrix.T).sin()
        return y.sin() * y.roll(1, -1).cos() + t.cos() / 4

    def scaled(self, t: Any, z: Tensor) -> Tensor:
        return self.units * self.plain(t, z / self.units)

    def reference(self, ts: list[float]) -> np.ndarray:
        """Of the plain one."""
        y0, matrix = self.y0.double().numpy(), self.matrix.double().numpy()
        if self.kind == "linear":
            return np.stack([linalg.expm(matrix * t) @ y0 for t in ts])
        plain = System(self.kind, self.y0.double(), self.matrix.double(), self.units.double())

        def f(t: float, y: np.ndarray) -> np.ndarray:
            return plain.plain(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

        return solve_ivp(f, (ts[0], ts[-1]), y0, "DOP853", ts, rtol=1e-13, atol=1e-13).y.T


TS = [0.0, 0.7, 2.0]


def solved(system: System, tol: float, **more: Any) -> ps.Solution:
    """In its units, with the tolerance in them."""
    given = {"integrator": ps.Collocation(), "rtol": tol, "atol": tol * system.units}
    return ps.solve(ps.ODE(system.scaled), system.units * system.y0, TS, **given | more)


@given(seeds, st.sampled_from(KINDS), st.integers(1, 14), st.integers(3, 9), iterations)
@settings(max_examples=60, deadline=None)
def test_right_in_any_units(seed, kind, d, digits, iteration):
    system, tol = System.drawn(kind, seed, d, 15.0, 10.0, torch.float64), 10.0**-digits
    got = solved(system, tol, iteration=iteration).ys / system.units
    expected = torch.from_numpy(system.reference(TS))
    assert ((got - expected).abs() / (tol * (1 + expected.abs()))).max() <= 10


@given(seeds, st.sampled_from(KINDS), st.integers(1, 14), iterations, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_binary_units_change_not_one_bit(seed, kind, d, iteration, dtype):
    """Of states, rounds, and what the certificate says."""
    most, tol = (40.0, 1e-4) if dtype is torch.float32 else (50.0, 1e-7)
    system = System.drawn(kind, seed, d, most, 2.0, dtype)
    one = System(kind, system.y0, system.matrix, torch.ones_like(system.units))
    there, here = (solved(each, tol, iteration=iteration) for each in (system, one))
    assert there.stats == here.stats
    assert torch.equal(there.ys, system.units * here.ys)
    assert torch.equal(torch.as_tensor(there.certificate.growth), torch.as_tensor(here.certificate.growth))
    ratios = [torch.as_tensor(sol.certificate.error / sol.certificate.allowed) for sol in (there, here)]
    assert torch.equal(*ratios)
