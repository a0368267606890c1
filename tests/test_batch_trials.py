"""Batches of the bank's problems in random company: what `tests/benchmarks/trust.py --batches` sweeps."""

from collections import Counter

import pytest
import torch
from batch_trials import attempt_batch, batches, by_index
from problems import PROBLEMS
from trials import applies, attempt

TOLERANCES = (1e-3, 1e-6)


@pytest.mark.parametrize("mode", ["auto", "picard", "second-order"])
def test_every_problem_is_drawn_once_at_every_tolerance(mode):
    drawn = list(batches(list(PROBLEMS.values()), mode, TOLERANCES, 8, seed=0))
    counts = Counter((draw.problem.name, draw.tol) for draws in drawn for draw in draws)
    wanted = [(name, tol) for name, each in PROBLEMS.items() if applies(each, mode) for tol in TOLERANCES]
    assert counts == Counter(wanted)
    assert max(map(len, drawn)) == 8
    assert all(len({len(draw.problem.y0) for draw in draws}) == 1 for draws in drawn)
    assert any(len({draw.problem.name for draw in draws}) > 2 for draws in drawn)
    assert drawn != list(batches(list(PROBLEMS.values()), mode, TOLERANCES, 8, seed=1))


def test_rows_are_answered_by_their_own_drift():
    chosen = [PROBLEMS[name] for name in ("lv", "duffing", "fitzhugh_nagumo")]
    t, y = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None], torch.rand(6, 2, dtype=torch.float64)
    index = torch.tensor([2, 0, 1, 1, 0, 2])
    out = by_index([each.f for each in chosen])(t, y, index)
    for row, which in enumerate(index.tolist()):
        torch.testing.assert_close(out[row], chosen[which].f(t[row : row + 1], y[row : row + 1])[0])


def test_samples_in_company_are_as_right_as_alone():
    names = ("lv", "duffing", "fitzhugh_nagumo", "brusselator")
    (draws,) = batches([PROBLEMS[name] for name in names], "auto", TOLERANCES, 64, seed=3)
    for draw, trial in zip(draws, attempt_batch(draws, "auto", 1500), strict=True):
        alone = attempt(draw.problem, draw.tol, "auto", 1500)
        assert trial.solved
        assert not trial.wrong
        assert trial.error == pytest.approx(alone.error, rel=1e-2, abs=1e-4)
        assert trial.estimate == pytest.approx(alone.estimate, rel=1e-2, abs=1e-4)


def test_a_sample_that_is_refused_is_told_from_its_neighbours():
    draws = next(batches([PROBLEMS["arenstorf"], PROBLEMS["kepler_0.3"]], "auto", (1e-13,), 64, 0))
    trials = {draw.problem.name: trial for draw, trial in zip(draws, attempt_batch(draws, "auto", 1500), strict=True)}
    assert not trials["arenstorf"].solved
    assert trials["kepler_0.3"].solved
    assert not trials["kepler_0.3"].wrong
