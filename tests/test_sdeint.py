"""torchsde's call: torchsde's own answers on the same noise, its steps and its times between them; what is refused."""

import pytest
import torch
import torchsde
from cases import assert_close, generator, randn

import picardsolve as ps
from picardsolve.integrations.torchsde import sdeint

BATCH, SIZE, MOTIONS = 3, 4, 2
Y0 = randn(generator(0), BATCH, SIZE)


class Equation(torch.nn.Module):
    """Functions of one time and a batch, or of many."""

    def __init__(self, noise_type: str, sde_type: str):
        super().__init__()
        self.noise_type, self.sde_type = noise_type, sde_type
        self.volatility = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def f(self, t, y):
        return torch.sin(y) - y * t

    def g(self, t, y):
        if self.noise_type == "additive":
            columns = [0.3 + 0.1 * t + 0 * y, 0.2 * t + self.volatility + 0 * y]
        elif self.noise_type == "general":
            columns = [self.volatility * torch.sin(y), 0.3 * torch.cos(y.roll(1, -1)) + 0.1 * t]
        else:
            diagonal = self.volatility * torch.cos(y) + 0.1 * t
            return diagonal if self.noise_type == "diagonal" else diagonal[..., None]
        return torch.stack(columns, -1)


def motion(noise: str, end: float, dtype=torch.float64) -> torchsde.BrownianInterval:
    size = {"diagonal": SIZE, "scalar": 1}.get(noise, MOTIONS)
    return torchsde.BrownianInterval(
        0.0, end, (BATCH, size), dtype=dtype, entropy=5, levy_area_approximation="space-time"
    )


SOLVED = [
    *((noise, "ito", "euler") for noise in ("additive", "diagonal", "scalar", "general")),
    *((noise, "ito", method) for noise in ("additive", "diagonal", "scalar") for method in ("milstein", "srk")),
    *((noise, "stratonovich", "milstein") for noise in ("additive", "diagonal", "scalar")),
    *((n, "stratonovich", m) for n in ("additive", "diagonal", "scalar", "general") for m in ("heun", "midpoint")),
]


@pytest.mark.parametrize(("noise", "kind", "method"), SOLVED)
def test_torchsde_on_the_same_noise_gives_the_same(noise, kind, method):
    """Ten steps of 0.03, a shorter last one, and a time between two steps; the same to rounding, in the same order."""
    sde, ts, bm = Equation(noise, kind), torch.tensor([0.0, 0.1, 0.3, 0.32], dtype=torch.float64), motion(noise, 0.32)
    theirs = torchsde.sdeint(sde, Y0, ts, bm=bm, method=method, dt=0.03)
    ours = sdeint(sde, Y0, ts, bm=bm, method=method, dt=0.03, rtol=0.0, atol=0.0)
    assert_close(ours.detach(), theirs.detach(), 1e-14)


@pytest.mark.parametrize(("noise", "kind"), [("scalar", "ito"), ("general", "ito"), ("general", "stratonovich")])
def test_the_default_method_is_torchsdes(noise, kind):
    sde, ts, bm = Equation(noise, kind), torch.tensor([0.0, 0.2], dtype=torch.float64), motion(noise, 0.2)
    theirs = torchsde.sdeint(sde, Y0, ts, bm=bm, dt=0.05)
    ours = sdeint(sde, Y0, ts, bm=bm, dt=0.05, rtol=0.0, atol=0.0)
    assert_close(ours.detach(), theirs.detach(), 1e-14)


@pytest.mark.parametrize("dt", [0.1, 0.01, 1 / 3])
def test_single_precision_times_are_added_up_as_torchsdes(dt):
    """A thousand roundings of a time are not a rounding of the noise there."""
    sde, ts = Equation("diagonal", "ito").float(), torch.tensor([0.0, 0.5, 2.0])
    bm = motion("diagonal", 2.0, torch.float32)
    theirs = torchsde.sdeint(sde, Y0.float(), ts, bm=bm, method="euler", dt=dt)
    ours = sdeint(sde, Y0.float(), ts, bm=bm, method="euler", dt=dt, rtol=0.0, atol=0.0)
    assert_close(ours.detach(), theirs.detach(), 2e-5)


def test_gradients_are_those_of_backpropagation_through_torchsde():
    y0, ts, bm = Y0.clone().requires_grad_(), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), motion("general", 1.0)
    sde, weights = Equation("general", "stratonovich"), randn(generator(1), 3, BATCH, SIZE)
    found = []
    for solve in (torchsde.sdeint, sdeint):
        options = {} if solve is torchsde.sdeint else {"rtol": 1e-11, "atol": 1e-12}
        loss = (weights * torch.sin(solve(sde, y0, ts, bm=bm, method="heun", dt=0.02, **options))).sum()
        found.append(torch.autograd.grad(loss, [y0, sde.volatility]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_its_own_path_other_names_and_many_times_at_once():
    class Named:
        noise_type, sde_type = "diagonal", "ito"
        drift, diffusion = (lambda self, t, y: -y), (lambda self, t, y: 0.3 * torch.ones_like(y))

    how = {"names": {"drift": "drift", "diffusion": "diffusion"}, "dt": 0.01, "method": "euler"}
    ts = torch.linspace(0, 1, 3)
    ys, sol = ps.sdeint(Named(), Y0.float(), ts, **how, options={"full_output": True, "vectorized": True, "window": 50})
    assert sol.stats.rounds < 30
    assert_close(ps.sdeint(Named(), Y0.float(), ts.tolist(), ps.BrownianPath(0), **how), ys, 1e-4)
    assert torch.equal(ys[0], Y0.float())


REFUSED = {
    "an unknown method": ({"method": "reversible_heun"}, ValueError, "method: .*'euler', 'milstein', 'srk', 'heun'"),
    "of the other interpretation": ({"method": "heun"}, ValueError, "method: 'heun' does not solve ito .*'srk'"),
    "adaptive": ({"adaptive": True}, ValueError, "adaptive: .*smaller dt"),
    "another state": ({"y0": torch.ones(3)}, TypeError, "y0: "),
    "no step": ({"dt": 0.0}, ValueError, "dt: "),
    "backward": ({"ts": [1.0, 0.0]}, ValueError, "ts: "),
    "not an SDE": ({"sde": ps.SDE(torch.sin, torch.cos)}, TypeError, "sde: .*solve"),
    "names": ({"names": {"prior_drift": "h"}}, ValueError, "names: .*'prior_drift'"),
    "options": ({"options": {"grad_free": True}}, ValueError, "options: .*'grad_free'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    change, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        ps.sdeint(**{"sde": Equation("diagonal", "ito"), "y0": Y0, "ts": [0.0, 1.0], **change})
