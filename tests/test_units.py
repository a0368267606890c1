"""Components have units of their own: an equation in other units has the same solution, in those units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.integrate import solve_ivp
from torch import Tensor

import picardsolve as ps
from picardsolve.integrations.scipy import ParallelCollocation

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


# ---- other states, other calls


def binary(random: torch.Generator, *shape: int) -> Tensor:
    return 2.0 ** torch.round(60 * torch.rand(*shape, generator=random, dtype=torch.float64) - 30)


@given(seeds, st.sampled_from(["linear", "network", "relaxing"]), st.integers(1, 14))
@settings(max_examples=20, deadline=None)
def test_gradients_in_binary_units_are_the_gradients(seed, kind, d):
    """By the start, the times, a parameter; whatever carries them back."""
    system = System.drawn(kind, seed, d, 30.0, 2.0, torch.float64)
    weights = randn(generator(seed + 1), d)

    def gradients(units: Tensor) -> tuple[Tensor, ...]:
        pace = torch.ones((), dtype=torch.float64, requires_grad=True)
        ts, z0 = torch.tensor(TS, dtype=torch.float64).requires_grad_(), (units * system.y0).requires_grad_()
        scaled = System(kind, system.y0, system.matrix, units)
        sol = ps.solve(
            ps.ODE(lambda t, z: pace * scaled.scaled(t, z)),
            z0,
            ts,
            integrator=ps.Collocation(),
            rtol=1e-9,
            atol=1e-9 * units,
        )
        by_start, *others = torch.autograd.grad((sol.ys[-1] / units) @ weights, (z0, ts, pace))
        return by_start * units, *others

    for there, here in zip(gradients(system.units), gradients(torch.ones_like(system.units)), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-9)


@given(seeds, st.integers(1, 4), iterations)
@settings(max_examples=15, deadline=None)
def test_binary_units_of_positions_and_velocities(seed, n, iteration):
    """Of a second-order equation, whose time has a unit too."""
    random = generator(seed)
    q0, v0, w, units = (
        randn(random, n),
        randn(random, n),
        1 + torch.rand(n, generator=random).double(),
        binary(random, n),
    )

    def go(length: Tensor, clock: float) -> tuple[Tensor, Tensor]:
        term = ps.SecondOrderODE(lambda t, q: -((w / clock) ** 2) * q - length * (q / length).sin() / clock**2)
        start, ts = (length * q0, length * v0 / clock), clock * torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
        atol = (1e-8 * length, 1e-8 * length / clock)
        q, v = ps.solve(term, start, ts, integrator=ps.Collocation(), iteration=iteration, rtol=1e-8, atol=atol).ys
        return q / length, v / length * clock

    for there, here in zip(go(units, 2.0**20), go(torch.ones_like(units), 1.0), strict=True):
        assert torch.equal(there, here)


@given(seeds, iterations)
@settings(max_examples=15, deadline=None)
def test_parts_complex_numbers_and_samples_with_units_of_their_own(seed, iteration):
    """Against closed forms; every part and sample to its own tolerance."""
    random = generator(seed)
    u, w = binary(random, 2), binary(random, 4)
    given = {"integrator": ps.Collocation(), "iteration": iteration, "rtol": 1e-8}
    times = torch.tensor(TS, dtype=torch.float64)[:, None]

    y0 = {"a": u[0] * torch.ones(2).double(), "b": torch.zeros(1).double()}
    sol = ps.solve(
        ps.ODE(lambda t, y: {"a": -y["a"], "b": u[1] / u[0] * y["a"].sum(-1, keepdim=True)}),
        y0,
        TS,
        atol={"a": 1e-8 * u[0].expand(2), "b": 1e-8 * float(u[1])},
        **given,
    )
    torch.testing.assert_close(sol.ys["a"] / u[0], (-times).exp().expand(3, 2), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol.ys["b"] / u[1], 2 - 2 * (-times).exp(), rtol=1e-7, atol=1e-7)

    z0 = (w * (1 + 0.5j)).to(torch.complex128)
    sol = ps.solve(ps.ODE(lambda t, z: 1j * z), z0, TS, atol=1e-8 * w, **given)
    torch.testing.assert_close(sol.ys / w, (1 + 0.5j) * (1j * times).exp().expand(3, 4), rtol=1e-7, atol=1e-7)

    batch = w[:, None] * torch.stack([torch.ones(4), torch.zeros(4)], 1).double() * u
    term = ps.ODE(lambda t, y: torch.stack([-y[..., 0], u[1] / u[0] * y[..., 0]], -1))
    sol = ps.solve(term, batch, TS, atol=1e-8 * w[:, None] * u, batch_dims=1, **given)
    falls = (-times).exp()
    expected = torch.stack([falls, 1 - falls], -1).expand(3, 4, 2)
    torch.testing.assert_close(sol.ys / (w[:, None] * u), expected, rtol=1e-7, atol=1e-7)


@given(seeds, st.sampled_from(KINDS), st.integers(1, 6), st.sampled_from([None, ps.Picard(), ps.Secant(), ps.Newton()]))
@settings(max_examples=25, deadline=None)
def test_fixed_grids_in_any_units(seed, kind, d, iteration):
    """Root mean square over the components, each in its own tolerance, of the distance to the sequential answer."""
    system, ts = System.drawn(kind, seed, d, 12.0, 10.0, torch.float64), torch.linspace(0, 2, 65).double()
    term, z0 = ps.ODE(system.scaled), system.units * system.y0
    given = {"integrator": ps.RK4()}
    sol = ps.solve(term, z0, ts, iteration=iteration, rtol=1e-6, atol=1e-6 * system.units, **given)
    exact = ps.sequential(term, z0, ts, **given).ys
    off = (sol.ys - exact) / (1e-6 * (system.units + exact.abs()))
    assert off.square().mean(-1).sqrt().max() <= 2
    assert sol.certificate.recheck().error.max() < torch.inf  # solves again, to a fraction of the same


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e25])
@pytest.mark.parametrize("tolerance", [(1e-4, 1e-4), (1e-4, 0.0), (0.0, 1e-4)])
@pytest.mark.parametrize("iteration", [None, ps.Secant(), ps.Newton()])
@pytest.mark.parametrize("integrator", [ps.RK4(), ps.Collocation()])
def test_single_precision_whose_squares_it_cannot_hold(unit, tolerance, iteration, integrator):
    (rtol, atol), ts = tolerance, torch.linspace(0, 5, 101)
    rates, y0 = torch.tensor([[-1.0, 0.5], [-0.5, -0.3]]), torch.tensor([1.0, 2.0]) * unit
    given = {"integrator": integrator, "iteration": iteration, "rtol": rtol, "atol": atol * unit}
    got = ps.solve(ps.ODE(lambda t, y: y @ rates.T), y0, ts, **given).ys / unit
    exact = torch.stack([torch.matrix_exp(rates.double() * t) @ torch.tensor([1.0, 2.0]).double() for t in ts.double()])
    assert ((got - exact).abs() <= 2 * (atol + rtol * exact.abs()) + 1e-5).all()


# ---- what users have


HV = 6.626e-34 * 3e14  # of a photon, in J


def pumped(dtype: torch.dtype) -> tuple[Any, Tensor, np.ndarray]:
    """A pump of 1 J, a count of photons, an energy: rates, start, and where it is after 10 s."""
    rates = torch.tensor([[-1.0, 0, 0], [1 / HV, -0.5, 0], [0, HV * 0.5, 0]], dtype=torch.float64)
    units = np.diag([1, 1 / HV, 1])
    end = units @ linalg.expm(10 * np.linalg.inv(units) @ rates.numpy() @ units)[:, 0]
    return lambda t, y: rates.to(dtype) @ y, torch.tensor([1.0, 0, 0], dtype=dtype), end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [None, "picard", "secant", "newton", "dopri5"])
def test_photons_beside_joules(dtype, method):
    """By the default tolerance, which is one number."""
    f, y0, end = pumped(dtype)
    rtol = 1e-7 if dtype is torch.float64 else 64 * torch.finfo(dtype).eps
    got = ps.odeint(f, y0, torch.tensor([0.0, 10.0]), method=method)[-1].double().numpy()
    assert (abs(got - end) <= 10 * (1e-9 + rtol * abs(end))).all()


def robertson(t: Any, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    slow, fast, pairs = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([fast - slow, slow - fast - pairs, pairs], -1)


@pytest.mark.parametrize("atol", [1e-10, torch.tensor([1e-8, 1e-14, 1e-6], dtype=torch.float64)])
def test_robertsons_chemistry(atol):
    y0 = torch.tensor([1.0, 0, 0]).double()
    got = ps.solve(ps.ODE(robertson), y0, [0.0, 40.0], integrator=ps.Collocation(), rtol=1e-7, atol=atol).ys[-1]
    right = torch.tensor([0.7158270687194, 9.185534764558e-06, 0.2841637457458], dtype=torch.float64)
    assert ((got - right).abs() <= 10 * (atol + 1e-7 * right)).all()


@pytest.mark.parametrize("iteration", ITERATIONS)
@pytest.mark.parametrize("second_order", [False, True])
def test_an_orbit_in_metres_and_seconds(iteration, second_order):
    """The earth's, a quarter of a year; the third dimension stays 0."""
    mass, radius = 1.32712440018e20, 1.495978707e11
    speed = (mass / radius) ** 0.5
    quarter = np.pi / 2 * radius / speed
    (q0, v0), (q1, v1) = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in ([[radius, 0, 0], [0, speed, 0]], [[0, radius, 0], [-speed, 0, 0]])
    )

    def pull(t: Any, q: Tensor) -> Tensor:
        return -mass * q / torch.linalg.vector_norm(q, dim=-1, keepdim=True) ** 3

    term = ps.SecondOrderODE(pull) if second_order else ps.ODE(lambda t, y: (y[1], pull(t, y[0])))
    given = {"integrator": ps.Collocation(), "iteration": iteration, "rtol": 1e-9, "atol": (1e2, 1e-5)}
    q, v = ps.solve(term, (q0, v0), [0.0, quarter], **given).ys
    assert ((q[-1] - q1).abs() <= 10 * (1e2 + 1e-9 * radius)).all()
    assert ((v[-1] - v1).abs() <= 10 * (1e-5 + 1e-9 * speed)).all()


