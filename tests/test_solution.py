"""What comes back: the solution, its costs, the record of its rounds, the plot and the progress bar."""

import sys
from dataclasses import dataclass, field

import matplotlib as mpl
import pytest
import torch

import picardsolve as ps
from picardsolve.results.progress import Progress

mpl.use("Agg")
from matplotlib import pyplot as plt

TS = ps.grids.uniform(0.0, 2.0, 16)
Y = torch.tensor([1.0, 2.0], dtype=torch.float64)
BATCH = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]], dtype=torch.float64)
H = 2.0 / 16


@dataclass
class Recorder:
    """A drift that keeps what it was asked for: step and state of every row of every call (Euler, one system)."""

    calls: list = field(default_factory=list)

    def __call__(self, t, y):
        self.calls.append([(round(float(time) / H), state.clone()) for time, state in zip(t, y, strict=True)])
        return slope(t, y)

    def rounds(self, history):
        """Per round, the state of every step of the window; a row that was added to check the drift comes last.

        Calls behind those of the rounds measure how errors grow.
        """
        return [dict(rows[: int(record.width)]) for record, rows in zip(history, self.calls, strict=False)]


def slope(t, y):
    return torch.sin(3 * y) + t


def solve(drift=slope, y0=Y, **change):
    return ps.solve(ps.ODE(drift), y0, TS, **{"integrator": ps.Euler(), **change})


def reference(drift=slope, y0=Y, **change):
    return ps.sequential(ps.ODE(drift), y0, TS, **{"integrator": ps.Euler(), **change})


def rms(x):
    return float(x.square().mean().sqrt())


# ---- the record of the rounds


@pytest.mark.parametrize("window", [1, 3, 7, 64])
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("integrator", [ps.Euler(), ps.Heun()])
def test_the_windows_follow_each_other_to_the_end(window, batch_dims, integrator):
    y0 = BATCH if batch_dims else Y
    solution = solve(y0=y0, batch_dims=batch_dims, window=window, tol=1e-6, integrator=integrator)
    samples = len(BATCH) if batch_dims else 1
    at = torch.zeros(samples, dtype=torch.int64)
    for record in solution.history:
        assert torch.equal(record.begin, at)
        running = at < len(TS) - 1
        assert bool((record.stride[running] >= 1).all())  # the exact first step, at least
        assert bool((record.stride <= record.width).all())
        assert bool((record.width <= window).all())
        assert bool((record.width[~running] == 0).all())
        shape = (int(record.width.max()), samples)
        assert record.increments.shape == record.residuals.shape == shape
        at = at + record.stride
    assert bool((at == len(TS) - 1).all())


def test_the_record_says_what_was_evaluated():
    recorder = Recorder()
    solution = solve(recorder, window=6, tol=1e-4, stop="residual")
    for record, states in zip(solution.history, recorder.rounds(solution.history), strict=True):
        begin = int(record.begin)
        assert list(states) == list(range(begin, begin + int(record.width)))
    widths = [int(record.width) for record in solution.history]
    stats = solution.stats
    assert (stats.steps, stats.rounds, stats.calls) == (16, len(widths), len(widths))
    assert stats.max_width == max(widths) == 6
    assert stats.evaluations == sum(len(rows) for rows in recorder.calls)
    assert sum(widths) <= stats.evaluations <= sum(widths) + 1  # one more to see whether rows are mixed


@pytest.mark.parametrize("iteration", [ps.Picard(), ps.Jacobi(), ps.Exponential()])
def test_residuals_and_increments_are_what_their_names_say(iteration):
    """Recomputed from the states that the drift was asked for, without the library's help."""
    recorder = Recorder()
    solution = solve(recorder, window=6, tol=1e-4, iteration=iteration)
    rounds, checked = recorder.rounds(solution.history), 0
    for record, now, then in zip(solution.history, rounds, rounds[1:], strict=False):
        begin = int(record.begin)
        for n in now:
            if n + 1 not in now:
                continue
            image = now[n] + H * slope(torch.tensor(n * H), now[n])
            assert float(record.residuals[n - begin, 0]) == pytest.approx(rms(image - now[n + 1]), abs=1e-14)
            if n + 1 in then:
                change = rms(then[n + 1] - now[n + 1])
                assert float(record.increments[n - begin, 0]) == pytest.approx(change, abs=1e-14)
                checked += 1
    assert checked > 10


