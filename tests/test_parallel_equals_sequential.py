"""The library's promise: a parallel solve is the sequential solution, however it is reached."""

import math
import unittest.mock
from dataclasses import replace

import pytest
import torch
from cases import (
    HALF,
    SINGLE_OR_DOUBLE,
    Case,
    any_case,
    assert_close,
    company,
    defect,
    denoiser_cases,
    generator,
    grids,
    guesses,
    iterations,
    logistic_cases,
    numerics,
    ode_cases,
    randn,
    random_drift,
    sde_cases,
    seeds,
    windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.problem.tolerances import Tolerance
from picardsolve.solve import posed

FAMILIES = {
    "ode": ode_cases(),
    "additive or diagonal": sde_cases(noises=("additive", "diagonal")),
    "scalar, commutative or general": sde_cases(noises=("scalar", "commutative", "general")),
    "denoiser": denoiser_cases(),
    "half ode": ode_cases(dtypes=HALF),
    "half denoiser": denoiser_cases(dtypes=HALF),
}


def check_equal(case: Case, sol: ps.Solution, ref: ps.Solution) -> None:
    assert sol.result is ref.result is ps.Result.converged
    assert torch.equal(sol.ts, ref.ts)
    assert_close(sol.ys, ref.ys, case.rounding(ref.ys))


# ---- tolerance zero


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_tolerance_zero_gives_the_sequential_answer(family, data):
    case = data.draw(FAMILIES[family])
    sol = case.solve(tol=0, **data.draw(numerics(case.term)))
    check_equal(case, sol, case.sequential())
    assert sol.stats.steps == case.steps
    assert sol.stats.rounds <= case.steps * case.stages


@given(st.data())
def test_batch_invariant_drift_gives_the_sequential_answer_bitwise(data):
    """Sums and products of float64 elements do not depend on the batch; so neither may the solution."""
    case = data.draw(logistic_cases())
    how = data.draw(numerics(case.term)) | {"max_batch": None}
    assert torch.equal(case.solve(tol=0, **how).ys, case.sequential().ys)


@given(st.data())
def test_a_window_of_one_is_the_sequential_solver(data):
    case = data.draw(any_case())
    how = data.draw(numerics(case.term)) | {"window": 1, "max_batch": None}
    sol, ref = case.solve(tol=data.draw(st.sampled_from([0, 1e-3])), **how), case.sequential()
    assert torch.equal(sol.ys, ref.ys)
    assert sol.stats == ref.stats
    assert sol.stats.rounds == case.steps * case.stages


@given(st.data())
def test_after_k_rounds_the_first_k_states_are_exact(data):
    case = data.draw(any_case())
    how = data.draw(numerics(case.term))
    k = data.draw(st.integers(1, case.steps))
    sol, ref = case.solve(tol=0, max_rounds=k * case.stages, throw=False, **how), case.sequential()
    exact = case.rounding(ref.ys)
    assert_close(sol.ys[: k + 1], ref.ys[: k + 1], exact)
    accepted = ~sol.ys.isnan()  # more may be known; whatever is given out is exact, the rest is NaN
    assert_close(sol.ys[accepted], ref.ys[accepted], exact)
    assert sol.stats.rounds <= k * case.stages
    assert sol.result is (ps.Result.converged if accepted.all() else ps.Result.max_rounds)


@given(st.data())
def test_saving_only_the_last_state(data):
    case = data.draw(any_case())
    how = data.draw(numerics(case.term))
    full, last = case.solve(tol=0, **how), case.solve(tol=0, save="last", **how)
    assert torch.equal(last.ys, full.ys[-1:])
    assert torch.equal(last.ts, full.ts[-1:])
    assert torch.equal(case.sequential(save="last").ys, case.sequential().ys[-1:])


@given(st.data())
def test_the_fixed_point_does_not_depend_on_how_it_is_reached(data):
    case = data.draw(any_case())
    one, other = data.draw(numerics(case.term)), data.draw(numerics(case.term))
    first, second = case.solve(tol=0, **one), case.solve(tol=0, **other)
    assert_close(first.ys, second.ys, case.rounding(first.ys))


@pytest.mark.parametrize("tolerance", [{"tol": 0}, {"rtol": 1e-3, "atol": 0}])
@given(data=st.data())
def test_a_linear_problem_scales(tolerance, data):
    """A power of two changes exponents only: every number of the solve, so every decision, is the same."""
    seed, ts = data.draw(seeds), data.draw(grids())
    square = randn(generator(seed), 4, 4, dtype=torch.float32) / 4
    y0, how = randn(generator(seed + 1), 4, dtype=torch.float32), data.draw(numerics(ps.ODE(lambda t, y: y)))

    def solve(scale: float) -> torch.Tensor:
        term = ps.ODE(lambda t, y: y @ square)
        return ps.solve(term, scale * y0, ts, integrator=ps.Euler(), **tolerance, **how).ys / scale

    # squares of much smaller or larger changes are no numbers, and an estimate that is none accepts nothing
    furthest = 90 if how["stop"] == "increment" else 40
    for scale in (2.0**-furthest, 2.0**40, 2.0**furthest):
        assert torch.equal(solve(scale), solve(1.0))


# ---- positive tolerances


@given(st.data())
def test_tolerance_bounds_the_distance_on_an_ode(data):
    """Theorem: with |Y - X| <= d in the last round, an accepted state obeys Y[n+1] = Phi(Y[n]) + h (f(X[n]) - f(Y[n])).

    Its slope has Lipschitz constant L = 1.5 exp(1.5 h), so the errors add up to at most d L T exp(L T). Some
    iterations add a few d in every step. A change within tol has a norm d <= tol (1 + max|y|) sqrt(D).
    """
    case = data.draw(ode_cases((torch.float64,), max_span=1.0, min_steps=4))
    how, tol = data.draw(numerics(case.term)), data.draw(st.sampled_from([1e-2, 1e-4, 1e-7]))
    sol, ref = case.solve(tol=tol, **how | {"stop": "increment"}), case.sequential()
    slope = 1.5 * math.exp(1.5 * float(case.ts.diff().abs().max())) * float((case.ts[-1] - case.ts[0]).abs())
    steps = case.steps * defect(how["iteration"])
    change = tol * (1 + float(ref.ys.abs().max()) + tol) * math.sqrt(case.y0.numel())
    assert_close(sol.ys, ref.ys, change * (slope + steps) * math.exp(slope) + case.rounding(ref.ys))


@given(st.data())
def test_tolerance_bounds_the_distance_with_noise(data):
    """As above, with the noise of the step as the scale: at most 0.6 sqrt(h) for these diffusions.

    Milstein's steps have no other Lipschitz constant than the growth allows for, and stages' are multiples of it.
    """
    case = data.draw(sde_cases(dtypes=(torch.float64,)))
    how, tol = data.draw(numerics(case.term)), data.draw(st.sampled_from([1e-2, 1e-4, 1e-7]))
    sol, ref = case.solve(tol=tol, **how | {"stop": "increment"}), case.sequential()
    change = tol * 0.6 * math.sqrt(float(case.ts.diff().max()) * case.y0.numel())
    bound = change * case.growth * (1.5 * case.weight + case.steps * defect(how["iteration"]))
    assert_close(sol.ys, ref.ys, bound + case.rounding(ref.ys))


@given(st.data())
def test_tolerance_bounds_the_distance_on_a_denoiser(data):
    """As above, each step adding at most the change itself; a step's noise is below the first noise level."""
    case = data.draw(denoiser_cases(dtypes=(torch.float64,)))
    how, tol = data.draw(numerics(case.term)), data.draw(st.sampled_from([1e-2, 1e-4, 1e-7]))
    sol, ref = case.solve(tol=tol, **how | {"stop": "increment"}), case.sequential()
    change = tol * float(case.term.schedule.sigma(case.ts[:1])) * math.sqrt(case.y0[0].numel())
    assert_close(
        sol.ys, ref.ys, change * case.growth * case.steps * (1 + defect(how["iteration"])) + case.rounding(ref.ys)
    )


# ---- samples


@given(st.data())
def test_a_sample_does_not_depend_on_its_company(data):
    """Neither its states, nor where its window stands in any round; arguments arrive with their own sample."""
    case, singles = data.draw(company())
    how, tol = data.draw(numerics(case.term)), data.draw(st.sampled_from([0, 1e-3]))
    together = case.solve(tol=tol, **how)
    for sample, single in enumerate(singles):
        if sample and not isinstance(case.term, ps.Denoiser):
            continue  # a faster drift amplifies rounding beyond the bound; it is there to be slow
        by_itself = single.solve(tol=tol, **how)
        assert_close(together.ys[:, sample], by_itself.ys[:, 0], case.rounding(by_itself.ys))
        if tol:
            begins = [int(record.begin[sample]) for record in together.history]
            assert begins[: len(by_itself.history)] == [int(record.begin[0]) for record in by_itself.history]
    check_equal(singles[0], singles[0].solve(tol=0, **how), singles[0].sequential())


def poisoned(case: Case, whole: bool) -> Case:
    """The same problem, whose drift of a sample is NaN from the time on that ``limit`` (B,) says."""
    start = case.ts[0]

    def spoil(out, t, limit):
        bad = ((t.flatten() - start).abs() >= limit).nonzero()[:, 0]
        out = out.clone().reshape(len(out), -1)
        out[bad, : None if whole else 1] = torch.nan
        return out

    if isinstance(case.term, ps.Denoiser):
        inner = case.term.model
        model = lambda x, t, limit, **cond: spoil(inner(x, t, **cond), t, limit).reshape(x.shape)  # noqa: E731
        return replace(case, term=replace(case.term, model=model))
    drift = case.term.drift
    f = lambda t, y, pace, limit: spoil(drift(t, y, pace), t, limit).reshape(y.shape)  # noqa: E731
    if isinstance(case.term, ps.ODE):
        return replace(case, term=ps.ODE(f))
    diffusion = case.term.diffusion
    return replace(case, term=replace(case.term, drift=f, diffusion=lambda t, y, pace, limit: diffusion(t, y)))


def with_limit(case: Case, limit: torch.Tensor) -> Case:
    if "cond" in case.given:
        return replace(case, given={"cond": {**case.given["cond"], "limit": limit}})
    return replace(case, given={"args": (*case.given["args"], limit)})


@settings(max_examples=40)  # of fewer, none fails where another is about to end
@given(st.data())
def test_a_sample_that_fails_disturbs_no_other(data):
    case, singles = data.draw(company())
    how, tol = data.draw(numerics(case.term)), data.draw(st.sampled_from([0, 1e-3]))
    sick, fails = data.draw(st.integers(0, len(singles) - 1)), data.draw(st.integers(0, case.steps - 1))
    whole = data.draw(st.booleans())
    limit = torch.full((len(singles),), torch.inf, dtype=torch.float64)
    limit[sick] = (case.ts[fails] - case.ts[0]).abs()
    together = with_limit(poisoned(case, whole), limit)
    sol = together.solve(tol=tol, throw=False, **how)
    healthy = [sample for sample in range(len(singles)) if sample != sick]
    expected = case.solve(tol=tol, **how).ys
    for sample in healthy if isinstance(case.term, ps.Denoiser) else [0] * (sick != 0):
        assert_close(sol.ys[:, sample], expected[:, sample], case.rounding(expected[:, sample]))
    assert sol.ys[:, healthy].isfinite().all()
    ref = with_limit(poisoned(singles[sick], whole), limit[sick : sick + 1]).sequential(throw=False)
    reached = ~ref.ys.reshape(len(ref.ts), -1).isnan().any(1)
    assert 0 < int(reached.sum()) <= fails + 1
    assert torch.equal(~sol.ys[:, sick].reshape(len(sol.ts), -1).isnan().any(1), reached)
    assert sol.ys[~reached, sick].isnan().all()
    assert sol.result is ref.result is ps.Result.nonfinite
    with pytest.raises(ps.SolveError) as caught:
        together.solve(tol=tol, **how)
    step = int(reached.sum()) - 1
    assert caught.value.step == step
    assert caught.value.time == float(case.ts[step])
    assert torch.equal(caught.value.solution.ys.isnan(), sol.ys.isnan())


# ---- other ways to write the same problem


@given(st.data())
def test_structured_states(data):
    """A dict or tuple of parts gives what one tensor of all elements gives."""
    parts, dtype = {"b": (2, 2), "a": (3,), "c": ()}, data.draw(st.sampled_from(SINGLE_OR_DOUBLE))
    batch, seed, ts = data.draw(st.sampled_from([0, 1, 3])), data.draw(seeds), data.draw(grids())
    as_tuple = data.draw(st.booleans())
    drift = random_drift("mlp", seed, (8,), dtype)
    sizes, lead = [math.prod(shape) for shape in parts.values()], [batch] if batch else []

    def split(flat: torch.Tensor):
        pieces = flat.split(sizes, -1)
        tree = {k: v.reshape(flat.shape[:-1] + parts[k]) for k, v in zip(parts, pieces, strict=True)}
        return tuple(tree.values()) if as_tuple else tree

    def joined(tree, rows: int) -> torch.Tensor:
        leaves = tree if as_tuple else [tree[k] for k in parts]
        return torch.cat([leaf.reshape(rows, -1) for leaf in leaves], 1)

    def f(t, tree):
        assert t.shape == (len(t), 1, 1)  # ready to broadcast against the deepest part
        return split(drift(t[:, :, 0], joined(tree, len(t))))

    y0, how = randn(generator(seed), *lead, 8, dtype=dtype), data.draw(numerics(ps.ODE(f)))
    common = {"integrator": data.draw(st.sampled_from([ps.Euler(), ps.Heun()])), "batch_dims": int(batch > 0), "tol": 0}
    whole = split(ps.solve(ps.ODE(drift), y0, ts, **common, **how).ys)
    tree = ps.solve(ps.ODE(f), split(y0), ts, **common, **how).ys
    assert type(tree) is type(whole)
    for k in range(3) if as_tuple else parts:
        assert_close(tree[k], whole[k], 1e3 * torch.finfo(dtype).eps)


@given(st.data())
def test_decreasing_times_are_reversed_time(data):
    """dy/dt = f(t, y) and dy/ds = -f(-s, y) with s = -t: signs change, so bit for bit."""
    case = data.draw(ode_cases())
    drift, how = case.term.drift, data.draw(numerics(case.term))
    mirrored = replace(case, term=ps.ODE(lambda s, y: -drift(-s, y)), ts=-case.ts)
    assert torch.equal(mirrored.solve(tol=1e-3, **how).ys, case.solve(tol=1e-3, **how).ys)


@settings(max_examples=8)
@given(st.data())
def test_a_lifted_drift_equals_a_vectorized_one(data):
    case = data.draw(st.one_of(ode_cases(), sde_cases()))
    lifted = replace(case, term=replace(case.term, vectorized=False))
    how, ref = data.draw(numerics(case.term)), case.sequential()
    check_equal(case, lifted.solve(tol=0, **how), ref)
    check_equal(case, lifted.sequential(), ref)


@given(st.data())
def test_a_lifted_drift_gets_the_arguments_of_its_sample(data):
    case, _ = data.draw(company().filter(lambda drawn: not isinstance(drawn[0].term, ps.Denoiser)))
    lifted = replace(case, term=replace(case.term, vectorized=False))
    how = data.draw(numerics(case.term))
    assert_close(lifted.solve(tol=0, **how).ys[:, 0], case.sequential().ys[:, 0], case.rounding(case.sequential().ys))


@given(windows)
def test_arguments_of_one_system_are_passed_on_as_they_are(window):
    given_, seen = (torch.arange(3.0), "word", torch.tensor(2.0), None), []

    def f(t, y, *args):
        seen.append(args)
        return args[0] - args[2] * y

    ps.solve(ps.ODE(f), torch.ones(3), [0.0, 0.1, 0.3, 0.4], integrator=ps.Euler(), window=window, args=given_)
    assert all(all(a is b for a, b in zip(args, given_, strict=True)) for args in seen)


# ---- what it costs, and what the drift is given


@given(st.data())
def test_counts_and_what_the_drift_is_given(data):
    case = data.draw(any_case())
    denoiser = isinstance(case.term, ps.Denoiser)
    how = data.draw(numerics(case.term).filter(lambda how: not isinstance(how["iteration"], ps.Newton)))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    beside: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(function, record):
        def call(*inputs):
            record.append(inputs[::-1] if denoiser else inputs)
            return function(*inputs)

        return call

    if denoiser:
        term = replace(case.term, model=recorded(case.term.model, seen))
    elif isinstance(case.term, ps.SDE):
        both = recorded(case.term.drift, seen), recorded(case.term.diffusion, beside)
        term = replace(case.term, drift=both[0], diffusion=both[1])
    else:
        term = ps.ODE(recorded(case.term.drift, seen))
    state = case.y0.shape[case.batch_dims :]
    nodes = case.ts[:-1, None] + case.ts.diff()[:, None] * torch.tensor([0, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1])
    nodes = (case.ts[:-1] if case.stages == 1 else nodes.flatten()).to(case.y0.dtype)

    def check(stats: ps.Stats, most: int | None) -> None:
        assert stats.calls == len(seen)
        assert stats.evaluations == sum(len(y) for _, y in seen)
        assert stats.calls == stats.rounds if most is None else stats.calls >= stats.rounds
        for t, y in seen:
            assert y.shape == (len(y), *state)
            assert y.dtype == case.y0.dtype
            assert most is None or len(y) <= most
            assert t.shape == ((len(y),) if denoiser else (len(y), *[1] * len(state)))
            assert ((t.flatten()[:, None] - nodes).abs().amin(1) <= 1e-6).all()
        if beside and isinstance(case.integrator, ps.EulerMaruyama):
            # drift and diffusion share their inputs but for the one row that asks whether rows mix
            assert sum(len(y) for _, y in beside) == sum(len(y) for _, y in seen)

    with unittest.mock.patch("picardsolve.certificate.sharpening.measurable", return_value=False):
        sol = replace(case, term=term).solve(tol=1e-3, **how)  # without what growth is measured with
    check(sol.stats, how["max_batch"])
    asked = case.stages * sum(int(record.width.sum()) for record in sol.history)
    assert sol.stats.evaluations - asked in (0, 1)  # one more asks whether the drift mixes its rows
    assert sol.stats.rounds == case.stages * len(sol.history)
    assert sol.stats.max_width == max(int(record.width.max()) for record in sol.history) <= how["window"]
    seen.clear()
    beside.clear()
    ref = replace(case, term=term).sequential()
    check(ref.stats, None)
    samples = len(case.y0) if case.batch_dims else 1
    assert ref.stats == ps.Stats(
        case.steps, case.steps * case.stages, case.steps * case.stages * samples, case.steps * case.stages, 1
    )
    assert [float(t.flatten()[0]) for t, _ in seen[:: case.stages]] == case.ts[:-1].to(case.y0.dtype).tolist()


# ---- divergence


@settings(max_examples=15)
@given(st.data())
def test_a_window_that_diverges_still_gives_the_sequential_answer(data):
    """y' = -k y with 400 steps of hk up to 1.9: the sweeps of a wide window grow beyond float32.

    An accepted step is off by hk times the change (Jacobi: |1 - hk| times; others add their defect), and steps contract
    by |1 - hk|.
    """
    hk, tol = data.draw(st.sampled_from([0.3, 0.8, 1.2, 1.9])), data.draw(st.sampled_from([0, 1e-4]))
    window, iteration = data.draw(st.sampled_from([30, 200, 400])), data.draw(iterations)
    term, ts = ps.ODE(lambda t, y: -hk * 40 * y), torch.linspace(0, 10, 401, dtype=torch.float64)
    y0, guess = randn(generator(data.draw(seeds)), 3, dtype=torch.float32), data.draw(guesses(term))
    sol = ps.solve(term, y0, ts, integrator=ps.Euler(), window=window, iteration=iteration, guess=guess, tol=tol)
    ref = ps.sequential(term, y0, ts, integrator=ps.Euler())
    off = abs(1 - hk) if isinstance(iteration, ps.Jacobi) else hk + defect(iteration)
    summed = max(hk, off) / (1 - abs(1 - hk))
    change = (tol + 4 * torch.finfo(torch.float32).eps) * (1 + float(y0.abs().max())) * math.sqrt(3)
    assert_close(sol.ys, ref.ys, summed * change)
    assert sol.stats.rounds <= 400


def test_the_stiff_window_does_diverge():
    """Without this the test above would test nothing: the sweep of the full window overflows."""
    x = torch.ones(401)
    for _ in range(200):
        x = 1 + torch.cat([x.new_zeros(1), (-0.8 * x[:-1]).cumsum(0)])
    assert not x.isfinite().all()


def test_a_narrowed_window_grows_though_it_accepts_one_step_a_round():
    """By an eighth: at tolerance 0 it would else take as many rounds as it lacks steps."""
    asked = ps.ODE(lambda t, y: -y), torch.ones(2), torch.linspace(0, 1, 65), ps.Euler()
    problem, y0 = posed(*asked, None, (), None, None, None)
    window = Window(ps.Euler().chain(problem), y0, Settings(64, ps.Picard(), ps.Copy(), Increment(Tolerance())))
    window.acceptance.width[:] = 16  # as a divergence leaves it
    for _ in range(4):
        window.tell(window.chain.evaluate(window.ask()))
    assert [int(record.width) for record in window.history] == [16, 18, 20, 22]
    assert all(int(record.stride) == 1 for record in window.history)


@settings(max_examples=15)
@given(st.data())
def test_growth_short_of_a_blow_up(data):
    """y' = y^2 on [0, 0.95] from 1: a perturbation grows by (y(T) / y(0))^2 = 400 at most, y by 20."""
    steps, integrator = data.draw(st.integers(50, 200)), data.draw(st.sampled_from([ps.Euler(), ps.Heun()]))
    term, ts = ps.ODE(lambda t, y: y**2), torch.linspace(0, 0.95, steps + 1, dtype=torch.float64)
    y0 = torch.linspace(0.5, 1, 3, dtype=torch.float32)
    sol = ps.solve(
        term,
        y0,
        ts,
        integrator=integrator,
        tol=0,
        window=data.draw(st.sampled_from([20, 200])),
        iteration=data.draw(iterations),
        guess=data.draw(guesses(term)),
    )
    ref = ps.sequential(term, y0, ts, integrator=integrator)
    assert_close(sol.ys, ref.ys, 400 * 20 * 4 * torch.finfo(torch.float32).eps)
    assert sol.stats.rounds <= steps * integrator.order


@given(st.data())
def test_a_blow_up_is_reported_where_it_happens(data):
    """y' = y^2 from about 1 on [0, 3]: the sequential solver overflows, the parallel one says so, at the same step."""
    batch_dims = data.draw(st.sampled_from([0, 1]))
    y0 = 1 + torch.rand(3, generator=generator(data.draw(seeds)), dtype=data.draw(st.sampled_from(SINGLE_OR_DOUBLE)))
    term, integrator = ps.ODE(lambda t, y: y**2), data.draw(st.sampled_from([ps.Euler(), ps.Heun(), ps.RK4()]))
    ts = torch.linspace(0, 3, data.draw(st.integers(30, 60)), dtype=torch.float64)
    common = {"integrator": integrator, "batch_dims": batch_dims}
    with pytest.raises(ps.SolveError) as expected:
        ps.sequential(term, y0, ts, **common)
    how, tol = data.draw(numerics(term)) | {"stop": "increment"}, data.draw(st.sampled_from([0, 1e-3]))
    with pytest.raises(ps.SolveError) as caught:
        ps.solve(term, y0, ts, tol=tol, **common, **how)
    error, ref = caught.value, expected.value
    assert (error.step, error.time) == (ref.step, ref.time)
    assert error.time == float(ts[error.step])
    assert f"{error.step}" in str(error)
    assert error.solution.result is ps.Result.nonfinite
    if tol == 0:
        same = torch.isclose(error.solution.ys, ref.solution.ys, rtol=1e-4, atol=0, equal_nan=True)
        assert same.all()
    partial = error.solution.ys.reshape(len(ts), 3)
    assert partial[: error.step + 1].isfinite().any(1).all()
    assert partial[-1].isnan().all()
    returned = ps.solve(term, y0, ts, tol=tol, throw=False, **common, **how)
    assert torch.equal(returned.ys.isnan(), error.solution.ys.isnan())
