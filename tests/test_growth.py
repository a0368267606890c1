"""How errors grow along a solution, against perturbed runs of the sequential solver; tolerances that are held."""

import math
import warnings

import pytest
import torch

import picardsolve as ps


def stacked(*parts):
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def kepler(t, y):
    q = y[..., :2]
    return torch.cat([y[..., 2:], -q / q.square().sum(-1, keepdim=True) ** 1.5], -1)


def pendulum(t, y):
    return stacked(y[..., 1], -torch.sin(y[..., 0]))


def oscillator(t, y):
    return stacked(5 * y[..., 1], -5 * y[..., 0])


def damped(t, y):
    return stacked(-0.2 * y[..., 0] + 6 * y[..., 1], -6 * y[..., 0] - 0.2 * y[..., 1])


def decays(t, y):
    return -y * torch.tensor([1.0, 2.0, 5.0]).to(y)


def growing(t, y):
    return 0.5 * y


def predator(t, y):
    a, b = y.unbind(-1)
    return 2 * stacked(a * (1 - b), b * (a - 1))


def van_der_pol(t, y):
    a, b = y.unbind(-1)
    return stacked(b, 2 * (1 - a * a) * b - a)


def henon_heiles(t, y):
    x, z, u, v = y.unbind(-1)
    return stacked(u, v, -x - 2 * x * z, -z - x * x + z * z)


def lorenz(t, y):
    a, b, c = y.unbind(-1)
    return stacked(10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c)


def lorenz96(t, y):
    return (torch.roll(y, -1, -1) - torch.roll(y, 2, -1)) * torch.roll(y, 1, -1) - y + 8


MASSES = torch.tensor([1.0, 3e-6, 9.5e-4], dtype=torch.float64)


def planets(t, y):
    """Sun, Earth and Jupiter, in years and astronomical units."""
    q, v = y[..., :9].unflatten(-1, (3, 3)), y[..., 9:]
    apart = q[..., None, :, :] - q[..., :, None, :]
    cubes = (apart.square().sum(-1) + torch.eye(3).to(y)) ** 1.5
    pull = (4 * math.pi**2 * MASSES.to(y) * (1 - torch.eye(3).to(y)) / cubes)[..., None] * apart
    return torch.cat([v, pull.sum(-2).flatten(-2)], -1)


YEAR = [0.0, 0, 0, 1, 0, 0, 5.2, 0, 0, 0, 0, 0, 0, 2 * math.pi, 0, 0, 2 * math.pi / 5.2**0.5, 0]
BANK = {
    "circular orbit": (kepler, [1.0, 0, 0, 1], 60, 3000),
    "eccentric orbit": (kepler, [0.3, 0, 0, (1.7 / 0.3) ** 0.5], 20, 3000),
    "pendulum": (pendulum, [1.0, 0], 20, 1000),
    "high pendulum": (pendulum, [3.0, 0], 30, 1500),
    "oscillator": (oscillator, [1.0, 0], 15, 1500),
    "damped oscillator": (damped, [1.0, 0], 15, 1500),
    "decays": (decays, [1.0, 1, 1], 5, 1000),
    "growth": (growing, [1.0, 2], 10, 1000),
    "Lotka-Volterra": (predator, [2.0, 1], 15, 1000),
    "Van der Pol": (van_der_pol, [2.0, 0], 15, 1500),
    "Henon-Heiles": (henon_heiles, [0.0, 0.1, 0.5, 0], 30, 1500),
    "Lorenz": (lorenz, [1.0, 1, 20], 10, 2000),
    "Lorenz 96": (lorenz96, (8 + torch.sin(2 * torch.arange(8.0))).tolist(), 3, 1200),
    "planets": (planets, YEAR, 4, 1200),
}


def perturbed(drift, y0, ts, size: float = 1e-9) -> tuple[torch.Tensor, float]:
    """The sequential states; the root mean square, over random directions, of the largest growth of a change of y0."""
    gen, scale = torch.Generator().manual_seed(0), y0.abs() + 1
    changes = size * scale * torch.randn(8, len(y0), generator=gen, dtype=torch.float64)
    starts = torch.cat([y0[None], y0 + changes])
    every = ps.sequential(ps.ODE(drift), starts, ts, integrator=ps.RK4(), batch_dims=1).ys
    scale = every[:, 0].square().mean(0).sqrt() + 1
    apart = ((every[:, 1:] - every[:, :1]) / scale).square().mean(-1)
    return every[:, 0], float((apart / apart[0]).amax(0).mean().sqrt())


