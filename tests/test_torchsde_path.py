"""torchsde's Brownian motions as a path: torchsde's own values, for rows in any order and both directions."""

import pytest
import torch
import torchsde
from cases import generator, seeds
from hypothesis import given
from hypothesis import strategies as st

from picardsolve.integrations.torchsde import TorchsdePath

KINDS = {
    "interval": lambda: torchsde.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=torch.float64, entropy=1),
    "path": lambda: torchsde.BrownianPath(t0=0.0, w0=torch.zeros(3, 2, dtype=torch.float64)),
    "tree": lambda: torchsde.BrownianTree(t0=0.0, w0=torch.zeros(3, 2, dtype=torch.float64), t1=1.0, entropy=2),
    "single": lambda: torchsde.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=torch.float32, entropy=3),
}


def rows(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ends = torch.randperm(33, generator=generator(seed))[: 2 * count].double().reshape(2, -1) / 32
    return ends[0], ends[1], torch.randint(3, (count,), generator=generator(seed))


@given(st.sampled_from(sorted(KINDS)), seeds, st.integers(0, 6))
def test_increments_are_torchsdes(kind, seed, count):
    bm, (t0, t1, sample) = KINDS[kind](), rows(seed, count)
    got = TorchsdePath(bm).increments(t0, t1, sample, 2)
    assert got.dtype is torch.float64
    assert got.shape == (count, 2)
    for row, (a, b, k) in enumerate(zip(t0.tolist(), t1.tolist(), sample.tolist(), strict=True)):
        own = bm(min(a, b), max(a, b))[k].double()
        assert torch.allclose(got[row], own if a < b else -own, rtol=0, atol=1e-6 if kind == "single" else 1e-12)


@given(seeds, st.integers(1, 6))
def test_areas_are_torchsdes(seed, count):
    bm = torchsde.BrownianInterval(
        0.0, 1.0, size=(3, 2), dtype=torch.float64, entropy=1, levy_area_approximation="space-time"
    )
    t0, t1, sample = rows(seed, count)
    w, h = TorchsdePath(bm).areas(t0, t1, sample, 2)
    assert torch.allclose(w, TorchsdePath(bm).increments(t0, t1, sample, 2), rtol=0, atol=1e-12)
    for row, (a, b, k) in enumerate(zip(t0.tolist(), t1.tolist(), sample.tolist(), strict=True)):
        own, u = bm(min(a, b), max(a, b), return_U=True)
        assert torch.allclose(h[row], u[k] / abs(b - a) - own[k] / 2, rtol=0, atol=1e-10)


def test_a_system_without_samples_takes_all_elements():
    bm, one = KINDS["interval"](), torch.tensor([0])
    t0, t1 = torch.tensor([0.25], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(TorchsdePath(bm).increments(t0, t1, one, 6)[0], bm(0.25, 0.5).flatten())


def test_what_is_refused():
    path, one = TorchsdePath(KINDS["interval"]()), torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"bm: .*BrownianTree.*got int"):
        TorchsdePath(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bm: reaches from 0 to 1, times from 0 to 2"):
        path.increments(0 * one, 2 * one, zero, 2)
    with pytest.raises(ValueError, match=r"bm: reaches from 0 to 1"):
        path.check(-one, one, 1)
    with pytest.raises(ValueError, match=r"bm: has 3 samples, 4 are solved"):
        path.check(0 * one, one, 4)
    with pytest.raises(ValueError, match=r"bm: expected a shape of samples of 5 elements"):
        path.increments(0 * one, one, zero, 5)
    with pytest.raises(ValueError, match=r"bm: expected levy_area_approximation='space-time', got 'none'"):
        path.areas(0 * one, one, zero, 2)
