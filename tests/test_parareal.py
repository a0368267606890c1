"""Parareal: the sequential solution at tolerance zero, the textbook's iterates before, on the pipeline's schedule."""

import math
import re
from dataclasses import replace

import matplotlib as mpl
import pytest
import torch
from cases import (
    SAMPLERS,
    Case,
    assert_close,
    company,
    denoiser_cases,
    generator,
    grids,
    logistic_cases,
    ode_cases,
    randn,
    sde_cases,
    seeds,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from test_parallel_equals_sequential import check_equal, poisoned, with_limit

import picardsolve as ps

mpl.use("Agg")
ONE_STEP = tuple(sampler for sampler in SAMPLERS if sampler.order == 1)
DOUBLE = (torch.float64,)


def cases(dtypes=(torch.float32, torch.float64)) -> st.SearchStrategy:
    return st.one_of(ode_cases(dtypes), sde_cases(dtypes=dtypes), denoiser_cases(ONE_STEP, dtypes))


@st.composite
def hyper_parameters(draw, steps: int) -> ps.Parareal:
    """Any blocks, starts and coarse steps that a grid of so many steps has room for."""
    coarse = draw(st.sampled_from([1, 1, 2, 3]))
    if draw(st.booleans()):
        return ps.Parareal(blocks=draw(st.one_of(st.none(), st.integers(1, 12))), coarse=coarse)
    starts = [0]
    for gap in draw(st.lists(st.integers(coarse + 1, 6), max_size=6)):
        if starts[-1] + gap < steps:
            starts.append(starts[-1] + gap)
    return ps.Parareal(starts=tuple(starts), coarse=coarse)


def numerics(case: Case) -> st.SearchStrategy:
    """Whatever may not change the answer."""
    return st.fixed_dictionaries(
        {
            "iteration": hyper_parameters(case.steps),
            "window": st.integers(1, 12),
            "max_batch": st.sampled_from([None, None, 1, 3]),
        }
    )


# ---- tolerance zero


@given(st.data())
def test_tolerance_zero_gives_the_sequential_answer(data):
    case = data.draw(cases())
    sol = case.solve(tol=0, **data.draw(numerics(case)))
    check_equal(case, sol, case.sequential())
    assert sol.stats.rounds <= case.steps * case.stages


@given(st.data())
def test_batch_invariant_drift_gives_the_sequential_answer_bitwise(data):
    """Sums and products of float64 elements do not depend on the batch; so neither may the solution."""
    case = data.draw(logistic_cases())
    how = data.draw(numerics(case)) | {"max_batch": None}
    assert torch.equal(case.solve(tol=0, **how).ys, case.sequential().ys)


@given(st.data())
def test_one_core_is_the_sequential_solver(data):
    case = data.draw(cases())
    how = data.draw(numerics(case)) | {"max_batch": None}
    only = data.draw(st.sampled_from([{"window": 1}, {"iteration": ps.Parareal(blocks=1)}]))
    sol, ref = case.solve(tol=data.draw(st.sampled_from([0, 1e-3])), **(how | only)), case.sequential()
    assert torch.equal(sol.ys, ref.ys)
    assert sol.stats == ref.stats


@given(st.data())
def test_after_k_rounds_the_first_k_states_are_exact(data):
    case = data.draw(cases())
    how, k = data.draw(numerics(case)), data.draw(st.integers(1, case.steps))
    sol, ref = case.solve(tol=0, max_rounds=k * case.stages, throw=False, **how), case.sequential()
    assert_close(sol.ys[: k + 1], ref.ys[: k + 1], case.rounding(ref.ys))
    accepted = ~sol.ys.isnan()
    assert_close(sol.ys[accepted], ref.ys[accepted], case.rounding(ref.ys))
    assert sol.stats.rounds <= k * case.stages
    assert sol.result is (ps.Result.converged if accepted.all() else ps.Result.max_rounds)


@given(st.data())
def test_saving_only_the_last_state(data):
    case = data.draw(cases())
    how, tol = data.draw(numerics(case)), data.draw(st.sampled_from([0, 1e-2]))
    assert torch.equal(case.solve(tol=tol, save="last", **how).ys, case.solve(tol=tol, **how).ys[-1:])


@pytest.mark.parametrize("tolerance", [{"tol": 0}, {"rtol": 1e-3, "atol": 0}])
@given(data=st.data())
def test_a_linear_problem_scales(tolerance, data):
    seed, ts = data.draw(seeds), data.draw(grids())
    square = randn(generator(seed), 4, 4, dtype=torch.float32) / 4
    y0, iteration = randn(generator(seed + 1), 4, dtype=torch.float32), data.draw(hyper_parameters(len(ts) - 1))

    def solve(scale: float) -> torch.Tensor:
        given = {"integrator": ps.Euler(), "iteration": iteration, **tolerance}
        return ps.solve(ps.ODE(lambda t, y: y @ square), scale * y0, ts, **given).ys / scale

    for scale in (2.0**-90, 2.0**40, 2.0**90):
        assert torch.equal(solve(scale), solve(1.0))


# ---- parareal's iterates, and when they come


def textbook(step, jump, y0: float, blocks: int, length: int, iterations: int) -> float:
    """``U[b+1][k+1] = F(U[b][k]) + G(U[b][k+1]) - G(U[b][k])``, the last state of an iteration."""

    def fine(y: float, block: int) -> float:
        for n in range(block * length, (block + 1) * length):
            y = step(y, n)
        return y

    rows = [y0]
    for block in range(blocks):
        rows.append(jump(rows[-1], block))
    for _ in range(iterations):
        new = [y0]
        for block in range(blocks):
            new.append(fine(rows[block], block) + jump(new[-1], block) - jump(rows[block], block))
        rows = new
    return rows[-1]


@given(st.data())
def test_iterations_are_those_of_the_textbook_on_the_pipelines_schedule(data):
    """Core b starts after b jumps, and iteration K is core B - K, which has K blocks to go."""
    coarse = data.draw(st.integers(1, 3))
    blocks, parts = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 3))
    length = coarse * parts
    steps, k = blocks * length, data.draw(st.integers(1, blocks))
    h, y0 = 2.0 / steps, data.draw(st.floats(0.1, 0.9))

    def drift(t, y):
        return y * (1 - y) + t**2

    def step(y: float, n: int) -> float:
        return y + h * drift(n * h, y)

    def jump(y: float, block: int) -> float:
        for part in range(coarse):
            y += parts * h * drift((block * length + part * parts) * h, y)
        return y

    sol = ps.solve(
        ps.ODE(drift),
        torch.tensor([y0], dtype=torch.float64),
        torch.linspace(0, 2, steps + 1, dtype=torch.float64),
        integrator=ps.Euler(),
        iteration=ps.Parareal(blocks, coarse=coarse, iterations=k),
        tol=0,
    )
    assert abs(float(sol.ys[-1]) - textbook(step, jump, y0, blocks, length, k)) <= 1e-13 * steps
    assert sol.stats.rounds == (blocks - k) * coarse + k * length
    assert sol.result is (ps.Result.converged if k == blocks else ps.Result.stopped)
    assert sol.ys.isfinite().all()