@pytest.mark.parametrize("name", BANK)
def test_growth_is_what_perturbed_runs_show_and_the_tolerance_is_held(name):
    drift, start, span, steps = BANK[name]
    y0, ts = torch.tensor(start, dtype=torch.float64), ps.grids.uniform(0, span, steps)
    ref, true = perturbed(drift, y0, ts)
    for iteration in (None, ps.Secant()):
        sol = ps.solve(ps.ODE(drift), y0, ts, integrator=ps.RK4(), iteration=iteration, tol=1e-8)
        size = ref.square().mean(1).sqrt()
        assert ((sol.ys - ref).square().mean(1).sqrt() <= 2e-8 * (1 + size)).all()
        assert float(sol.certificate.error.max()) >= 0
        growth = float(sol.certificate.growth)
        assert true / 10 <= growth <= 10 * true or math.isnan(growth)
        if name in ("circular orbit", "Lorenz", "pendulum", "planets"):
            assert math.isfinite(growth)


@pytest.mark.parametrize("name", ["circular orbit", "high pendulum", "Lorenz"])
def test_newton_too(name):
    drift, start, span, steps = BANK[name]
    y0, ts = torch.tensor(start, dtype=torch.float64), ps.grids.uniform(0, span, steps)
    ref = ps.sequential(ps.ODE(drift), y0, ts, integrator=ps.RK4()).ys
    sol = ps.solve(ps.ODE(drift), y0, ts, integrator=ps.RK4(), iteration=ps.Newton(), tol=1e-8)
    assert ((sol.ys - ref).square().mean(1).sqrt() <= 2e-8 * (1 + ref.square().mean(1).sqrt())).all()


def test_the_readme_pendulum_raises_no_warning():
    ts = ps.grids.uniform(0, 20, 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ps.ConvergenceWarning)
        sol = ps.solve(ps.ODE(pendulum), torch.tensor([1.0, 0.0]).double(), ts, integrator=ps.RK4(), window=200)
    growth = float(sol.certificate.growth)
    assert 1 <= growth <= 24 or math.isnan(growth)


def test_samples_have_the_growth_that_they_have_alone():
    y0, ts = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.2, 0.1]]).double(), ps.grids.uniform(0, 20, 1000)
    how = {"integrator": ps.RK4(), "batch_dims": 1, "tol": 1e-8}
    together = ps.solve(ps.ODE(pendulum), y0, ts, **how)
    for sample in range(3):
        alone = ps.solve(ps.ODE(pendulum), y0[sample : sample + 1], ts, **how)
        torch.testing.assert_close(together.certificate.growth[sample], alone.certificate.growth[0], rtol=1e-9, atol=0)
        torch.testing.assert_close(together.ys[:, sample], alone.ys[:, 0], rtol=1e-12, atol=1e-13)


def test_what_is_not_known_is_said_as_not_known():
    """Of states of many numbers no Jacobian is taken: growth is NaN, and the certificate says so."""
    y0, ts = torch.linspace(0, 1, 200).double(), ps.grids.uniform(0, 20, 1000)
    sol = ps.solve(ps.ODE(lambda t, y: 3 * (y.roll(1, -1) - y.roll(-1, -1))), y0, ts, integrator=ps.RK4(), tol=1e-6)
    assert math.isnan(float(sol.certificate.growth))
    assert "not known" in str(sol.certificate)


def test_units_change_nothing_of_growth():
    """The same orbit in metres and seconds."""
    unit = torch.tensor([1.5e11, 1.5e11, 3e4, 3e4]).double()
    y0, ts = torch.tensor([1.0, 0, 0, 1]).double(), ps.grids.uniform(0, 30, 2000)
    plain = ps.solve(ps.ODE(kepler), y0, ts, integrator=ps.RK4(), rtol=1e-8, atol=1e-12)
    scaled = ps.ODE(lambda t, y: unit * kepler(t, y / unit))
    large = ps.solve(scaled, unit * y0, ts, integrator=ps.RK4(), rtol=1e-8, atol=1e-3)
    assert float(large.certificate.growth) == pytest.approx(float(plain.certificate.growth), rel=3)


@pytest.mark.parametrize(
    ("size", "steps", "end"), [(20, 30, 1.5), (24, 60, 3), (40, 100, 5), (64, 64, 3), (64, 200, 10)]
)
def test_growth_is_known_for_states_of_every_size_on_grids_of_every_length(size, steps, end):
    """Where pieces are single steps each is differentiated once: that is never too dear."""
    y0 = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = ps.grids.uniform(0, end, steps)
    sol = ps.solve(ps.ODE(lorenz96), y0, ts, integrator=ps.RK4(), tol=1e-5)
    ref = ps.sequential(ps.ODE(lorenz96), y0, ts, integrator=ps.RK4())
    off = ((sol.ys - ref.ys).abs() / (1e-5 * (1 + ref.ys.abs()))).square().mean(-1).sqrt().max()
    assert off <= 1
    assert bool(sol.certificate.growth.isfinite())
    assert sol.certificate.verify().holds
