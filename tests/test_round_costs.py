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
    "Euler, Picard": (101, 45, 2, 1),
    "Euler, Secant": (184, 89, 2, 1),
    "Euler, MultiSecant": (1788, 447, 2, 1),
    "Euler, Newton": (428, 112, 6, 1),
    "RK4, Picard": (136, 64, 2, 1),
    "RK4, Secant": (219, 108, 2, 1),
    "RK4, MultiSecant": (1823, 466, 2, 1),
    "RK4, Newton": (496, 143, 6, 1),
    "DDIM, Picard": (183, 79, 2, 1),
    "DDIM, MultiSecant": (1871, 477, 2, 1),
    "DDPM, MultiSecant": (1877, 476, 4, 1),
    "DPMSolver, MultiSecant": (1881, 479, 2, 1),
    "EulerMaruyama, Secant": (277, 134, 4, 1),
    "Milstein, Secant": (303, 151, 6, 1),
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
    assert len(rounds) >= 4
    found = dict(zip(KINDS, most(rounds), strict=True))
    allowed = dict(zip(KINDS, LIMITS[name], strict=True))
    worst = max(rounds, key=lambda x: x.of("operation"))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), f"{found} > {allowed}\n{worst.table('operation')}"
