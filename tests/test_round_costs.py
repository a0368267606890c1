"""What a round may cost a device beside the drift: numbers that cannot grow without anybody noticing.

The aims are 60 operations (40 for Picard), two copies to the device and one wait a round, whatever the width and the
batch. Where `LIMITS` are above that, they are what was measured when they were written, with 4 % for constants that
one run makes and another finds made, and are to fall.
"""

import pytest
from round_costs import PATHS, rounds_of
from tally import Tally

NOISE = "picardsolve/brownian"  # has limits of its own
KINDS = ("operation", "kernel", "copy to the device", "wait")
LIMITS = {
    "Euler, Picard": (92, 36, 2, 1),
    "Euler, Secant": (173, 67, 2, 1),
    "Euler, MultiSecant": (255, 93, 2, 1),
    "Euler, Newton": (380, 105, 3, 1),
    "RK4, Picard": (111, 44, 2, 1),
    "RK4, Secant": (192, 75, 2, 1),
    "RK4, MultiSecant": (274, 101, 2, 1),
    "RK4, Newton": (433, 125, 3, 1),
    "DDIM, Picard": (164, 62, 2, 1),
    "DDIM, MultiSecant": (339, 122, 2, 1),
    "DDPM, MultiSecant": (338, 121, 3, 1),
    "DPMSolver, MultiSecant": (343, 122, 2, 1),
    "EulerMaruyama, Secant": (225, 94, 2, 1),
    "Milstein, Secant": (252, 114, 2, 1),
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
    rounds = rounds_of(PATHS[name], width, batch)
    assert len(rounds) >= 4
    found = dict(zip(KINDS, most(rounds), strict=True))
    allowed = dict(zip(KINDS, LIMITS[name], strict=True))
    worst = max(rounds, key=lambda x: x.of("operation"))
    assert all(found[kind] <= allowed[kind] for kind in KINDS), f"{found} > {allowed}\n{worst.table('operation')}"