@given(st.data())
def test_the_first_core_to_arrive_and_the_rows_of_a_round(data):
    """Core c starts after c jumps; with one coarse step a round holds one row of each core that is on its way."""
    case = data.draw(cases())
    iteration = replace(data.draw(hyper_parameters(case.steps)), coarse=1)
    starts = iteration.cores(case.steps, 32)
    k = data.draw(st.integers(1, len(starts)))
    sol = case.solve(tol=0, iteration=replace(iteration, iterations=k))
    core = len(starts) - k
    ends = core + case.steps - starts[core]
    assume(sol.result is ps.Result.stopped)  # a trivial drift converges before
    assert len(sol.history) == ends
    assert sol.stats.evaluations - case.stages * sum(int(record.width.sum()) for record in sol.history) in (0, 1)
    for rounds, record in enumerate(sol.history):
        on_their_way = sum(c <= rounds < c + case.steps - start for c, start in enumerate(starts))
        assert int(record.width.max()) <= on_their_way
        assert int(record.width.max()) == on_their_way or int(record.begin.min()) > rounds


def test_published_rounds():
    assert ps.presets.srds(iterations=1)["iteration"].cores(100, 32) == tuple(range(0, 100, 10))
    published = {4: (21, 36), 6: (19, 30), 8: (17, 24)}  # of the fastest core and the next, of 50 steps
    for cores, rounds in published.items():
        for k, expected in enumerate(rounds, 1):
            given = ps.presets.chords(50, cores, iterations=k)
            ts, y0 = torch.linspace(0, 1, 51), torch.tensor([0.3], dtype=torch.float64)
            sol = ps.solve(ps.ODE(lambda t, y: torch.sin(3 * y)), y0, ts, integrator=ps.Euler(), tol=0, **given)
            assert sol.stats.rounds == expected


