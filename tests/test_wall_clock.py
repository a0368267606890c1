"""The model of a solve's time on several devices."""

import pytest

from picardsolve import theory
from picardsolve.theory.wall_clock import latency_of

H200 = {1: 0.167, 3: 0.186, 4: 0.240, 8: 0.425, 16: 0.832}


def test_latencies_are_those_measured_and_lines_between_and_beyond():
    assert all(latency_of(rows, H200) == pytest.approx(seconds) for rows, seconds in H200.items())
    assert latency_of(2, H200) == pytest.approx((0.167 + 0.186) / 2)
    assert latency_of(32, H200) == pytest.approx(0.832 + 2 * (0.832 - 0.425))
    assert latency_of(5, {3: 0.2}) == 0.2
    assert latency_of(1, {2: 0.3, 4: 0.5}) == pytest.approx(0.3)  # never less than was measured


def test_seconds_are_rounds_of_the_largest_share():
    said = theory.wall_clock(steps=50, rounds=12, rows=16, latency=H200, devices=4, overhead=0.01)
    assert said.drift == pytest.approx(12 * 0.240)
    assert said.overhead == pytest.approx(0.12)
    assert said.gathered == 0
    assert said.sequential == pytest.approx(50 * 0.167)
    assert said.gain == pytest.approx(50 * 0.167 / (12 * 0.25))


def test_rows_cross_twice_and_messages_are_two_for_each_other_device():
    said = theory.wall_clock(10, 5, 8, {1: 1.0}, 4, bytes_per_row=100.0, bandwidth=1000.0, overhead=0.0, message=0.01)
    assert said.gathered == pytest.approx(5 * (2 * 6 * 0.1 + 6 * 0.01))
    assert theory.wall_clock(10, 5, 8, {1: 1.0}, 1, bytes_per_row=100.0).gathered == 0


def test_uneven_shares_are_as_long_as_the_largest():
    assert theory.wall_clock(10, 1, 9, {1: 1.0, 9: 9.0}, 4).drift == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["steps", "rounds", "rows", "devices", "bandwidth"])
def test_numbers_have_to_be_positive(name):
    given = {"steps": 10, "rounds": 5, "rows": 8, "latency": {1: 1.0}, "devices": 1, "bandwidth": 1.0, name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected a number > 0"):
        theory.wall_clock(**given)
    with pytest.raises(ValueError, match="latency: expected seconds"):
        theory.wall_clock(10, 5, 8, {})