def test_an_accepted_state_never_changes_again():
    recorder = Recorder()
    solution = solve(recorder, window=6, tol=1e-4, stop="residual")
    for record, states in zip(solution.history, recorder.rounds(solution.history), strict=True):
        assert torch.equal(states[int(record.begin)], solution.ys[int(record.begin)])


def test_a_step_is_accepted_when_its_change_is_within_tolerance():
    solution = solve(window=6, atol=1e-3, rtol=0.0, stop="increment")
    slid = 0
    for record in solution.history:
        stride, width = int(record.stride), int(record.width)
        assert bool((record.increments[: stride - 1, 0] <= 1e-3).all())  # the exact step comes on top of them
        if stride < width:
            assert float(record.increments[stride - 1, 0]) > 1e-3
        slid += stride > 1
    assert slid > 0


def test_a_sequential_solution_has_no_rounds():
    solution = reference()
    assert not solution.history
    assert solution.stats == ps.Stats(steps=16, rounds=16, evaluations=16, calls=16, max_width=1)
    assert solution.result is ps.Result.converged


@pytest.mark.parametrize(("integrator", "stages"), [(ps.Euler(), 1), (ps.Heun(), 2), (ps.RK4(), 4)])
def test_costs_are_the_calls_that_were_made(integrator, stages):
    rows = []

    def drift(t, y):
        rows.append(len(y))
        return slope(t, y)

    for call in (solve, reference):
        rows.clear()
        stats = call(drift, integrator=integrator).stats
        assert stats.calls == stats.rounds == len(rows)
        assert stats.evaluations == sum(rows)
        assert stats.rounds % stages == 0
    rows.clear()
    stats = solve(drift, integrator=integrator, window=8, max_batch=3).stats
    assert stats.calls == len(rows) > stats.rounds
    assert max(rows) <= 3
    assert stats.max_width == 8


# ---- what is kept


@pytest.mark.parametrize("call", [solve, reference])
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_save_last_is_the_last_of_save_all(call, structured, batch_dims):
    y0 = {"a": BATCH, "b": BATCH[:, :1].clone()} if structured else BATCH

    def drift(t, y):
        return {key: slope(t, leaf) for key, leaf in y.items()} if structured else slope(t, y)

    every = call(drift, y0, batch_dims=batch_dims, save="all")
    last = call(drift, y0, batch_dims=batch_dims, save="last")
    assert torch.equal(every.ts, TS)
    assert torch.equal(last.ts, TS[-1:])
    assert every.stats == last.stats
    for key in y0 if structured else [...]:
        whole, end, start = (every.ys[key], last.ys[key], y0[key])
        assert whole.shape == (17, *start.shape)
        assert end.shape == (1, *start.shape)
        assert torch.equal(whole[0], start)
        assert torch.equal(whole[-1:], end)


def test_times_are_those_that_were_given():
    ts = [1.0, 0.75, 0.0]
    for call in (ps.solve, ps.sequential):
        solution = call(ps.ODE(slope), Y.float(), ts, integrator=ps.Euler())
        assert solution.ts.tolist() == ts
        assert solution.ts.dtype == torch.float64
        assert solution.ys.dtype == torch.float32