def test_scipys_tolerance_for_each_component():
    f, y0, end = pumped(torch.float64)
    matrix = np.stack([f(0, row).numpy() for row in torch.eye(3).double()], 1)
    got = solve_ivp(
        lambda t, y: matrix @ y,
        (0, 10),
        y0.numpy(),
        method=ParallelCollocation,
        vectorized=True,
        rtol=1e-8,
        atol=[1e-8, 1e8, 1e-8],
    )
    assert (abs(got.y[:, -1] - end) <= 1e-6 * abs(end) + [1e-7, 1e9, 1e-7]).all()


# ---- which shape means what


@pytest.mark.parametrize(
    ("y0", "batch_dims", "atol", "same"),
    [
        ((3,), 0, (3,), (3,)),
        ((2, 3), 0, (2, 3), (2, 3)),
        ((3,), 0, (1,), (3,)),
        ((4, 3), 1, (4,), (4, 3)),
        ((3, 3), 1, (3,), (3, 3)),  # one for each sample
        ((4, 3), 1, (1, 3), (4, 3)),
        ((4, 3), 1, (4, 3), (4, 3)),
        ((4,), 1, (4,), (4,)),
    ],
)
def test_shapes_of_a_tolerance(y0, batch_dims, atol, same):
    """What is allowed of a start whose error is 0 is the tolerance of whichever component is first."""
    start, given = torch.ones(y0).double(), torch.rand(atol, generator=generator(0)).double() * 1e-3
    spread = given[:, None] if batch_dims and len(atol) == 1 and len(y0) > 1 else given
    for integrator in (ps.Collocation(), ps.RK4()):
        ys = [
            ps.solve(ps.ODE(lambda t, y: -y), start, [0.0, 0.1, 0.2], integrator=integrator, rtol=0.0, **more).ys
            for more in (
                {"atol": given, "batch_dims": batch_dims},
                {"atol": spread.expand(same).contiguous(), "batch_dims": batch_dims},
            )
        ]
        assert torch.equal(*ys)


@pytest.mark.parametrize(
    ("y0", "batch_dims", "atol"), [((3,), 0, (2,)), ((2, 3), 0, (3,)), ((4, 3), 1, (3,)), ((4, 3), 1, (2, 3))]
)
@pytest.mark.parametrize("name", ["atol", "rtol"])
@pytest.mark.parametrize("integrator", [ps.Collocation(), ps.RK4()])
def test_shapes_that_are_refused(y0, batch_dims, atol, name, integrator):
    with pytest.raises(ValueError, match=rf"^{name}: expected a number, shape \(\d,\)"):
        ps.solve(
            ps.ODE(lambda t, y: -y),
            torch.ones(y0).double(),
            [0.0, 0.1],
            integrator=integrator,
            batch_dims=batch_dims,
            **{name: torch.full(atol, 1e-6)},
        )
