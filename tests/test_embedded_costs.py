"""What adaptive steps cost beside the drift, and where they stop: counts, which do not depend on the machine's load."""

import math
import re
import warnings

import pytest
import torch
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally

import picardsolve as ps

METHODS = {"dopri5": (ps.Dopri5(), 6), "dopri8": (ps.Dopri8(), 12)}  # and their calls a step


def tallies(method, samples: int, numbers: int) -> list[Tally]:
    """What was counted up to each drift call of a solve, and up to its end."""
    seen = []
    with SimulatedDevice() as device:
        generator = torch.Generator().manual_seed(0)
        mixing = (torch.randn(numbers, numbers, generator=generator) / numbers**0.5).to(DEVICE)
        y0 = torch.randn(samples, numbers, generator=generator).to(DEVICE)

        def drift(t, y):
            seen.append(Tally(device.tally))
            with device.apart():
                return torch.tanh(y @ mixing) * torch.cos(3 * t)

        with torch.no_grad():
            ps.solve(ps.ODE(drift), y0, (0.0, 4.0), integrator=method, batch_dims=1, rtol=1e-4, atol=1e-4)
        seen.append(Tally(device.tally))
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_operations_of_a_step_do_not_depend_on_the_size(name):
    method, calls = METHODS[name]
    for samples, numbers in ((3, 4), (40, 4), (3, 40)):
        seen = tallies(method, samples, numbers)
        third = 2 + 2 * calls  # the first step with nothing to be made
        parts = {kind: seen[third + calls].of(kind) - seen[third].of(kind) for kind in ("kernel", "wait", "operation")}
        assert parts["wait"] == 1
        assert parts["kernel"] <= 2 * calls + 12
        assert parts["operation"] <= 8 * calls + 25
        assert seen[third + calls].of("blocking copy") == seen[third].of("blocking copy")


def test_operations_after_the_march_do_not_depend_on_the_batch():
    def after(samples: int) -> int:
        seen = tallies(ps.Dopri5(), samples, 3)
        steps = (len(seen) - 4) // 6
        return (seen[-1].of("kernel") - seen[-2].of("kernel")) / steps

    assert after(50) <= 1.2 * after(5)


def test_a_march_stops_soon_after_a_terminal_event():
    def solved(end: float, batch: int, terminal: bool) -> ps.Solution:
        def falls(t, y, height):
            return y[0] - height

        falls.terminal = terminal
        heights = torch.linspace(0.1, 0.5, batch, dtype=torch.float64)
        y0 = torch.ones(batch, 1, dtype=torch.float64)
        given = {"integrator": ps.Dopri5(max_step=0.1), "batch_dims": 1, "rtol": 1e-6, "atol": 1e-6}
        return ps.solve(ps.ODE(lambda t, y, height: -y), y0, (0.0, end), events=falls, args=(heights,), **given)

    for batch in (1, 7):
        short, long = (solved(end, batch, True) for end in (5.0, 1000.0))
        for sample, (one, other) in enumerate(zip(short.events[0], long.events[0], strict=True)):
            expected = -math.log(float(torch.linspace(0.1, 0.5, batch, dtype=torch.float64)[sample]))
            assert float(other.ts[0]) == pytest.approx(expected, abs=1e-5)
            assert float(one.ts[0]) == pytest.approx(expected, abs=1e-5)
        assert long.result is ps.Result.terminated
        assert long.stats.rounds <= 6 * (10 * math.log(10) + 8)
    assert solved(5.0, 7, False).result is ps.Result.solved


