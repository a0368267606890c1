"""Noise where the state lives: the same path on every device, in a bounded number of operations, one copy a draw."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import assert_close, generator, random_grid
from hypothesis import given
from hypothesis import strategies as st
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import picardsolve as ps
from picardsolve.brownian import combination
from picardsolve.brownian.counter import mixed

OPERATIONS = 200
ROUNDED = 1e-5  # normals differ by a unit in the last place between libraries; a sum has some fifty below 6.8


def drawn(path: ps.BrownianPath, steps: int, samples: int, size: int, span: float = 1.0) -> torch.Tensor:
    """Increments and areas of the steps of samples, on the host."""
    ts = random_grid(5, steps, -0.3 * span, 0.7 * span)
    n, sample = torch.arange(steps).repeat(samples), torch.arange(samples).repeat_interleave(steps)
    w, h = path.areas(ts[n], ts[n + 1], sample, size)
    assert torch.equal(w.cpu(), path.increments(ts[n], ts[n + 1], sample, size).cpu())
    assert w.dtype == h.dtype == path.dtype
    assert w.device.type == h.device.type == torch.device(path.device).type
    return torch.stack([w.cpu(), h.cpu()])


def splitmix(x: int) -> int:
    """The finaliser of SplitMix64 in Python's integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_integers_are_the_same_bit_for_bit(numbers):
    expected = [(splitmix(x % 2**64) + 2**63) % 2**64 - 2**63 for x in numbers]
    assert mixed(np.array(numbers)).tolist() == expected
    with SimulatedDevice():
        assert mixed(torch.tensor(numbers).to(DEVICE)).tolist() == expected


def test_the_path_is_that_of_earlier_versions():
    """Numbers of version 0.1, with a seed for all and one for each, dyadic times and others, and across cells."""
    dyadic = ps.BrownianPath(0).increment(0.0, 0.5, (2, 2), torch.float64)
    other = ps.BrownianPath([3, 2**70]).increment(-0.3, 1500.7, (2, 2), torch.float64)
    assert_close(dyadic, torch.tensor([[0.414349746, -0.039341895], [0.838768664, 0.113202961]]).double(), 1e-6)
    assert_close(other, torch.tensor([[41.423290835, -28.493113264], [65.046239409, 22.024180090]]).double(), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("steps", "samples", "size", "span"), [(1, 1, 1, 1.0), (7, 3, 5, 4000.0), (64, 2, 33, 1.0)])
def test_the_path_is_the_same_on_every_device(dtype, steps, samples, size, span):
    host = drawn(ps.BrownianPath(1, 2.0**-30), steps, samples, size, span)
    with SimulatedDevice():
        there = drawn(ps.BrownianPath(1, 2.0**-30, dtype, DEVICE), steps, samples, size, span)
    bound = ROUNDED * span**0.5
    if dtype is torch.bfloat16:
        bound += 2**-8 * float(host.abs().max())
    assert_close(there.double(), host, bound)