# ---- positive tolerances


@given(st.data())
def test_tolerance_bounds_the_distance_on_an_ode(data):
    """Accepted states are exact steps of each other but for a jump within tolerance where a core takes over, and the
    difference of two coarse jumps from there, at most ``exp(L T)`` times the first. L = 1.5 bounds the drifts; the
    slope over a step of a Runge-Kutta method has constant 1.5 exp(1.5 h).
    """
    case = data.draw(ode_cases(DOUBLE, max_span=1.0, min_steps=4))
    how, tol = data.draw(numerics(case)), data.draw(st.sampled_from([1e-2, 1e-4, 1e-7]))
    sol, ref = case.solve(tol=tol, **how), case.sequential()
    span = float((case.ts[-1] - case.ts[0]).abs())
    growth = math.exp(1.5 * math.exp(1.5 * span) * span)
    change = tol * (1 + float(ref.ys.abs().max()) + tol) * math.sqrt(case.y0.numel())
    handovers = len(how["iteration"].cores(case.steps, how["window"])) - 1
    assert_close(sol.ys, ref.ys, handovers * change * growth * (1 + growth) + case.rounding(ref.ys))


VP = ps.schedules.VP(lambda t: torch.exp(t - 3))
HELD = {  # the output does not depend on the state, so a jump is what the steps it covers are
    "ODE": (ps.ODE(lambda t, y: torch.ones_like(y)), ps.RK4()),
    "SDE": (ps.SDE(lambda t, y: torch.ones_like(y), lambda t, y: 0.5 * torch.ones_like(y)), ps.EulerMaruyama()),
    "DDIM": (ps.Denoiser(lambda x, t: torch.ones_like(x), VP), ps.DDIM()),
    "DDIM with noise": (ps.Denoiser(lambda x, t: torch.ones_like(x), VP), ps.DDIM(0.7)),
    "flow from pure noise": (ps.Denoiser(lambda x, t: torch.ones_like(x), ps.schedules.Flow(), "flow"), ps.DDIM()),
}


@pytest.mark.parametrize("kind", HELD)
@settings(max_examples=6)
@given(data=st.data())
def test_jumps_of_a_constant_output_are_exact(kind, data):
    """Every core is on the path of the one before; so the rounds are those until the last has been handed the lead."""
    blocks, length, coarse = data.draw(st.integers(2, 6)), data.draw(st.integers(3, 6)), data.draw(st.integers(1, 2))
    term, integrator = HELD[kind]
    y0 = randn(generator(data.draw(seeds)), 2, 3)
    first, last = (1, 0.1) if "flow" in kind else (0, 2.5)
    ts = torch.linspace(first, last, blocks * length + 1, dtype=torch.float64)
    given = {"integrator": integrator, "brownian": ps.BrownianPath(data.draw(seeds)), "batch_dims": 1}
    sol = ps.solve(term, y0, ts, tol=1e-9, iteration=ps.Parareal(blocks, coarse=coarse), **given)
    stages = 4 if kind == "ODE" else 1
    assert sol.result is ps.Result.converged
    assert sol.stats.rounds == stages * ((blocks - 1) * coarse + length)
    assert_close(sol.ys, ps.sequential(term, y0, ts, **given).ys, 1e-11)
    if coarse == 1:  # a row for every step, and one for the correction of each core but the first
        assert sol.stats.evaluations <= stages * 2 * (blocks * length + blocks)


