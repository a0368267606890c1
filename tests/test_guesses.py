"""Guesses never change the answer; each is exact where its idea is exact; what they are given is checked."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    HALF,
    SAMPLERS,
    Case,
    any_case,
    assert_close,
    company,
    denoiser_cases,
    generator,
    numerics,
    ode_cases,
    randn,
    random_grid,
    seeds,
    trajectories,
    wild,
    windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.guesses import Entering, UserGuess
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

DOUBLE = (torch.float64,)
ODE_SAMPLERS = tuple(
    s
    for s in SAMPLERS
    if not getattr(s, "eta", 0) and s != ps.DDPM() and not getattr(s, "sde", 0) and not getattr(s, "s_churn", 0)
)


def fewest(steps: int, window: int) -> int:
    """Rounds of a solve whose windows are all accepted as they were guessed."""
    return -(-steps // window)


# ---- the answer


@pytest.mark.parametrize("dtypes", [DOUBLE, (torch.float32,), HALF])
@settings(max_examples=10)
@given(data=st.data())
def test_from_any_trajectory_to_the_sequential_answer(dtypes, data):
    case = data.draw(any_case(dtypes) if dtypes != HALF else st.one_of(ode_cases(HALF), denoiser_cases(dtypes=HALF)))
    how, ref = data.draw(numerics(case.term)) | {"guess": data.draw(trajectories(case))}, case.sequential()
    sol = case.solve(tol=0, **how)
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))
    assert sol.stats.rounds <= case.steps * case.stages
    k = data.draw(st.integers(1, case.steps))
    part = case.solve(tol=0, max_rounds=k * case.stages, throw=False, **how)
    assert_close(part.ys[: k + 1], ref.ys[: k + 1], case.rounding(ref.ys))


@given(st.data())
def test_polynomials_on_samplers(data):
    case = data.draw(denoiser_cases(ODE_SAMPLERS))
    how, ref = (
        data.draw(numerics(case.term)) | {"guess": ps.Polynomial(data.draw(st.integers(1, 5)))},
        case.sequential(),
    )
    sol = case.solve(tol=0, **how)
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))
    assert sol.stats.rounds <= case.steps * case.stages


@settings(max_examples=10)
@given(st.data())
def test_the_trajectory_of_one_sample_is_nothing_to_another(data):
    case, singles = data.draw(company())
    guess, how = data.draw(trajectories(case)), data.draw(numerics(case.term))
    tol = data.draw(st.sampled_from([0, 1e-3]))
    together = case.solve(tol=tol, **how | {"guess": guess})
    for sample, single in enumerate(singles):
        if sample and not isinstance(case.term, ps.Denoiser):
            continue  # a faster drift amplifies rounding beyond the bound
        own = ps.FromTrajectory(guess.previous[:, sample : sample + 1], guess.noise)
        by_itself = single.solve(tol=tol, **how | {"guess": own})
        assert_close(together.ys[:, sample], by_itself.ys[:, 0], case.rounding(by_itself.ys))
        if tol:
            begins = [int(record.begin[sample]) for record in together.history]
            assert begins[: len(by_itself.history)] == [int(record.begin[0]) for record in by_itself.history]


@given(seeds, windows, st.integers(10, 40))
def test_how_far_a_polynomial_looks_does_not_depend_on_the_company(seed, window, steps):
    """A sample beside one that falls behind changes in every round by what it changes by alone."""
    term, y0 = ps.ODE(lambda t, y, pace: pace * torch.sin(3 * y + t)), randn(generator(seed), 2, 3)
    how = {"integrator": ps.Euler(), "window": window, "tol": 1e-4, "guess": ps.Polynomial(), "batch_dims": 1}
    ts, pace = ps.grids.uniform(0, 2, steps), torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    together = ps.solve(term, y0, ts, args=(pace,), **how)
    alone = ps.solve(term, y0[:1], ts, args=(pace[:1],), **how)
    for one, other in zip(together.history, alone.history, strict=False):
        width = int(other.width[0])
        assert int(one.width[0]) == width
        changes = one.increments[:width, 0], other.increments[:width, 0]  # NaN where one step at a time is taken
        assert torch.allclose(*changes, rtol=1e-6, atol=1e-12, equal_nan=True)


# ---- where a guess is exact, every window is accepted at once


@given(st.data(), windows)
def test_the_answer_itself_is_accepted_at_once(data, window):
    case = data.draw(any_case(DOUBLE))
    ref = case.sequential()
    stored = data.draw(st.sampled_from([ref, ref.ys]))
    sol = case.solve(tol=1e-3, window=window, stop="increment", guess=ps.FromTrajectory(stored))
    assert sol.stats.rounds == fewest(case.steps, window) * case.stages
    grid = ref.ts.tolist()
    known = case.solve(
        tol=1e-3, window=window, stop="increment", guess=lambda ts, y: ref.ys[[grid.index(t) for t in ts.tolist()]]
    )
    assert known.stats.rounds == sol.stats.rounds


@given(st.data(), windows)
def test_an_ode_that_only_starts_elsewhere(data, window):
    """y' = f(t): two solutions are a constant apart."""
    ts = random_grid(data.draw(seeds), data.draw(st.integers(1, 30)), 0.0, 2.0)
    term = ps.ODE(lambda t, y: torch.cos(t) + torch.zeros_like(y))
    before, after = randn(generator(data.draw(seeds)), 2, 3)
    how = {"integrator": ps.Heun(), "tol": 1e-9, "window": window, "stop": "increment"}
    previous = ps.solve(term, before, ts, **how)
    sol = ps.solve(term, after, ts, guess=ps.FromTrajectory(previous), **how)
    assert sol.stats.rounds == 2 * fewest(len(ts) - 1, window)


