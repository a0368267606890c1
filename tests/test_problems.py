"""The bank of problems against closed forms, published numbers and scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import CLOSED, PROBLEMS, REFERENCES, TUNING, UNSEEN, Problem
from scipy.integrate import solve_ivp
from torch import Tensor

EVERY = list(PROBLEMS.values())
EXACT = [problem for problem in EVERY if problem.exact]
OTHERS = [problem for problem in EVERY if not problem.exact]

PUBLISHED = {  # first component, and the relative digits that are given
    "lotka_volterra": (3.258253845054, 1e-11),
    "lorenz_1": (-9.378570010925, 1e-11),
    "lorenz_5": (-6.5121136994, 1e-9),
    "van_der_pol_1": (1.832135187824, 1e-12),
    "van_der_pol_5": (-1.158701266031, 1e-12),
    "van_der_pol_1000_2000": (1.706167732170469, 1e-10),
    "brusselator": (0.498637071268, 1e-11),
    "henon_heiles": (-0.388854667884, 1e-11),
    "pleiades": (0.3706139143970502, 1e-11),
    "arenstorf": (0.994, 1e-10),
    "arenstorf_half": (-1.244822052027, 1e-11),
    "hires": (0.7371312573325668e-3, 1e-12),
    "oregonator": (0.1000814870318523e1, 1e-12),
}


def named(problems) -> Callable:
    return pytest.mark.parametrize("problem", problems, ids=lambda problem: problem.name)


def sights(problem: Problem) -> tuple[Tensor, Tensor]:
    """Three times and states between the first and the last."""
    weights = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    t0, t1 = problem.span
    return t0 + weights * (t1 - t0), problem.y0 + weights * (problem.y1 - problem.y0)


def test_names_and_references_match():
    assert len(PROBLEMS) == len(CLOSED) + len(TUNING) + len(UNSEEN)
    assert set(REFERENCES) == set(PROBLEMS)
    assert all(problem.unseen == (problem in UNSEEN) for problem in EVERY)


@named(EVERY)
def test_references_are_of_the_state_and_better_than_needed(problem):
    assert problem.y1.shape == problem.scale.shape == problem.y0.shape
    assert problem.accuracy <= 1e-14 * max(1, 1e-5 * problem.growth)  # 80 bits are rounded, too
    assert bool((problem.scale >= 0.99 * torch.maximum(problem.y0.abs(), problem.y1.abs())).all())


@named(EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_know_of_each_other(problem, dtype):
    t, y = (each.to(dtype) for each in sights(problem))
    together = problem.f(t, y)
    alone = torch.cat([problem.f(t[row : row + 1], y[row : row + 1]) for row in range(3)])
    bare = torch.func.vmap(problem.f)(t, y)
    assert together.shape == y.shape
    assert together.dtype == dtype
    assert bool(together.isfinite().all())
    terms = (y.abs().max() + together.abs().max()).item()
    for other in (alone, bare):
        torch.testing.assert_close(together, other, rtol=1e-4, atol=100 * torch.finfo(dtype).eps * terms)


@named([problem for problem in EVERY if problem.acceleration])
def test_second_order_problems_have_positions_first(problem):
    t, y = sights(problem)
    q, v = y.chunk(2, -1)
    torch.testing.assert_close(problem.f(t, y), torch.cat([v, problem.acceleration(t, q)], -1), rtol=0, atol=0)


@named(EXACT)
def test_closed_forms_start_at_y0_and_end_at_the_reference(problem):
    t0, t1 = problem.span
    start, end = problem.exact(np.array([t0, t1]))
    scale = problem.scale.numpy() + 1e-30
    assert np.max(np.abs(start - problem.y0.numpy()) / scale) < 1e-14
    assert np.max(np.abs(end - problem.y1.numpy()) / scale) < 1e-15 * max(100, problem.growth)


def scipy_solution(problem: Problem) -> np.ndarray:
    def f(t: float, y: np.ndarray) -> np.ndarray:
        return problem.f(torch.full((1, 1), t, dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()

    solved = solve_ivp(
        f,
        problem.span,
        problem.y0.numpy(),
        method="LSODA" if problem.stiff else "DOP853",
        rtol=1e-8,
        atol=1e-9 * problem.scale.numpy(),
    )
    return solved.y[:, -1]


@named(OTHERS)
def test_references_agree_with_scipy(problem):
    error = np.abs(scipy_solution(problem) - problem.y1.numpy()) / problem.scale.numpy()
    assert np.max(error) < 1e-7 * max(100, problem.growth)


@pytest.mark.parametrize(("name", "value", "digits"), [(name, *rest) for name, rest in PUBLISHED.items()])
def test_references_agree_with_published_numbers(name, value, digits):
    assert abs(PROBLEMS[name].y1[0].item() / value - 1) < digits