def test_the_default_dtype_does_not_matter():
    expected = ps.BrownianPath(1).increment(0.1, 0.7, (2, 3), torch.float64)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(ps.BrownianPath(1).increment(0.1, 0.7, (2, 3), torch.float64), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def tally(steps: int, samples: int, size: int, areas: bool) -> Tally:
    """What one draw asks of a device."""
    ts, sample = torch.linspace(0, 3, steps + 1, dtype=torch.float64), torch.arange(samples).repeat_interleave(steps)
    path = ps.BrownianPath(0, device=DEVICE, dtype=torch.float32)
    ask = path.areas if areas else path.increments
    with SimulatedDevice() as device:
        ask(ts[:-1].repeat(samples), ts[1:].repeat(samples), sample, size)
        return device.tally


@pytest.mark.parametrize("areas", [False, True])
@pytest.mark.parametrize(("steps", "samples", "size"), [(1, 1, 1), (64, 64, 3), (32, 1, 4096), (200, 30, 2)])
@pytest.mark.parametrize("at_once", [1, combination._SMALL])
def test_a_draw_takes_a_bounded_number_of_operations(monkeypatch, steps, samples, size, areas, at_once):
    """Whether it is made at once or, as the largest are, in parts."""
    monkeypatch.setattr(combination, "_SMALL", at_once)
    seen = tally(steps, samples, size, areas)
    assert 0 < seen.of("kernel") <= seen.of("operation") <= OPERATIONS
    assert seen.of("copy to the device") == 1
    assert seen.of("wait") == seen.of("copy to the host") == seen.of("blocking copy") == 0


def test_parts_are_seamless(monkeypatch):
    ts, sample = torch.linspace(0, 3, 65, dtype=torch.float64), torch.zeros(64, dtype=torch.int64)
    with SimulatedDevice():
        path = ps.BrownianPath(0, device=DEVICE, dtype=torch.float32)
        whole = path.increments(ts[:-1], ts[1:], sample, 37).cpu()
        monkeypatch.setattr(combination, "_SMALL", 1)
        assert torch.equal(path.increments(ts[:-1], ts[1:], sample, 37).cpu(), whole)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that torch makes on the host."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                self.elements = max(self.elements, x.numel())
        return made


def on_the_host(size: int, device: torch.device) -> tuple[int, int]:
    """NumPy's peak in bytes, and the largest tensor on the host, of a draw of 16 rows."""
    ts = torch.linspace(0, 3, 17, dtype=torch.float64)
    path = ps.BrownianPath(0, device=device, dtype=torch.float32)
    tracemalloc.start()
    with SimulatedDevice(), Largest() as largest:
        path.areas(ts[:-1], ts[1:], torch.zeros(16, dtype=torch.int64), size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, largest.elements


def test_the_host_holds_nothing_of_the_size_of_the_result():
    on_the_host(1, DEVICE)
    (few, least), (many, most) = on_the_host(1, DEVICE), on_the_host(20_000, DEVICE)
    assert many < few + 20_000
    assert most == least
    bytes_of_host, elements_of_host = on_the_host(20_000, torch.device("cpu"))  # where it does
    assert bytes_of_host > many + 20_000
    assert elements_of_host >= 16 * 20_000


@dataclass(frozen=True)
class Plain:
    """A path of a user: the four arguments of the protocol, in float64 on the CPU."""

    path: ps.BrownianPath

    def increments(self, t0: torch.Tensor, t1: torch.Tensor, sample: torch.Tensor, size: int) -> torch.Tensor:
        return self.path.increments(t0, t1, sample, size)

    def areas(self, t0: torch.Tensor, t1: torch.Tensor, sample: torch.Tensor, size: int) -> tuple:
        return self.path.areas(t0, t1, sample, size)

    def check(self, t0: torch.Tensor, t1: torch.Tensor, samples: int) -> None:
        self.path.check(t0, t1, samples)


class Halved(ps.BrownianPath):
    """A path of a user that changes ours."""

    def increments(self, t0: torch.Tensor, t1: torch.Tensor, sample: torch.Tensor, size: int) -> torch.Tensor:
        return super().increments(t0, t1, sample, size) / 2


PROBLEMS = {
    "Euler-Maruyama": (ps.SDE(lambda t, y: -y, lambda t, y: 0.3 * torch.ones_like(y)), ps.EulerMaruyama(), (0.0, 1.0)),
    "SRID2": (ps.SDE(lambda t, y: -y, lambda t, y: 0.3 * torch.cos(y)), ps.SRID2(), (0.0, 1.0)),
    "DDPM": (ps.Denoiser(lambda x, t: torch.tanh(x), ps.schedules.EDM(), "epsilon"), ps.DDPM(), (3.0, 0.1)),
}


@pytest.mark.parametrize(
    "path", [ps.BrownianPath(2), Plain(ps.BrownianPath(2)), Halved(2)], ids=["ours", "a user's", "derived"]
)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_solve_integrates_the_same_noise_on_a_device(name, path):
    term, integrator, (start, end) = PROBLEMS[name]
    y0, ts = torch.randn(2, 3, generator=generator(0), dtype=torch.float64), ps.grids.uniform(start, end, 16)
    how = {"integrator": integrator, "brownian": path, "batch_dims": 1, "window": 6, "tol": 1e-9}
    expected = ps.solve(term, y0, ts, **how).ys
    with SimulatedDevice():
        found = ps.solve(term, y0.to(DEVICE), ts, **how).ys
        assert found.device == DEVICE
        assert_close(found.cpu(), expected, ROUNDED)
