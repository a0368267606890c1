"""What a round may cost a device beside the drift: numbers that cannot grow without anybody noticing.

The aims are 60 operations (40 for Picard), two copies to the device and one wait a round, whatever the width and the
batch. Where `LIMITS` are above that, they are what was measured when they were written, and are to fall.
"""

import pytest
from round_costs import PATHS, rounds_of
from tally import Tally

NOISE = "picardsolve/brownian"  # has limits of its own
KINDS = ("operation", "kernel", "copy to the device", "wait")
LIMITS = {
    "Euler, Picard": (88, 43, 9, 2),
    "Euler, Secant": (180, 90, 15, 2),
    "Euler, MultiSecant": (1790, 450, 19, 2),
    "Euler, Newton": (406, 107, 11, 2),
    "RK4, Picard": (125, 61, 13, 2),
    "RK4, Secant": (217, 108, 19, 2),
    "RK4, MultiSecant": (1827, 468, 23, 2),
    "RK4, Newton": (476, 137, 15, 2),
    "DDIM, Picard": (167, 75, 11, 2),
    "DDIM, MultiSecant": (1870, 483, 21, 2),
    "DDPM, MultiSecant": (1876, 483, 23, 2),
    "DPMSolver, MultiSecant": (1879, 485, 22, 2),
    "EulerMaruyama, Secant": (277, 136, 24, 2),
    "Milstein, Secant": (303, 153, 26, 2),
}
SHAPES = [(32, 4)]  # (width, batch) that the limits hold for


def most(rounds: list[Tally]) -> tuple[int, ...]:
    """Of each kind, in any of the rounds; the noise is left out of all but copies and waits."""
    beside = [x.outside(NOISE) for x in rounds]
    acts = (max(x.of(kind) for x in beside) for kind in KINDS[:2])
    return *acts, *(max(x.of(kind) for x in rounds) for kind in KINDS[2:])


def test_every_path_has_limits():
    assert LIMITS.keys() == PATHS.keys()


@pytest.mark.parametrize(("width", "batch"), SHAPES)
@pytest.mark.parametrize("name", PATHS)
def test_a_round_stays_within_its_limits(name, width, batch):
    rounds = rounds_of(PATHS[name], width, batch)
    assert len(rounds) >= 6
    found = dict(zip(KINDS, most(rounds), strict=True))
    allowed = dict(zip(KINDS, LIMITS[name], strict=True))
    worst = max(rounds, key=lambda x: x.of("operation"))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), f"{found} > {allowed}\n{worst.table('operation')}"