OF_SAMPLES = [s for s in SAMPLERS if isinstance(s, ps.DDIM | ps.DDPM | ps.DPMSolver)]  # steps are of predicted samples
CONSTANT = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def constant_sampler(seed: int, steps: int, integrator: ps.Integrator) -> Case:
    """A model that always predicts the same clean sample, and a grid that ends in it."""
    term = ps.Denoiser(lambda x, t: CONSTANT.expand_as(x), ps.schedules.VP(lambda t: torch.exp(-t)), "sample")
    ts, y0 = random_grid(seed, steps, 3.0, 0.0, shortest=1.0), randn(generator(seed), 2, 3)
    return Case("constant", term, y0, ts, integrator, growth=1, weight=1, batch_dims=1)


@given(seeds, st.integers(1, 30), windows, st.sampled_from(OF_SAMPLES))
def test_a_sampler_that_only_starts_elsewhere(seed, steps, window, integrator):
    """With a fixed clean sample two trajectories approach each other as the steps shrink their states."""
    case = constant_sampler(seed, steps, integrator)
    previous = replace(case, y0=case.y0.flip(0) + 1).sequential()
    sol = case.solve(tol=1e-6, window=window, stop="increment", guess=ps.FromTrajectory(previous))
    assert sol.stats.rounds == fewest(steps, window)


@given(seeds, st.integers(1, 30), windows, st.sampled_from(OF_SAMPLES))
def test_a_sampler_with_new_noise_towards_the_sample_of_the_old(seed, steps, window, integrator):
    case = constant_sampler(seed, steps, integrator)
    previous = replace(case, seed=case.seed + 1).sequential()
    sol = case.solve(tol=1e-6, window=window, stop="increment", guess=ps.FromTrajectory(previous, noise="new"))
    assert sol.stats.rounds == fewest(steps, window)


