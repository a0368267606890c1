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
    "Euler, Picard": (89, 35, 2, 1),
    "Euler, Secant": (167, 65, 2, 1),
    "Euler, MultiSecant": (246, 90, 2, 1),
    "Euler, Newton": (366, 101, 3, 1),
    "RK4, Picard": (107, 43, 2, 1),
    "RK4, Secant": (185, 73, 2, 1),
    "RK4, MultiSecant": (264, 98, 2, 1),
    "RK4, Newton": (417, 121, 3, 1),
    "DDIM, Picard": (176, 66, 2, 1),
    "DDIM, MultiSecant": (339, 126, 2, 1),
    "DDPM, MultiSecant": (347, 128, 3, 1),
    "DPMSolver, MultiSecant": (352, 129, 2, 1),
    "EulerMaruyama, Secant": (217, 91, 2, 1),
    "Milstein, Secant": (243, 110, 2, 1),
}
SHAPES = [(8, 1), (32, 4), (512, 4)]  # (width, batch) that one limit is for


def most(rounds: list[Tally]) -> tuple[int, ...]:
    """Of each kind, in any of the rounds; the noise is left out of all but copies and waits."""
    beside = [x.outside(NOISE) for x in rounds]
    acts = (max(x.of(kind) for x in beside) for kind in KINDS[:2])
    return *acts, *(max(x.of(kind) for x in rounds) for kind in KINDS[2:])


def test_every_path_has_limits():
    assert LIMITS.keys() == PATHS.keys()


@pytest.mark.parametrize(
    ("name", "width", "batch"),
    [(name, *shape) for name in PATHS for shape in SHAPES],
)
def test_a_round_stays_within_its_limits(name, width, batch):
    rounds_of(PATHS[name], width, batch)  # makes the constants that a process makes once
    rounds = rounds_of(PATHS[name], width, batch)
    assert len(rounds) >= 4
    found = dict(zip(KINDS, most(rounds), strict=True))
    allowed = dict(zip(KINDS, LIMITS[name], strict=True))
    worst = max(rounds, key=lambda x: x.of("operation"))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), f"{found} > {allowed}\n{worst.table('operation')}"
