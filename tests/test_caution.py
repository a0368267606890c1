"""How wide the adapter's next window may be, and which remembered calls are given back."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from picardsolve.integrations.diffusers.options import Options
from picardsolve.integrations.diffusers.report import Report
from picardsolve.integrations.diffusers.run.replay import Replay
from picardsolve.integrations.diffusers.window_limit import WindowLimit


def rests(caution: WindowLimit) -> int:
    """How many plain steps are taken before the next window."""
    count = 0
    while caution.pausing:
        caution.step()
        count += 1
    return count


def test_setbacks_in_a_row_cost_windows_and_rests():
    """0, 1, 2, 4, ... plain steps, windows a quarter as wide each time; a success makes the next rest short again."""
    caution, found = WindowLimit(64, 64), []
    for _ in range(5):
        caution.set_back()
        found.append((rests(caution), caution.cap))
    assert found == [(0, 16), (1, 4), (2, 2), (4, 2), (8, 2)]
    caution.success()
    caution.set_back()
    assert rests(caution) == 0


def test_windows_that_stall_are_halved_and_grow_again():
    caution = WindowLimit(64, 64)
    for _ in range(4):
        caution.round(64, 1)
    assert caution.cap == 64
    caution.round(64, 1)
    assert (caution.cap, caution.pausing) == (32, False)
    for _ in range(4):
        caution.round(32, 1)
    caution.round(32, 2)  # two steps: no stall, and not enough to grow
    for _ in range(4):
        caution.round(32, 1)
    assert caution.cap == 32
    caution.round(32, 9)
    assert caution.cap == 64
    caution.round(64, 64)
    assert caution.cap == 64


def test_a_window_of_two_that_stalls_rests_longest():
    caution = WindowLimit(64, 2)
    for _ in range(5):
        caution.round(2, 1)
    assert (rests(caution), caution.cap) == (16, 2)


@given(st.floats(0.01, 1), st.booleans(), st.integers(0, 2))
def test_a_remembered_output_is_given_back_for_inputs_within_tolerance(share, nan, step):
    """Of every sample, relative to its size; never at another step, with other arguments, or for another module."""
    net, other, tolerance = nn.Identity(), nn.Identity(), 1e-2
    replay = Replay(tolerance)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    if nan:
        x[0, 0] = torch.nan
    off = torch.zeros_like(x)
    off[1, 3] = tolerance * x[1].norm()
    replay.remember(1, 0, net, (x, 7), {}, x + 1)
    replay.keep(range(1, 3))
    hit = step in (1, 2)
    assert replay.recall(step, 0, net, (x + 0.99 * share * off, 7), {})[0] is hit
    assert not replay.recall(step, 0, net, (x + 1.01 * off, 7), {})[0]
    assert not replay.recall(step, 0, net, (x, 8), {})[0]
    assert not replay.recall(step, 0, other, (x, 7), {})[0]
    assert not replay.recall(step, 1, net, (x, 7), {})[0]


def test_a_remembered_output_that_was_written_to_is_not_given_back():
    """And from then on outputs are copies, that may be written to."""
    net, replay, x, out = nn.Identity(), Replay(1e-2), torch.ones(2, 5), torch.ones(2, 5)
    replay.remember(1, 0, net, (x,), {}, out)
    replay.keep(range(1, 2))
    assert replay.recall(1, 0, net, (x,), {})[1] is out
    out.mul_(2)
    assert replay.recall(1, 0, net, (x,), {}) == (False, None)
    fresh = torch.full((2, 5), 3.0)
    replay.remember(1, 0, net, (x,), {}, fresh)
    found, given_back = replay.recall(1, 0, net, (x,), {})
    assert found
    assert torch.equal(given_back, fresh)
    given_back.mul_(2)
    found, again = replay.recall(1, 0, net, (x,), {})
    assert found
    assert torch.equal(again, fresh)


def test_what_a_type_cannot_show_is_not_asked_of_it():
    options, report = Options(8), Report()
    assert options.settled_tolerance(torch.float32, report) == 1e-3
    assert not report.notes
    assert options.settled_tolerance(torch.bfloat16, report) == torch.finfo(torch.bfloat16).eps
    assert len(report.notes) == 1
    exact = Options("auto", 0.0)
    assert exact.settled_tolerance(torch.bfloat16, Report()) == 0
    assert options.widest(4) == 8
    assert exact.widest(4) == 4