def test_a_solution_cannot_be_changed():
    solution = solve()
    with pytest.raises(AttributeError):
        solution.result = ps.Result.max_rounds  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e-25), (torch.float32, 1e21), (torch.float64, 1e-200), (torch.float64, 1e200)]
)
def test_states_whose_squares_leave_the_range_of_floats(dtype, size):
    """A small change is not none, and a large one is not infinite: the rounds are those of a state of size one."""
    y0 = torch.tensor([1.0, 2.0], dtype=dtype)
    one = solve(lambda t, y: -y, y0, tol=0.0)
    scaled = solve(lambda t, y: -y, y0 * size, tol=0.0)
    torch.testing.assert_close(scaled.ys / size, one.ys)
    assert abs(scaled.stats.rounds - one.stats.rounds) <= 2


# ---- a drift with parameters, as every network has


def test_a_network_as_it_is_gives_what_it_gives_without_gradients():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    with torch.no_grad():
        expected = solve(lambda t, y: network(y), tol=0.0)
    for iteration in (ps.Picard(), ps.Jacobi(), ps.Exponential()):
        solution = solve(lambda t, y: network(y), tol=0.0, iteration=iteration)
        torch.testing.assert_close(solution.ys.detach(), expected.ys, rtol=0, atol=1e-13)
        assert not any(record.increments.requires_grad for record in solution.history)
        plt.close(solution.plot())


def test_an_initial_state_that_requires_gradients():
    expected = solve()
    solution = solve(y0=Y.clone().requires_grad_())
    torch.testing.assert_close(solution.ys.detach(), expected.ys)


# ---- solves that do not end well


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_rounds_returns_what_has_converged(limit):
    whole, partial = solve(tol=1e-6), solve(tol=1e-6, max_rounds=limit, throw=False)
    assert partial.result is ps.Result.max_rounds
    assert partial.result.value.startswith("The limit of rounds was reached first: raise max_rounds")
    assert partial.stats.rounds == len(partial.history) == limit
    steps = int(partial.history[-1].begin + partial.history[-1].stride)
    assert limit <= steps < 16
    assert torch.equal(partial.ys[: steps + 1], whole.ys[: steps + 1])
    assert bool(partial.ys[steps + 1 :].isnan().all())
    assert partial.ys.shape == whole.ys.shape
    assert torch.equal(partial.ts, TS)
    assert partial.history[-1].stride.equal(whole.history[limit - 1].stride)


def test_max_rounds_raises_with_the_same_solution():
    partial = solve(tol=1e-6, max_rounds=3, throw=False)
    with pytest.raises(ps.SolveError) as raised:
        solve(tol=1e-6, max_rounds=3)
    error = raised.value
    steps = int((~partial.ys.isnan().any(-1)).sum()) - 1
    assert str(error) == f"{steps} of 16 steps converged. {ps.Result.max_rounds.value}"
    assert (error.step, error.time) == (None, None)
    assert torch.equal(error.solution.ys.nan_to_num(), partial.ys.nan_to_num())
    assert error.solution.stats == partial.stats


def test_enough_rounds_are_no_limit():
    rounds = len(solve().history)
    assert solve(max_rounds=rounds).result is ps.Result.converged
    with pytest.raises(ps.SolveError):
        solve(max_rounds=rounds - 1)


@pytest.mark.parametrize(("integrator", "stages"), [(ps.Heun(), 2), (ps.RK4(), 4)])
@pytest.mark.parametrize("limit", [8, 9, 10, 11])
def test_max_rounds_counts_stages_and_is_never_passed(integrator, stages, limit):
    stats = solve(integrator=integrator, tol=0.0, max_rounds=limit, throw=False).stats
    assert limit - stages < stats.rounds <= limit


def test_max_rounds_with_save_last_has_no_state_of_an_unfinished_sample():
    """The second sample stands still and is done at once, the others are not."""
    ys = solve(lambda t, y: y * y.sin(), torch.tensor([[1.0], [0.0], [2.0]]), batch_dims=1, max_rounds=3, tol=0.0,
               throw=False, save="last").ys  # fmt: skip
    assert ys.shape == (1, 3, 1)
    assert ys[0, :, 0].isnan().tolist() == [True, False, True]
    assert float(ys[0, 1, 0]) == 0.0