@given(st.integers(1, 4), st.integers(0, 8), seeds)
def test_a_polynomial_is_extrapolated_exactly(degree, more, seed):
    """y = t^degree, over unequal steps, as soon as the window holds as many states as are to be guessed."""
    width = degree + more
    ts = random_grid(seed, 3 * width + 2, 0.0, 1.0, shortest=1.0)
    exact = (ts**degree).to(torch.float64)[:, None, None]
    steps = (exact.diff(dim=0) / ts.diff()[:, None, None])[:, 0, 0]  # a drift that Euler integrates to y
    term = ps.ODE(lambda t, y: steps[torch.searchsorted(ts, t.flatten())][:, None] + 0 * y)
    y0 = exact[0, 0]
    problem = Problem(term, Layout.of(y0, 0), ts, (), ps.BrownianPath(0))
    chain = ps.Euler().chain(problem)

    def after_two_rounds(guess: ps.Guess) -> torch.Tensor:
        settings = Settings(width, ps.Picard(), guess.prepared(problem, chain), Increment(Tolerance(atol=1e-9)))
        window = Window(chain, y0[None], settings)
        while int(window.begin[0]) < width + 1:
            window.tell(chain.evaluate(window.ask()))
        begin = int(window.begin[0])
        return window.x - exact[begin : begin + len(window.x)]

    assert after_two_rounds(ps.Polynomial(degree)).abs().max() < 1e-9
    if degree > 1:
        assert after_two_rounds(ps.Polynomial(degree - 1)).abs().max() > 1e-9


# ---- what a function of the user's is given


@given(st.data(), windows)
def test_each_sample_is_guessed_at_its_own_times(data, window):
    """The sequential states for even samples, anything for the others: these fall behind, those do not."""
    case, _ = data.draw(company())
    ref, grid = case.sequential().ys, case.ts.tolist()
    odd = (torch.arange(len(case.y0)) % 2 == 1).reshape(-1, *[1] * (case.y0.dim() - 1))
    calls = []

    def guess(ts, y):
        assert (y.shape, y.dtype, ts.dtype) == (case.y0.shape, case.y0.dtype, case.y0.dtype)
        first = grid.index(float(ts[0]))
        assert ts.tolist() == grid[first : first + len(ts)]
        assert 1 <= len(ts) <= window
        calls.append(first)
        return torch.where(odd, wild(ts, y), ref[first : first + len(ts)])

    sol = case.solve(tol=1e-3, window=window, stop="increment", guess=guess)
    for sample in range(0, len(case.y0), 2):
        begins = [int(record.begin[sample]) for record in sol.history]
        expected = [min(k * window, case.steps) for k in range(len(begins))]
        assert begins == expected
    assert calls[0] == 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 6))
def test_states_said_for_one_time_are_not_used_at_another(begins, count):
    ts, start = ps.grids.uniform(0, 1, 10), torch.zeros(len(begins), 1, dtype=torch.float64)
    guess = UserGuess(lambda ts, y: ts[:, None, None].expand(-1, *y.shape), Layout.of(start, 1), ts)
    n = np.minimum(np.array(begins) + np.arange(count)[:, None], 9)
    wanted = np.minimum(count, 10 - np.array(begins))
    states = guess.ahead(Entering(None, n, wanted, start, None, None, None))
    for sample, begin in enumerate(begins):
        said = states[: wanted[sample], sample, 0]
        assert torch.equal(said, ts[begin + 1 : begin + 1 + len(said)])


