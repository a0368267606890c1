"""Functions that hold something for each sample, or mix samples: torchsde's answers, or a refusal."""

import pytest
import torch
import torchsde
from cases import assert_close, generator, randn

import picardsolve as ps
from picardsolve.integrations.torchsde import sdeint

BATCH, SIZE, MOTIONS = 5, 3, 2
Y0 = randn(generator(0), BATCH, SIZE)
TS = torch.tensor([0.0, 0.11, 0.4], dtype=torch.float64)
CONTEXT = randn(generator(1), 4, BATCH, SIZE)
MU, SIGMA = randn(generator(2), BATCH, SIZE), randn(generator(3), BATCH, 1).abs() + 0.1
LINEAR = torch.nn.Linear(SIZE, SIZE).double()
NORM = torch.nn.BatchNorm1d(SIZE).double()
ENCODED = torch.linspace(0, 0.3, 4, dtype=torch.float64)


def encoded(t, y):
    """torchsde's latent SDE: which context holds is looked up by time, with a branch on values."""
    i = min(torch.searchsorted(ENCODED, t, right=True), len(ENCODED) - 1)
    return torch.tanh(torch.cat([y, CONTEXT[i]], 1)[:, SIZE:] - y)


def filled(t, y):
    out = torch.zeros(y.shape[0], SIZE, dtype=y.dtype)
    out[:, 0] = MU[:, 0] - y[:, 0]
    return out


DRIFTS = {
    "a row for each sample": lambda t, y: MU - y,
    "a number for each sample": lambda t, y: SIGMA * torch.sin(y) - y,
    "the size of the batch": lambda t, y: torch.arange(y.shape[0], dtype=y.dtype)[:, None] - y,
    "particles that attract": lambda t, y: y.mean(0) - y,
    "later only": lambda t, y: torch.where(t < 0.2, -y, MU - y),
    "every pair": lambda t, y: (y[None] - y[:, None]).sin().mean(0),
    "batch norm": lambda t, y: NORM(LINEAR(y)),
    "a context by time": encoded,
    "writes into new memory": filled,
    "a branch on values": lambda t, y: MU - y if y.sum() > 0 else -MU - y,
    "times of all samples": lambda t, y: torch.cat([y[:, :1], t.expand(y.shape[0], SIZE - 1)], 1) - MU,
}
SCALES = {"the same": 0.3 + 0 * SIGMA, "its own": SIGMA}
METHODS = {
    "diagonal": ("euler", "milstein", "srk"),
    "additive": ("euler", "srk"),
    "scalar": ("euler", "milstein", "srk"),
    "general": ("euler",),
}


class Equation(torch.nn.Module):
    sde_type = "ito"

    def __init__(self, drift, scale, noise_type):
        super().__init__()
        self.f, self.scale, self.noise_type = drift, scale, noise_type

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return self.scale * torch.cos(y)
        columns = self.scale * torch.ones_like(y) if self.noise_type == "additive" else self.scale * torch.cos(y)
        motions = 1 if self.noise_type == "scalar" else MOTIONS
        return torch.stack([columns * (k + 1) for k in range(motions)], -1)


def motion(noise: str) -> torchsde.BrownianInterval:
    size = {"diagonal": SIZE, "scalar": 1}.get(noise, MOTIONS)
    return torchsde.BrownianInterval(
        0.0, 0.4, (BATCH, size), dtype=torch.float64, entropy=5, levy_area_approximation="space-time"
    )


def both(sde, method, **options):
    noise = motion(sde.noise_type)
    theirs = torchsde.sdeint(sde, Y0, TS, bm=noise, method=method, dt=0.02)
    ours = sdeint(sde, Y0, TS, bm=noise, method=method, dt=0.02, rtol=1e-12, atol=1e-13, options=options)
    return ours, theirs


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("noise", "method"), [(noise, method) for noise in METHODS for method in METHODS[noise]])
def test_the_whole_batch_is_torchsdes(drift, scale, noise, method):
    ours, theirs = both(Equation(DRIFTS[drift], SCALES[scale], noise), method, window=7)
    assert_close(ours.detach(), theirs.detach(), 1e-9)


@pytest.mark.parametrize("drift", ["a row for each sample", "particles that attract"])
@pytest.mark.parametrize("method", ["heun", "midpoint", "milstein"])
def test_of_stratonovich_too(drift, method):
    sde = Equation(DRIFTS[drift], SIGMA, "diagonal")
    sde.sde_type = "stratonovich"
    ours, theirs = both(sde, method, window=7)
    assert_close(ours, theirs.detach(), 1e-9)


@pytest.mark.parametrize("drift", ["a row for each sample", "particles that attract"])
@pytest.mark.parametrize("iteration", [ps.Picard(), ps.Jacobi(), ps.Newton(), ps.Parareal(blocks=4)])
@pytest.mark.parametrize("more", [{}, {"max_batch": BATCH}, {"max_batch": 3 * BATCH + 1}, {"max_batch": 1}])
def test_however_it_is_iterated(drift, iteration, more):
    ours, theirs = both(Equation(DRIFTS[drift], SIGMA, "diagonal"), "euler", iteration=iteration, **more)
    assert_close(ours, theirs, 1e-9)


