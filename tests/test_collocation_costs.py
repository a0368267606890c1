"""What a round of collocation costs beside the drift: operations are bounded whatever the batch, memory is linear."""

import tracemalloc

import pytest
import torch
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally

import picardsolve as ps

SKIPPED = 4  # rounds: until segments are in flight
# the aims are 150 for Picard and 250 for Newton; a round that checks segments takes Jacobians, and is above that
KINDS = ("operation", "kernel", "wait")
LIMITS = {"picard": (540, 208, 1), "secant": (645, 275, 1), "newton": (585, 258, 1)}
ITERATIONS = {"picard": ps.Picard(), "secant": ps.Secant(), "newton": ps.Newton()}


def rounds_of(name: str, batch: int) -> list[Tally]:
    """What the rounds of a solve counted, of samples that part ways."""
    seen: list[Tally] = []
    with SimulatedDevice() as device:
        y0 = 1 + 0.3 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def drift(t, y):
            seen.append(Tally(device.tally))
            with device.apart():
                return torch.stack([1.5 * y[..., 0] - y.prod(-1), y.prod(-1) - 3 * y[..., 1]], -1)

        how = {"integrator": ps.Collocation(), "iteration": ITERATIONS[name], "rtol": 1e-6, "atol": 1e-6}
        ps.solve(ps.ODE(drift), y0.to(DEVICE), [0.0, 10.0], batch_dims=1, max_rounds=16, throw=False, **how)
    return [after.since(before) for before, after in zip(seen[SKIPPED:], seen[SKIPPED + 1 :], strict=False)]


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("name", LIMITS)
def test_a_round_stays_within_its_limits(name, batch):
    rounds = rounds_of(name, batch)
    assert len(rounds) >= 10
    worst = max(rounds, key=lambda x: x.of("operation"))
    found = {kind: max(x.of(kind) for x in rounds) for kind in KINDS}
    allowed = dict(zip(KINDS, LIMITS[name], strict=True))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), f"{found} > {allowed}\n{worst.table('operation')}"


@pytest.mark.parametrize("name", ["picard", "newton"])
def test_operations_are_flat_in_the_batch(name):
    """Four times as many samples; what they add is the segments that one of them appends at once, at most twelve."""
    few, many = (max(x.of("kernel") for x in rounds_of(name, batch)) for batch in (40, 160))
    assert many <= 1.2 * few


@pytest.mark.parametrize("name", LIMITS)
def test_memory_is_linear_in_the_batch(name):
    """The largest that NumPy holds at once."""

    def most(batch: int) -> int:
        y0 = 1 + 0.3 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        how = {"integrator": ps.Collocation(), "iteration": ITERATIONS[name], "rtol": 1e-6, "atol": 1e-6}
        tracemalloc.start()
        try:
            ps.solve(ps.ODE(lambda t, y: torch.sin(y.flip(-1))), y0, [0.0, 3.0], batch_dims=1, **how)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, some, many = (most(batch) for batch in (20, 60, 180))
    assert some - few > 0
    assert many - some <= 1.3 * 3 * (some - few)