def blows_up(t, y):
    """Not finite from t = 1 on, where y is above 10: leaving step 8 of the grid."""
    return torch.where((t >= 1.0) & (y > 10), torch.inf, 1 + 0 * y)


@pytest.mark.parametrize("call", [solve, reference])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_a_step_that_is_not_finite_ends_its_sample_only(call, window):
    y0 = torch.tensor([[1.0], [20.0], [2.0]], dtype=torch.float64)
    given = {"window": window} if call is solve else {}
    solution = call(blows_up, y0, batch_dims=1, throw=False, **given)
    assert solution.result is ps.Result.nonfinite
    assert "not finite: take smaller steps" in solution.result.value
    torch.testing.assert_close(solution.ys[:, ::2, 0], y0[::2, 0] + TS[:, None])
    torch.testing.assert_close(solution.ys[:9, 1, 0], 20 + TS[:9])
    assert bool(solution.ys[9:, 1].isnan().all())
    with pytest.raises(ps.SolveError) as raised:
        call(blows_up, y0, batch_dims=1, **given)
    assert str(raised.value) == f"Step 8 of sample 1 at t = 1 is not finite. {ps.Result.nonfinite.value}"
    assert (raised.value.step, raised.value.time) == (8, 1.0)
    assert torch.equal(raised.value.solution.ys.nan_to_num(), solution.ys.nan_to_num())


@pytest.mark.parametrize("call", [solve, reference])
def test_a_failed_sample_has_no_last_state(call):
    y0 = torch.tensor([[1.0], [20.0]], dtype=torch.float64)
    ys = call(blows_up, y0, batch_dims=1, throw=False, save="last").ys
    assert float(ys[0, 0, 0]) == pytest.approx(3.0)
    assert bool(ys[0, 1].isnan().all())


def test_an_error_is_a_runtime_error_and_the_sentence_names_no_sample_of_one_system():
    with pytest.raises(RuntimeError, match=r"^Step 8 at t = 1 is not finite\. "):
        solve(blows_up, torch.tensor([20.0, 1.0]))


# ---- the plot


@pytest.fixture
def figures():
    before = plt.get_fignums()
    yield
    assert before == []
    plt.close("all")


@pytest.mark.usefixtures("figures")
def test_the_plot_shows_the_residuals_and_the_window():
    solution = solve(window=6, tol=1e-4)
    figure = solution.plot()
    axes, bar = figure.axes
    rounds = len(solution.history)
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("step", "sweep", "residual")
    assert axes.get_title() == f"16 steps in {solution.stats.rounds} rounds"
    assert axes.get_xlim() == (0, 16)
    assert axes.get_ylim() == (rounds, 0)  # the first round on top
    begins, ends = axes.lines
    assert list(begins.get_xdata()) == [int(record.begin) for record in solution.history]
    assert list(ends.get_xdata()) == [int(record.begin + record.width) for record in solution.history]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["accepted so far", "end of the window"]
    shown = axes.collections[0].get_array()
    smallest = 1e-9 * max(float(record.residuals.max()) for record in solution.history)
    assert shown.shape == (rounds, 16)
    for k, record in enumerate(solution.history):
        begin, width = int(record.begin), int(record.width)
        expected = record.residuals[:, 0].clamp(min=smallest).tolist()
        assert list(shown[k, begin : begin + width]) == pytest.approx(expected, rel=1e-6)
        assert shown.mask[k].sum() == 16 - width  # nothing is drawn outside of the window


@pytest.mark.usefixtures("figures")
def test_the_plot_is_of_the_sample_that_was_asked_for():
    solution = solve(y0=BATCH, batch_dims=1, window=5, tol=1e-4)
    drawn = []
    for sample in range(3):
        axes = solution.plot(sample).axes[0]
        begins, shown = axes.lines[0].get_xdata(), axes.collections[0].get_array()
        assert list(begins) == [int(record.begin[sample]) for record in solution.history]
        first = [float(record.residuals[0, sample]) for record in solution.history[:2]]
        assert [shown[0, 0], shown[1, 1]] == pytest.approx(first, rel=1e-6)
        drawn.append(tuple(begins))
    assert len(set(drawn)) > 1
    with pytest.raises((IndexError, ValueError)):
        solution.plot(3)


