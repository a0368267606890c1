"""How many rows each device gets."""

import pytest

from picardsolve.distributed.shares import Shares


def told(shares, seconds, rows, rounds):
    for _ in range(rounds):
        own = shares.of_rows(rows)
        shares.note(own, [seconds[k](n) if n else None for k, n in enumerate(own)])
    return shares.of_rows(rows)


@pytest.mark.parametrize(("rows", "devices", "own"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (1, 4, [1, 0, 0, 0])])
def test_they_are_even_before_anything_is_known(rows, devices, own):
    assert Shares.of(devices).of_rows(rows) == own


def test_units_stay_whole():
    assert Shares.of(2).of_rows(9, 3) == [6, 3]
    assert Shares.of(3).of_rows(7, 3) == [3, 3, 1]


def test_a_slower_device_gets_fewer_so_that_all_are_done_together():
    assert told(Shares.of(2), [lambda n: 0.01 * n, lambda n: 0.03 * n], 32, 4) == [24, 8]
    fixed = [lambda n: 0.1 + 0.01 * n, lambda n: 0.1 + 0.02 * n]
    first, second = told(Shares.of(2), fixed, 30, 12)
    assert max(fixed[0](first), fixed[1](second)) < 1.1 * 0.3  # 20 and 10 rows take 0.3


def test_equal_devices_keep_even_shares_whatever_the_noise():
    noise = iter([1.0, 1.04, 0.97, 1.05, 0.99, 1.03, 0.98, 1.0] * 10)
    assert told(Shares.of(2), [lambda n: 0.01 * n * next(noise)] * 2, 32, 20) == [16, 16]


def test_a_device_that_has_recovered_is_found_out():
    shares, slow = Shares.of(2), [100.0]
    seconds = [lambda n: 0.01 * n, lambda n: slow[0] + 0.01 * n]
    assert told(shares, seconds, 32, 5) == [32, 0]
    slow[0] = 0.0
    for _ in range(60):
        own = shares.of_rows(32)
        shares.note(own, [seconds[k](n) if n else None for k, n in enumerate(own)])
    assert shares.of_rows(32) == [16, 16]


def test_a_device_that_is_dropped_gets_nothing():
    shares = Shares.of(3)
    shares.drop(1)
    assert shares.of_rows(9) == [5, 0, 4]