@given(st.data())
def test_accepted_states_stay_as_they_are(data):
    case = data.draw(ode_cases(min_steps=6))
    how = data.draw(numerics(case)) | {"tol": data.draw(st.sampled_from([1e-1, 1e-2])), "window": 12}
    whole, rounds = case.solve(**how).ys, data.draw(st.integers(1, case.steps))
    part = case.solve(max_rounds=rounds * case.stages, throw=False, **how).ys
    accepted = ~part.isnan()
    assert torch.equal(part[accepted], whole[accepted])


@given(st.data())
def test_the_record_of_the_rounds(data):
    """Every row is at a step that its sample has not accepted, but for the last of a core that has handed over."""
    case = data.draw(cases(DOUBLE))
    how = data.draw(numerics(case))
    sol = case.solve(tol=data.draw(st.sampled_from([0, 1e-1])), **how)
    begin = torch.zeros_like(sol.history[0].begin)
    for record in sol.history:
        assert torch.equal(record.begin, begin)
        begin = begin + record.stride
        assert record.step.shape == record.increments.shape == (int(record.width.max()), len(begin))
        for sample, width in enumerate(record.width.tolist()):
            steps, at = record.step[:width, sample], int(record.begin[sample])
            assert width == 0 or at in steps
            assert (steps < case.steps).all()
            if how["iteration"].coarse == 1:
                assert len(set(steps.tolist())) == width
                assert int((steps < at).sum()) <= 1
    assert (begin == case.steps).all()
    assert sol.plot().axes[0].get_ylabel() == "sweep"
    plt.close("all")


# ---- samples


@given(st.data())
def test_a_sample_does_not_depend_on_its_company(data):
    case, singles = data.draw(company())
    assume(not isinstance(case.integrator, ps.DPMSolver) or case.integrator.order == 1)
    how, tol = data.draw(numerics(case)), data.draw(st.sampled_from([0, 1e-3]))
    together = case.solve(tol=tol, **how)
    for sample, single in enumerate(singles):
        if sample and not isinstance(case.term, ps.Denoiser):
            continue  # a faster drift amplifies rounding beyond the bound; it is there to be slow
        by_itself = single.solve(tol=tol, **how)
        assert_close(together.ys[:, sample], by_itself.ys[:, 0], case.rounding(by_itself.ys))
        if tol:
            begins = [int(record.begin[sample]) for record in together.history]
            assert begins[: len(by_itself.history)] == [int(record.begin[0]) for record in by_itself.history]
            widths = [int(record.width[sample]) for record in together.history]
            assert widths[: len(by_itself.history)] == [int(record.width[0]) for record in by_itself.history]
            assert not any(widths[len(by_itself.history) :])


@given(st.data())
def test_a_sample_that_fails_disturbs_no_other(data):
    case, singles = data.draw(company())
    assume(not isinstance(case.integrator, ps.DPMSolver) or case.integrator.order == 1)
    how, tol = data.draw(numerics(case)), data.draw(st.sampled_from([0, 1e-3]))
    sick, fails = data.draw(st.integers(0, len(singles) - 1)), data.draw(st.integers(0, case.steps - 1))
    limit = torch.full((len(singles),), torch.inf, dtype=torch.float64)
    limit[sick] = (case.ts[fails] - case.ts[0]).abs()
    whole = data.draw(st.booleans())
    together = with_limit(poisoned(case, whole), limit)
    sol = together.solve(tol=tol, throw=False, **how)
    healthy = [sample for sample in range(len(singles)) if sample != sick]
    expected = case.solve(tol=tol, **how).ys
    for sample in healthy if isinstance(case.term, ps.Denoiser) else [0] * (sick != 0):
        assert_close(sol.ys[:, sample], expected[:, sample], case.rounding(expected[:, sample]))
    assert sol.ys[:, healthy].isfinite().all()
    ref = with_limit(poisoned(singles[sick], whole), limit[sick : sick + 1]).sequential(throw=False)
    reached = ~ref.ys.reshape(len(ref.ts), -1).isnan().any(1)
    assert torch.equal(~sol.ys[:, sick].reshape(len(sol.ts), -1).isnan().any(1), reached)
    assert sol.result is ps.Result.nonfinite
    with pytest.raises(ps.SolveError) as caught:
        together.solve(tol=tol, **how)
    assert caught.value.step == int(reached.sum()) - 1