def test_gradients_by_what_each_sample_holds_are_torchsdes():
    found = []
    for solve in (torchsde.sdeint, sdeint):
        mu, sigma, y0 = (leaf.clone().requires_grad_() for leaf in (MU, SIGMA, Y0))
        sde = Equation(lambda t, y, mu=mu: mu - y + y.mean(0), sigma, "diagonal")
        options = {} if solve is torchsde.sdeint else {"rtol": 1e-12, "atol": 1e-13}
        ys = solve(sde, y0, TS, bm=motion("diagonal"), method="euler", dt=0.02, **options)
        found.append(torch.autograd.grad((CONTEXT[:3] * ys).sum(), [mu, sigma, y0]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_it_is_still_solved_in_parallel():
    _, solution = ps.sdeint(
        Equation(DRIFTS["a row for each sample"], SIGMA, "diagonal"),
        *(Y0, [0.0, 1.0]),
        dt=1e-3,
        method="euler",
        options={"window": 100, "full_output": True},
    )
    assert solution.stats.steps == 1000
    assert solution.stats.rounds < 150


def test_a_sample_that_is_not_finite_is_named():
    def bursts(t, y):
        return torch.where(torch.arange(BATCH)[:, None] == 2, y**3 * 1e4, -y)

    y0 = torch.ones(BATCH, SIZE, dtype=torch.float64)
    with pytest.raises(ps.SolveError, match=r"of sample 2 at t = .* not finite"):
        ps.sdeint(Equation(bursts, SIGMA, "diagonal"), y0, [0.0, 1.0], dt=0.05, method="euler")


@pytest.mark.parametrize("noise", METHODS)
def test_what_cannot_be_given_row_by_row_is_refused(noise):
    """Rows of one sample, of another, or of several, as many as there are samples by chance."""
    sde = Equation(DRIFTS["a row for each sample"], SIGMA, noise)
    with pytest.raises(
        ValueError, match=r"^(drift|diffusion): failed when called with \d+ states.*belongs to a sample"
    ):
        ps.sdeint(sde, Y0, TS, dt=0.02, method="euler", options={"vectorized": True})


def own_row(t, y):
    return MU - y


def own_scale(t, y):
    return SIGMA + 0 * y


def decay(t, y):
    return -y


def answered(term, **how):
    """The states, or the words of a refusal."""
    try:
        return ps.solve(term, Y0, FINE, **how).ys, ""
    except ValueError as error:
        return None, str(error)


FINE = torch.linspace(0, 1, 13, dtype=torch.float64)
HELD = {  # the term that holds the tensor, and the one that is given it
    "rows": (ps.ODE(own_row), ps.ODE(lambda t, y, mu: mu - y), MU, ps.Euler()),
    "states": (ps.ODE(own_row, False), ps.ODE(lambda t, y, mu: mu - y, False), MU, ps.Euler()),
    "collocation": (ps.ODE(own_row), ps.ODE(lambda t, y, mu: mu - y), MU, ps.Collocation()),
    "an SDE": (ps.SDE(own_row, decay), ps.SDE(lambda t, y, mu: mu - y, lambda t, y, _: -y), MU, ps.EulerMaruyama()),
    "a diffusion": (
        *(ps.SDE(decay, own_scale), ps.SDE(lambda t, y, _: -y, lambda t, y, sigma: sigma + 0 * y)),
        *(SIGMA, ps.EulerMaruyama()),
    ),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("rows", [None, 1, BATCH - 1, BATCH, BATCH + 1])
def test_a_row_for_each_sample_is_right_or_refused(name, rows):
    held, given, tensor, integrator = HELD[name]
    how = {"integrator": integrator, "batch_dims": 1, "max_batch": rows, "tol": 1e-8}
    found, said = answered(held, **how)
    if found is None:
        assert "belongs to a sample" in said or "expected to return shape" in said
    else:
        assert_close(found, ps.solve(given, Y0, FINE, args=(tensor,), **how).ys, 1e-7)


def test_one_system_of_all_samples_is_what_torchdiffeq_solves():
    """`odeint` has no samples: its state is the whole batch."""
    for how in ({}, {"method": "rk4"}, {"options": {"vectorized": True}}):
        found = ps.odeint(own_row, Y0, TS, **how)
        assert_close(found, MU + (Y0 - MU) * torch.exp(-TS)[:, None, None], 1e-4)


def test_a_model_that_holds_a_row_for_each_sample_is_refused():
    model = ps.Denoiser(lambda x, t: 0.1 * x + MU, ps.schedules.EDM())
    with pytest.raises(ValueError, match=r"^model: failed when called with \d+ rows of 5 samples.*cond="):
        ps.solve(model, Y0, ps.grids.karras(10.0, 0.1, 20), integrator=ps.DDIM())


@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize("rows", [None, 2, 3, 4])
def test_as_many_rows_as_samples_are_the_samples(samples, window, rows):
    """Where a function could take its own tensor for theirs without an error: samples of different pace drift apart."""
    rates, seen = 10.0 ** torch.arange(samples).double(), []

    def drift(t, y):
        number = y[:, 0]
        seen.append(number.round().tolist())  # differentiated, too, by small changes
        return torch.stack([0 * number, -torch.sin(rates[number.long()] * y[:, 1])], -1)

    y0 = torch.stack([torch.arange(samples).double(), torch.ones(samples).double()], -1)
    how = {"batch_dims": 1, "integrator": ps.Euler(), "window": window, "max_batch": rows, "tol": 1e-6}
    ps.solve(ps.ODE(drift), y0, ps.grids.uniform(0.0, 1.0, 25), **how)
    in_order = [float(sample) for sample in range(samples)]
    assert all(numbers == in_order for numbers in seen if len(numbers) == samples)
    assert all(len(numbers) <= (rows or 1000) for numbers in seen)
