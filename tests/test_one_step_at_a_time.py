"""The sequential solver: what it adds to the steps, when it looks at a device, and where it stops.

A window of one step is the same solver. It makes no guesses that could be compared with anything.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from round_costs import PATHS, problem
from simulated_device import DEVICE, SimulatedDevice
from tally import Tally
from torch import Tensor

import picardsolve as ps

SAMPLES, SIZE = 3, 4
# most kernels of a step beside the drift, and of its noise; on a device, with the path kept
KERNELS = {"Euler, Picard": 5, "RK4, Picard": 13, "DDIM, Picard": 9, "DDPM, MultiSecant": 10}


def stepped(name: str, steps: int) -> Tally:
    """What a sequential solve of some steps asks a device for, beside the drift."""
    path = PATHS[name]
    with SimulatedDevice() as device:
        y0, mixing = problem(SAMPLES, SIZE, DEVICE)

        def drift(t: Tensor, y: Tensor) -> Tensor:
            with device.apart():
                return torch.tanh(y @ mixing) - 0.5 * y

        term = path.term(drift, device.counted_apart)
        batch: dict[str, Any] = {} if isinstance(term, ps.Denoiser) else {"batch_dims": 1}
        ts = ps.grids.uniform(*path.times, steps)
        before = Tally(device.tally)
        ps.sequential(term, y0, ts, integrator=path.integrator, **batch)
        return device.tally.since(before)


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_copies_nothing_and_waits_for_nothing(name):
    """Of 320 steps against 160: the noise is drawn in blocks, and the host looks at the states every 16 steps."""
    fewer, more = stepped(name, 160), stepped(name, 320)
    added = more.since(fewer)
    assert added.of("copy to the device") <= 4  # one more block of noise
    assert added.of("wait") <= 160 // 16 + 1
    kernels = added.outside("picardsolve/brownian").of("kernel") / 160
    assert kernels <= KERNELS[name], added.table("kernel")


def breaks(t: Tensor, y: Tensor) -> Tensor:
    """Not finite after the time that the sample's second number names."""
    return torch.where(t > y[..., 1:], torch.nan, torch.zeros_like(y))


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("times", [(0.31, 0.72, 9.0), (0.72, 0.31), (0.31,)])
def test_a_failed_step_is_told_as_on_the_host(times, window, save):
    """Samples fail at their own steps and leave the others alone, however seldom the host looks."""
    start = torch.tensor([[0.0, time] for time in times])

    def failed(device: torch.device) -> ps.SolveError:
        y0, how = start.to(device), {"integrator": ps.Euler(), "batch_dims": 1, "save": save}
        ts = ps.grids.uniform(0, 1, 50)
        solve = ps.sequential if window is None else partial(ps.solve, window=window)
        with pytest.raises(ps.SolveError) as caught:
            solve(ps.ODE(breaks), y0, ts, **how)
        return caught.value

    host = failed(torch.device("cpu"))
    with SimulatedDevice():
        there = failed(DEVICE)
        states = there.solution.ys.cpu()
    assert (there.step, there.time, str(there)) == (host.step, host.time, str(host))
    assert torch.equal(states.isnan(), host.solution.ys.isnan())
    assert torch.equal(states.nan_to_num(), host.solution.ys.nan_to_num())
    needed = max(np.searchsorted(np.arange(50) / 50, np.array(times), side="right").clip(max=49) + 1)
    assert host.solution.stats.rounds == needed  # on the host the solve ends where the last sample fails
    assert needed <= there.solution.stats.rounds < needed + 16


def test_a_window_of_one_step_is_the_sequential_solver():
    class Refused(ps.Iteration):
        def sweep(self, *arguments: Any) -> Any:
            raise AssertionError("a single step has nothing to be swept")

    y0 = torch.linspace(-1, 1, 6).reshape(2, 3)
    given: dict[str, Any] = {"integrator": ps.RK4(), "batch_dims": 1}
    term, ts = ps.ODE(lambda t, y: torch.sin(3 * y) - t), ps.grids.uniform(0, 2, 20)
    solution, reference = (
        ps.solve(term, y0, ts, window=1, iteration=Refused(), **given),
        ps.sequential(term, y0, ts, **given),
    )
    assert torch.equal(solution.ys, reference.ys)
    assert solution.stats == reference.stats
    assert float(solution.certificate.error.abs().max()) == 0
    assert [int(record.begin[0]) for record in solution.history] == list(range(20))
    assert all(bool(record.increments.isnan().all()) for record in solution.history)


def test_noise_is_not_drawn_far_beyond_what_is_needed(monkeypatch):
    """A few steps of a long solve of large states draw the noise of a few more steps."""
    drawn = []
    increments = ps.BrownianPath.increments

    def counted(self, t0: Tensor, *rest: Any) -> Tensor:
        drawn.append(len(t0))
        return increments(self, t0, *rest)

    monkeypatch.setattr(ps.BrownianPath, "increments", counted)
    term = ps.SDE(lambda t, y: -y, lambda t, y: torch.ones_like(y), noise="diagonal")
    how: dict[str, Any] = {"integrator": ps.EulerMaruyama(), "window": 1, "max_rounds": 12, "throw": False}
    ps.solve(term, torch.zeros(2**14), ps.grids.uniform(0, 1, 1000), **how)
    assert 12 <= sum(drawn) <= 2 * 12