@settings(max_examples=15)
@given(st.data())
def test_jumps_that_overflow_do_no_harm(data):
    """y' = -k y with 200 steps of hk up to 1.9: a jump over a block multiplies by up to 1 - 1.9 * 20."""
    hk, tol = data.draw(st.sampled_from([0.3, 1.2, 1.9])), data.draw(st.sampled_from([0, 1e-4]))
    term, ts = ps.ODE(lambda t, y: -hk * 20 * y - y**3), torch.linspace(0, 10, 201, dtype=torch.float64)
    y0 = randn(generator(data.draw(seeds)), 3, dtype=torch.float32) / 10
    given = {"integrator": ps.Euler(), "iteration": data.draw(hyper_parameters(200))}
    sol, ref = ps.solve(term, y0, ts, tol=tol, **given), ps.sequential(term, y0, ts, integrator=ps.Euler())
    change = (tol + 8 * torch.finfo(torch.float32).eps) * (1 + float(y0.abs().max())) * math.sqrt(3)
    assert_close(sol.ys, ref.ys, 40 * 12 * change / (1 - abs(1 - hk)))
    assert sol.stats.rounds <= 200


@given(st.integers(2, 8), st.integers(3, 8), st.integers(0, 60))
def test_a_core_whose_steps_fail_does_not_take_over(blocks, length, fails):
    """Jumps of a constant drift are exact, so each core is handed the lead, if it has got so far."""
    fails = min(fails, blocks * length - 1)
    ts = torch.arange(blocks * length + 1, dtype=torch.float64)
    term = ps.ODE(lambda t, y: torch.where(t >= fails, torch.nan, torch.ones_like(y)))
    given = {"integrator": ps.Euler(), "throw": False}
    sol = ps.solve(term, torch.zeros(3), ts, tol=1e-3, iteration=ps.Parareal(blocks), **given)
    assert torch.equal(sol.ys.isnan(), ps.sequential(term, torch.zeros(3), ts, **given).ys.isnan())
    assert sol.result is ps.Result.nonfinite


def test_cores_that_are_lost_start_anew():
    """The jump over the first ten steps from 1 leads to -4, where there is no drift; after them the drift is zero.

    So core 1 is a jump from core 0 when that has made its ten steps, and core 0 meets it another ten steps later; from
    then on a core meets the next in every round, and core 8 the end.
    """
    term = ps.ODE(lambda t, y: torch.where(y.abs() > 2, torch.nan, -y / 2 * (t < 10)))
    y0, ts = torch.ones(3, dtype=torch.float64), torch.arange(101, dtype=torch.float64)
    sol = ps.solve(term, y0, ts, tol=1e-9, integrator=ps.Euler(), iteration=ps.Parareal(10))
    assert sol.stats.rounds == 28
    assert_close(sol.ys, ps.sequential(term, y0, ts, integrator=ps.Euler()).ys, 1e-12)


def test_the_jumps_do_overflow():
    """Without this the test above would test nothing."""
    y = 0.1
    for block in range(8):
        y += 20 * (-1.9 * y - y**3 / 20)
        assert block or abs(y) > 1
        if abs(y) > 1e38:
            return
    raise AssertionError(y)


# ---- refusals