def test_an_event_that_is_not_one_does_not_stop_the_march(monkeypatch):
    """The march sees the signs at nodes; where no event is found between them, it is taken again to its end."""
    from picardsolve.embedded import marches

    calls = []

    def blind(*given):
        calls.append(given)
        return marches.Occurred((torch.zeros(0).double().numpy(),), None)

    def falls(t, y):
        return y[0] - 0.5

    falls.terminal = True
    monkeypatch.setattr(marches, "occurred", blind)
    y0 = torch.ones(1, dtype=torch.float64)
    sol = ps.solve(ps.ODE(lambda t, y: -y), y0, (0.0, 6.0), integrator=ps.Dopri5(max_step=0.1), events=falls, tol=1e-6)
    assert len(calls) == 2
    assert sol.result is ps.Result.solved
    assert float(sol.ys[-1, 0]) == pytest.approx(math.exp(-6), abs=1e-6)


def test_most_doubted_samples_are_not_solved_again(monkeypatch):
    """Growth makes the estimates of some samples too large; halved steps show that most of them hold."""
    generator = torch.Generator().manual_seed(3)
    first = 2 * torch.randn(2, 50, generator=generator, dtype=torch.float64) / 2**0.5
    second = 2 * torch.randn(50, 2, generator=generator, dtype=torch.float64) / 50**0.5
    y0 = torch.randn(256, 2, generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def solved(method, tol: float) -> ps.Solution:
        term = ps.ODE(lambda t, y: torch.tanh(y @ first) @ second)
        return ps.solve(term, y0, (0.0, 2.0), integrator=method, batch_dims=1, rtol=tol, atol=tol)

    def again(sol: ps.Solution) -> int:
        told = re.search(r"(\d+) samples? w\w+ solved again", " ".join(sol.notes))
        return int(told[1]) if told else 0

    loose, exact = solved(ps.Dopri5(), 1e-5), solved(ps.Dopri8(), 1e-10)
    error = (loose.ys[-1] - exact.ys[-1]).abs() / (1e-5 * (1 + exact.ys[-1].abs()))
    assert float(error.max()) <= 2
    assert float((loose.certificate.error / loose.certificate.allowed).max()) <= 1
    monkeypatch.setattr("picardsolve.embedded.marches._DOUBTED", 0.0)
    assert again(loose) < again(solved(ps.Dopri5(), 1e-5)) / 2


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_drifts(backend, vectorized):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    y0 = torch.randn(5, 2, dtype=torch.float64)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for f in (net, torch.compile(net, backend=backend)):
            term = ps.ODE(lambda t, y, f=f: f(y), vectorized)
            ys = ps.solve(term, y0, (0.0, 1.0), integrator=ps.Dopri5(), batch_dims=1, tol=1e-6).ys
            found.append((ys, *torch.autograd.grad(ys[-1].sum(), tuple(net.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_inference_mode():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2).double()
    for vectorized in (True, False):
        term = ps.ODE(lambda t, y: torch.tanh(net(y)), vectorized)
        given = {"integrator": ps.Dopri5(), "tol": 1e-7, "batch_dims": 1}
        y0 = torch.randn(3, 2, dtype=torch.float64)
        outside = ps.solve(term, y0, (0.0, 2.0), **given)
        with torch.inference_mode():
            inside = ps.solve(term, y0 + 0, (0.0, 2.0), **given)
        torch.testing.assert_close(inside.ys, outside.ys.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inside(0.5 * torch.ones(1)), outside(0.5 * torch.ones(1)).detach())


def test_a_last_step_that_was_refused_is_not_tried_again():
    """A step that ends where it must may be longer than was chosen: once, then it is as short as its error asks."""
    generator = torch.Generator().manual_seed(3)
    y0 = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    wild = 3 * torch.randn(2, 30, generator=generator, dtype=torch.float64)
    back = torch.randn(30, 2, generator=generator, dtype=torch.float64) / 3
    with torch.no_grad():
        for end in torch.linspace(0.3, 2.0, 12).tolist():
            term = ps.ODE(lambda t, y: torch.tanh(y @ wild) @ back)
            sol = ps.solve(term, y0, (0.0, end), integrator=ps.Dopri5(), batch_dims=1, tol=1e-3, max_rounds=2000)
            assert sol.result is ps.Result.solved