@pytest.mark.usefixtures("figures")
def test_the_plot_of_a_solve_whose_residuals_are_all_zero_or_not_finite():
    assert solve(lambda t, y: 0 * y).plot().axes
    assert solve(lambda t, y: torch.nan * y, throw=False).plot().axes


@pytest.mark.usefixtures("figures")
def test_a_sequential_solution_has_nothing_to_plot():
    with pytest.raises(ValueError, match=r"^plot: this solution was computed step by step, .* use solve\(\)"):
        reference().plot()
    assert plt.get_fignums() == []


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch):
    solution = solve()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plot: needs matplotlib; pip install picardsolve\[plot\]"):
        solution.plot()


# ---- the progress bar


@pytest.mark.parametrize("call", [solve, reference])
def test_progress_shows_steps_and_rounds_on_stderr(call, capfd):
    solution = call(integrator=ps.Heun(), progress=True)
    shown = capfd.readouterr()
    last = shown.err.rsplit("\r", 1)[-1]
    assert "16/16" in last
    assert "step/s" in last
    assert f"rounds={solution.stats.rounds}" in last
    assert "0/16" in shown.err.split("\r")[1]
    assert shown.out == ""


def test_progress_of_a_solve_that_stops_shows_how_far_it_came(capfd):
    partial = solve(tol=1e-6, max_rounds=4, throw=False, progress=True)
    steps = int(partial.history[-1].begin + partial.history[-1].stride)
    assert f"{steps}/16" in capfd.readouterr().err.rsplit("\r", 1)[-1]


@pytest.mark.parametrize("call", [solve, reference])
def test_a_solve_is_silent_by_default(call, capfd):
    call()
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_what_is_expected_is_asked_for_when_the_bar_is_drawn(monkeypatch, capfd):
    """Not in every round: it goes over all of them."""
    clock, asked = iter(0.01 * k for k in range(10_000)), []
    monkeypatch.setattr("picardsolve.results.progress.monotonic", lambda: next(clock))
    with Progress(1000, True) as bar:
        for k in range(1000):
            bar.update(k + 1, k + 1, lambda k=k: asked.append(k) or 1000.0)
    assert asked[0] == 0
    assert asked[-1] == 999
    assert len(asked) < 200
    assert "rounds=1000 of about 1000" in capfd.readouterr().err


def test_the_segments_of_collocation_are_drawn():
    """They follow each other from the first time to the last, the way time runs."""
    for y0, batch_dims, ts in ((Y, 0, TS), (BATCH, 1, TS.flip(0))):
        solution = ps.solve(ps.ODE(slope), y0, ts, integrator=ps.Collocation(max_step=0.3), batch_dims=batch_dims)
        for sample in range(len(y0) if batch_dims else 1):
            figure = solution.plot(sample)
            values, edges, _ = figure.axes[0].patches[0].get_data()
            plt.close(figure)
            assert edges[[0, -1]] == pytest.approx([float(ts[0]), float(ts[-1])])
            assert values == pytest.approx(abs(edges[1:] - edges[:-1]))
            assert len(values) >= 7
            assert max(values) < 0.3 + 1e-12
            assert f"{len(values)} segments in {solution.stats.rounds} rounds" in figure.axes[0].get_title()


@pytest.mark.parametrize("integrator", [ps.Euler(), ps.Collocation()])
def test_a_sample_that_is_not_there_cannot_be_drawn(integrator):
    solution = ps.solve(ps.ODE(slope), BATCH, TS, integrator=integrator, batch_dims=1)
    with pytest.raises(ValueError, match=r"^sample: expected one of 3, counted from 0, got 3"):
        solution.plot(3)
    with pytest.raises(ValueError, match=r"^sample: expected an integer >= 0"):
        solution.plot(-1)