@given(st.integers(1, 30), windows, st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_copies_stand_in_for_what_is_not_finite(steps, window, value):
    """y' = 0, so that copies are exact."""
    bad, y0 = torch.full((steps + 1, 3), value), torch.ones(3)
    for guess in (ps.FromTrajectory(bad), lambda ts, y: bad[: len(ts)]):
        term, ts = ps.ODE(lambda t, y: 0 * y), ps.grids.uniform(0, 1, steps)
        sol = ps.solve(term, y0, ts, integrator=ps.Euler(), window=window, stop="increment", guess=guess)
        assert sol.stats.rounds == fewest(steps, window)


@given(st.data())
def test_structured_trajectories(data):
    """A dict of parts gives what one tensor of all elements gives, whatever the order of its keys."""
    batch = data.draw(st.sampled_from([0, 2]))
    lead, gen = [batch] if batch else [], generator(data.draw(seeds))
    y0, previous = randn(gen, *lead, 5), randn(gen, 13, *lead, 5)

    def split(flat):
        return {"b": flat[..., :4].unflatten(-1, (2, 2)), "a": flat[..., 4]}

    def f(t, tree):
        return {"a": torch.sin(tree["b"].sum((-1, -2)) + t[..., 0, 0]), "b": -tree["b"] * tree["a"][..., None, None]}

    def flat_f(t, y):
        tree = f(t[..., None], split(y))
        return torch.cat([tree["b"].flatten(-2), tree["a"][..., None]], -1)

    how = {"integrator": ps.Heun(), "window": data.draw(windows), "tol": 1e-4, "batch_dims": int(batch > 0)}
    ts = ps.grids.uniform(0, 1, 12)
    whole = ps.solve(ps.ODE(flat_f), y0, ts, guess=ps.FromTrajectory(previous), **how)
    tree = ps.solve(ps.ODE(f), split(y0), ts, guess=ps.FromTrajectory(dict(reversed(split(previous).items()))), **how)
    assert tree.stats.rounds == whole.stats.rounds
    for key, part in split(whole.ys).items():
        assert_close(tree.ys[key], part, 1e-12)


# ---- what is refused

Y, TS = torch.ones(3), ps.grids.uniform(0.0, 1.0, 8)
KNOWN = torch.ones(9, 3)


def solve_with(guess, term=None, **more):
    term = term or ps.ODE(lambda t, y: -y)
    return ps.solve(term, more.pop("y0", Y), TS, guess=guess, **{"integrator": ps.Euler(), **more})


def brownian_motion():
    return ps.SDE(lambda t, y: -y, lambda t, y: torch.ones_like(y))


REFUSED = {
    "a trajectory too short": (lambda: solve_with(ps.FromTrajectory(KNOWN[1:])), ValueError, r"9 times.*\(8, 3\)"),
    "a trajectory of one state": (lambda: solve_with(ps.FromTrajectory(Y)), ValueError, r"\(9, 3\), got \(3,\)"),
    "a trajectory of integers": (lambda: solve_with(ps.FromTrajectory(KNOWN.long())), TypeError, "got torch.int64"),
    "a trajectory of numbers": (lambda: solve_with(ps.FromTrajectory(3.0)), TypeError, "expected .*, got float"),
    "a trajectory of another structure": (
        lambda: solve_with(ps.FromTrajectory((KNOWN, KNOWN))), TypeError, "structure of y0, got tuple"
    ),
    "the last state only": (
        lambda: solve_with(ps.FromTrajectory(solve_with(None, save="last"))), ValueError, "save='all'"
    ),
    "other noise for an SDE": (
        lambda: solve_with(ps.FromTrajectory(KNOWN, "new"), brownian_motion()), TypeError, "the same brownian"
    ),
    "an unknown noise": (lambda: ps.FromTrajectory(KNOWN, "old"), ValueError, "'same', 'new'"),
    "a polynomial for an SDE": (
        lambda: solve_with(ps.Polynomial(), brownian_motion()), TypeError, r"pass FrozenOutput\(\)"
    ),
    "a polynomial for a sampler with noise": (
        lambda: constant_sampler(0, 4, ps.DDPM()).solve(guess=ps.Polynomial()), TypeError, r"pass FrozenOutput\(\)"
    ),
    "degree 0": (lambda: ps.Polynomial(0), ValueError, "expected an integer >= 1"),
    "a degree that is no integer": (lambda: ps.Polynomial(1.5), TypeError, "expected an integer >= 1"),
    "a function of one state": (lambda: solve_with(lambda ts, y: y), ValueError, r"8 times.*\(8, 3\), got \(3,\)"),
    "a function of a number": (lambda: solve_with(lambda ts, y: 0.0), TypeError, "expected .*, got float"),
    "a function of integers": (lambda: solve_with(lambda ts, y: KNOWN[1:].int()), TypeError, "got torch.int32"),
    "a function of nothing": (lambda: solve_with(lambda ts, y: None), TypeError, "got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_says_what_to_pass(name):
    call, kind, says = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert caught.type is kind
    assert re.search(says, message)
    assert re.match(r"(guess|noise|degree|every): .*\.$", message)
    assert ". " not in message