BAD = {
    "blocks zero": ({"blocks": 0}, ValueError, "blocks: expected an integer >= 1, got 0."),
    "blocks float": ({"blocks": 2.0}, TypeError, "blocks: expected an integer >= 1, got 2.0."),
    "coarse zero": ({"coarse": 0}, ValueError, "coarse: expected an integer >= 1, got 0."),
    "iterations zero": ({"iterations": 0}, ValueError, "iterations: expected an integer >= 1, got 0."),
    "starts list": ({"starts": [0, 2]}, TypeError, "starts: expected a tuple of integers, got [0, 2]."),
    "starts float": ({"starts": (0, 2.0)}, TypeError, "starts: expected a tuple of integers, got (0, 2.0)."),
    "starts empty": ({"starts": ()}, ValueError, "starts: expected 0 and then steps more than coarse=1 apart"),
    "starts late": ({"starts": (1, 4)}, ValueError, "starts: expected 0 and then steps more than coarse=1 apart"),
    "starts close": ({"starts": (0, 2, 3)}, ValueError, "starts: expected 0 and then steps more than coarse=1 apart"),
    "starts coarse": (
        {"starts": (0, 2), "coarse": 2},
        ValueError,
        "starts: expected 0 and then steps more than coarse=2",
    ),
    "both": ({"starts": (0, 2), "blocks": 2}, ValueError, "blocks: got 2 beside starts=(0, 2); pass either one."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_hyper_parameters_are_refused(case):
    given, error, message = BAD[case]
    with pytest.raises(error, match="^" + re.escape(message)):
        ps.Parareal(**given)


def unused(*args):
    raise AssertionError("called")


def test_starts_beyond_the_grid_are_refused():
    term, iteration = ps.ODE(unused), ps.Parareal(starts=(0, 4, 10))
    with pytest.raises(ValueError, match=r"^iteration: Parareal has a start at step 10 of a grid of 10 steps; pass"):
        ps.solve(term, torch.ones(3), torch.linspace(0, 1, 11), integrator=ps.Euler(), iteration=iteration)


def test_multistep_integrators_are_refused():
    term = ps.Denoiser(unused, ps.schedules.EDM())
    with pytest.raises(TypeError, match=r"^integrator: Parareal goes on from single states, .*1 earlier steps; pass"):
        ps.solve(term, torch.ones(1, 3), ps.grids.karras(4.0, 0.1, 8), integrator=ps.DPMSolver(2), **ps.presets.srds())


def test_presets_refuse_what_was_not_published():
    with pytest.raises(ValueError, match=r"^cores: expected one of 4, 6, 8, got 5\.$"):
        ps.presets.chords(cores=5)
    with pytest.raises(ValueError, match=r"^steps: expected an integer >= 1, got 0\.$"):
        ps.presets.chords(steps=0)


@given(st.integers(1, 300), st.sampled_from([4, 6, 8]))
def test_chords_starts_fit_any_grid(steps, cores):
    starts = ps.presets.chords(steps, cores)["iteration"].cores(steps, 32)
    scaled = {round(start * steps / 50 + 1e-9) for start in ps.presets.chords(50, cores)["iteration"].starts}
    assert set(starts) <= scaled
    assert len(starts) == cores or steps < 50


@pytest.mark.parametrize("cores", [4, 6, 8])
@pytest.mark.parametrize("steps", [25, 50, 100, 333])
def test_chords_fits_the_grid_that_it_is_used_on(steps, cores):
    """Whatever grid it was made for, if any."""
    term, y0, ts = (
        ps.ODE(lambda t, y: torch.sin(3 * y)),
        torch.ones(2, dtype=torch.float64),
        torch.linspace(0, 1, steps + 1),
    )
    expected = ps.presets.chords(steps, cores)["iteration"].cores(steps, cores)
    assert expected[-1] >= 0.6 * steps
    for given_ in (ps.presets.chords(cores=cores), ps.presets.chords(50, cores), ps.presets.chords(steps, cores)):
        assert given_["iteration"].cores(steps, cores) == expected
        sol = ps.solve(term, y0, ts, integrator=ps.Euler(), tol=1e-6, **given_)
        assert sol.notes == (f"Parareal with {len(expected)} cores",)


@pytest.mark.parametrize("iteration", [ps.Parareal(), ps.Parareal(8), ps.Parareal(starts=(0, 3, 9, 20, 40))])
def test_the_window_is_the_most_cores_and_that_is_said(iteration):
    term, y0, ts = ps.ODE(lambda t, y: torch.sin(3 * y)), torch.ones(2, dtype=torch.float64), torch.linspace(0, 1, 65)
    free = iteration.cores(64, 64)
    for window in (1, 2, 3, 64):
        sol = ps.solve(term, y0, ts, integrator=ps.Euler(), tol=1e-6, iteration=iteration, window=window)
        cores = min(window, len(free))
        assert sol.stats.max_width <= cores
        limited = "" if cores == len(free) else f", of {len(free)}: window={window} allows no more"
        assert sol.notes == (f"Parareal with {cores} core{'s' * (cores > 1)}{limited}",)
    with pytest.raises(ValueError, match=r"^grid: got 50 without starts"):
        ps.Parareal(grid=50)
