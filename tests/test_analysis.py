"""What is told before a solve, held against the solve."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pytest
import torch
from cases import STAGES, Case, denoiser_cases, generator, ode_cases, randn, sde_cases
from hypothesis import given, settings
from torch import Tensor

import picardsolve as ps

mpl.use("Agg")
from matplotlib import pyplot as plt

EULER = {"integrator": ps.Euler()}
MOST_CALLS = 13  # on grids of up to 65 steps; on longer ones a fifth of the sequential solver's


class Clock:
    """What analyze reads the time from: only drifts take any, so that nothing depends on the machine."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-5
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr("picardsolve.analysis.trial.perf_counter", CLOCK)


@dataclass
class Counted:
    """A function that counts its calls and their rows, and takes its time."""

    function: Any
    call: float = 0.0
    row: float = 0.0
    calls: int = 0
    rows: int = 0

    def __call__(self, first, second, **more):
        rows = max(len(first), len(second))
        self.calls, self.rows = self.calls + 1, self.rows + rows
        CLOCK.now += self.call + self.row * rows
        return self.function(first, second, **more)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def ring(t: Tensor, y: Tensor) -> Tensor:
    """Pendulums, each pulled by its neighbours."""
    angle, speed = y.chunk(2, -1)
    pull = torch.roll(angle, 1, -1) + torch.roll(angle, -1, -1) - 2 * angle
    return torch.cat([speed, 0.5 * pull - torch.sin(angle)], -1)


def predator(t: Tensor, y: Tensor) -> Tensor:
    prey, hunter = y.chunk(2, -1)
    return torch.cat([1.5 * prey - prey * hunter, prey * hunter - 3 * hunter], -1)


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def two_points(spread: float) -> ps.Denoiser:
    """The exact denoiser of two points, blurred."""
    schedule = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    points = randn(generator(3), 2, 16)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        variance = (alpha * spread) ** 2 + sigma**2
        away = x[:, None] - alpha[..., None] * points
        weight = torch.softmax(-away.square().sum(-1) / (2 * variance), -1)
        return sigma / variance * (weight[..., None] * away).sum(1)

    return ps.Denoiser(noise, schedule)


def sampler_times(steps: int) -> Tensor:
    return ps.grids.given([*range(1000 - 1000 // steps, -1, -1000 // steps), -1])


START = randn(generator(1), 16)
UNIFORM = ps.grids.uniform
OU = ps.SDE(decay, lambda t, y: 0.5 * torch.ones_like(y), "additive")
GBM = ps.SDE(lambda t, y: 0.1 * y, lambda t, y: 0.3 * y)
PROBLEMS = {
    "decay": (ps.ODE(decay), START, UNIFORM(0, 2, 400), EULER | {"tol": 1e-6}),
    "pendulums": (ps.ODE(ring), START, UNIFORM(0, 6, 400), EULER | {"tol": 1e-5}),
    "pendulums, RK4": (ps.ODE(ring), START, UNIFORM(0, 6, 200), {"integrator": ps.RK4(), "tol": 1e-7}),
    "backward": (ps.ODE(ring), START, UNIFORM(4, 0, 300), {"integrator": ps.Heun(), "tol": 1e-4}),
    "Lotka-Volterra": (ps.ODE(predator), torch.tensor([3.0, 2.0]).double(), UNIFORM(0, 3, 300), EULER | {"tol": 1e-5}),
    "Lorenz": (ps.ODE(lorenz), torch.tensor([1.0, 1.0, 20.0]).double(), UNIFORM(0, 1, 400), EULER | {"tol": 1e-5}),
    "Ornstein-Uhlenbeck": (OU, START, UNIFORM(0, 4, 200), EULER | {"tol": 1e-3}),
    "geometric": (GBM, 1 + START.abs(), UNIFORM(0, 2, 200), EULER | {"tol": 1e-3}),
    "DDIM": (two_points(0.3), randn(generator(2), 3, 16), sampler_times(100), {"integrator": ps.DDIM(), "tol": 1e-2}),
    "DDPM": (two_points(0.3), randn(generator(2), 3, 16), sampler_times(100), {"integrator": ps.DDPM(), "tol": 1e-2}),
}


def kinds(analysis: ps.Analysis) -> set[str]:
    return {note.split(":")[0].split(",")[0] for note in analysis.notes}


@pytest.mark.parametrize("name", PROBLEMS)
def test_expected_rounds_are_within_a_factor_of_two(name, monkeypatch):
    """For widths that it vouches for, 8 and 32 among them; without the rounds that measure growth after a solve."""
    monkeypatch.setattr("picardsolve.certificate.sharpening.measurable", lambda *_: False)
    term, y0, ts, how = PROBLEMS[name]
    sure = [row for row in ps.analyze(term, y0, ts, **how).table if row.reliable and row.width in (8, 32, len(ts) - 1)]
    assert {row.width for row in sure} >= {8, 32}
    for row in sure:
        stats = ps.solve(term, y0, ts, window=row.width, iteration=row.iteration, **how).stats
        per_step = stats.evaluations / (stats.steps * len(y0) if isinstance(term, ps.Denoiser) else stats.steps)
        assert row.rounds / 2 <= stats.rounds <= 2 * row.rounds, (row, stats)
        assert row.evaluations / 2.5 <= per_step / STAGES.get(type(how["integrator"]), 1) <= 2.5 * row.evaluations


def check_counts(case: Case) -> None:
    """The calls it owns up to are the calls it makes, and few."""
    term, where = case.term, "model" if isinstance(case.term, ps.Denoiser) else "drift"
    function = getattr(term, where)
    counted = Counted(function)
    given_ = {**case.given, "brownian": ps.BrownianPath(case.seed)}
    if not isinstance(term, ps.Denoiser):
        given_["batch_dims"] = case.batch_dims
    replaced = type(term)(**{**vars(term), where: counted})
    analysis = ps.analyze(replaced, case.y0, case.ts, integrator=case.integrator, **given_)
    most = MOST_CALLS * case.stages
    assert analysis.calls == counted.calls <= most
    assert analysis.evaluations == counted.rows
    assert analysis.steps == case.steps
    assert {row.width for row in analysis.table} >= {case.steps}
    assert all(1 <= row.rounds <= case.steps * case.stages for row in analysis.table)
    assert len(str(analysis).splitlines()) <= 20


@given(ode_cases())
@settings(max_examples=15)
def test_few_calls_and_all_counted_ode(case):
    check_counts(case)


@given(sde_cases())
@settings(max_examples=15)
def test_few_calls_and_all_counted_sde(case):
    check_counts(case)


@given(denoiser_cases())
@settings(max_examples=15)
def test_few_calls_and_all_counted_denoiser(case):
    check_counts(case)


# ---- economics


@pytest.mark.parametrize(("call", "row", "pays"), [(4e-3, 0.0, True), (0.0, 1e-3, False)])
def test_whether_it_pays_is_a_matter_of_what_rows_cost(call, row, pays):
    """A drift that takes the same for any rows pays; one that takes each row as long cannot."""
    analysis = ps.analyze(ps.ODE(Counted(ring, call, row)), START, UNIFORM(0, 4, 200), tol=1e-4, **EULER)
    assert analysis.pays == pays
    assert kinds(analysis) == (set() if pays else {"uneconomic"})
    assert (analysis.width > 8) == pays
    assert analysis.sequential == pytest.approx(200 * (call + row), rel=0.1)
    assert analysis.seconds[1] == pytest.approx(row, rel=0.5, abs=2e-4)
    best = max(line.gain for line in analysis.table if line.reliable)
    assert (best > 3) if pays else (best < 1)


def test_the_recommended_window_is_among_the_fastest():
    """By the drift's clock: the width that is recommended takes no more than twice what the best one takes."""
    term, ts = ps.ODE(Counted(ring, 2e-3, 5e-5)), UNIFORM(0, 6, 400)
    analysis = ps.analyze(term, START, ts, tol=1e-4, **EULER)
    assert analysis.pays

    def seconds(width: int) -> float:
        began = CLOCK.now
        ps.solve(term, START, ts, window=width, tol=1e-4, **EULER)
        return CLOCK.now - began

    taken = {width: seconds(width) for width in {4, 16, 64, 256, analysis.width}}
    assert max(taken.values()) > 2 * min(taken.values())
    assert taken[analysis.width] < 2 * min(taken.values())


# ---- warnings


def test_stiff_decay_is_told():
    analysis = ps.analyze(ps.ODE(lambda t, y: -200 * y), START, UNIFORM(0, 1, 1000), tol=1e-5, **EULER)
    assert analysis.stiff
    assert "stiff" in kinds(analysis)
    assert analysis.lipschitz == pytest.approx(200, rel=1e-6)
    assert analysis.one_sided == pytest.approx(-200, rel=1e-6)
    assert analysis.contraction == pytest.approx(200, rel=1e-3)


def test_chaos_is_not_foretold_but_found():
    """The first rounds do not see how errors will grow, and analyze does not say; the certificate of a solve does."""
    term, y0, ts = ps.ODE(lorenz), torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64), UNIFORM(0, 40, 4000)
    analysis = ps.analyze(term, y0, ts, integrator=ps.RK4(), tol=1e-5)
    assert math.isnan(analysis.growth)
    assert analysis.seen < 0.1
    assert 8 <= analysis.width <= 64 or not analysis.pays
    with pytest.warns(ps.ConvergenceWarning, match="unpredictable"):
        ps.solve(term, y0, ts, integrator=ps.RK4(), tol=1e-5)


def test_growth_of_a_denoiser_is_the_product_of_its_slopes():
    """Of one point: a step's Jacobian is a multiple of the identity."""
    model, ts = two_points(0.3), sampler_times(50)
    analysis = ps.analyze(model, randn(generator(2), 3, 16), ts, integrator=ps.DDIM(), tol=1e-2)
    assert 0 < analysis.growth < 1


def test_too_little_precision_is_told():
    single = ps.analyze(ps.ODE(lambda t, y: 3 * ring(t, y)), START.float(), UNIFORM(0, 3, 60), tol=3e-7, **EULER)
    double = ps.analyze(ps.ODE(lambda t, y: 3 * ring(t, y)), START, UNIFORM(0, 3, 60), tol=3e-7, **EULER)
    assert "precision" in kinds(single) - kinds(double)
    assert not single.table[-1].reliable


def test_a_sample_that_is_not_finite_is_told_and_disturbs_no_other():
    pace, y0 = torch.tensor([1.0, torch.nan, 2.0], dtype=torch.float64), START[:6].reshape(3, 2)
    term, ts = ps.ODE(lambda t, y, k: -k[:, None] * y), UNIFORM(0, 1, 100)
    how = EULER | {"batch_dims": 1, "tol": 1e-6}
    company = ps.analyze(term, y0, ts, args=(pace,), **how)
    alone = ps.analyze(term, y0[[0, 2]], ts, args=(pace[[0, 2]],), **how)
    assert "nonfinite" in kinds(company) - kinds(alone)
    assert [row.rounds for row in company.table] == pytest.approx([row.rounds for row in alone.table], rel=1e-6)
    assert company.contraction == pytest.approx(alone.contraction, rel=1e-6)


@pytest.mark.parametrize("drift", [lambda t, y: torch.ones_like(y), lambda t, y: torch.full_like(y, torch.nan)])
def test_a_drift_that_tells_nothing(drift):
    """Constant, or not finite from the first step on."""
    analysis = ps.analyze(ps.ODE(drift), START, UNIFORM(0, 1, 100), **EULER)
    assert len(str(analysis).splitlines()) <= 20
    assert all(row.width in (4, 8, 16, 32, 64, 100) for row in analysis.table)


@given(ode_cases(min_steps=8))
@settings(max_examples=10)
def test_the_lipschitz_constant_is_a_lower_bound(case):
    """The drifts that are drawn have constant 1, and the contracting one 1.5."""
    analysis = ps.analyze(case.term, case.y0, case.ts, integrator=case.integrator, batch_dims=case.batch_dims)
    assert 0 <= analysis.lipschitz <= 1.5 * (1 + 1e-2)
    assert analysis.one_sided <= analysis.lipschitz * (1 + 1e-6)


# ---- what it takes, and what it refuses


def test_a_dict_as_state_is_the_same_problem():
    ts, how = UNIFORM(0, 4, 200), EULER | {"tol": 1e-5}
    split = ps.ODE(
        lambda t, y: dict(
            zip(("angle", "speed"), ring(t, torch.cat([y["angle"], y["speed"]], -1)).chunk(2, -1), strict=True)
        )
    )
    parts = ps.analyze(split, {"speed": START[8:], "angle": START[:8]}, ts, **how)
    whole = ps.analyze(ps.ODE(ring), START, ts, **how)
    assert [row.rounds for row in parts.table] == [row.rounds for row in whole.table]
    assert parts.contraction == pytest.approx(whole.contraction)


def test_the_slowest_sample_decides():
    ts, how = UNIFORM(0, 4, 200), EULER | {"tol": 1e-5, "batch_dims": 1}

    def term(pace):
        return ps.ODE(lambda t, y, k: k[:, None] * ring(t, y)), torch.stack([START[:4]] * len(pace)), (pace,)

    rounds = {}
    for name, paces in (("fast", [0.3]), ("slow", [2.0]), ("both", [0.3, 2.0])):
        ode, y0, args = term(torch.tensor(paces, dtype=torch.float64))
        rounds[name] = [row.rounds for row in ps.analyze(ode, y0, ts, args=args, **how).table]
    assert all(quick < late for quick, late in zip(rounds["fast"], rounds["slow"], strict=True))
    assert all(both >= 0.8 * late for both, late in zip(rounds["both"], rounds["slow"], strict=True))


def test_no_more_rows_than_a_call_may_hold():
    counted = Counted(ring)
    analysis = ps.analyze(ps.ODE(counted), START, UNIFORM(0, 2, 100), max_batch=10, **EULER)
    assert max(row.width for row in analysis.table) == 10
    assert counted.calls <= 100 / 5
    assert counted.rows <= 10 * counted.calls


BAD = {
    "term": {"term": ring},
    "integrator": {"integrator": ps.DDIM()},
    "a class": {"integrator": ps.Euler},
    "ts": {"ts": [0.0, 0.0]},
    "tol": {"tol": -1.0},
    "tol and rtol": {"tol": 1e-3, "rtol": 1e-3},
    "max_batch": {"max_batch": 0},
    "y0": {"y0": torch.ones(3, dtype=torch.int64)},
    "args": {"args": torch.ones(2)},
    "batch_dims": {"batch_dims": 2},
    "brownian": {"brownian": 3},
    "cond": {"cond": {"label": 1}},
    "drift": {"term": ps.ODE(lambda t, y: y[..., :1])},
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_as_by_solve(bad):
    given_ = {"term": ps.ODE(ring), "y0": START, "ts": UNIFORM(0, 1, 20), **EULER, **BAD[bad]}
    where = [given_.pop(name) for name in ("term", "y0", "ts")]
    with pytest.raises((TypeError, ValueError)) as expected:
        ps.solve(*where, **given_)
    with pytest.raises(type(expected.value)) as raised:
        ps.analyze(*where, **given_)
    assert str(raised.value).split(":")[0] == str(expected.value).split(":")[0]


# ---- print and plot


def test_it_prints_what_it_recommends():
    analysis = ps.analyze(ps.ODE(Counted(ring, 3e-3)), START, UNIFORM(0, 4, 500), tol=1e-4, **EULER)
    text = str(analysis)
    assert f"window={analysis.width}" in text
    assert any(line.split()[:1] == [str(analysis.width)] for line in text.splitlines())
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines())) < 200


def test_it_plots_rounds_and_seconds():
    analysis = ps.analyze(ps.ODE(ring), START, UNIFORM(0, 4, 200), tol=1e-4, **EULER)
    figure = analysis.plot()
    rows = [row for row in analysis.table if row.iteration == analysis.iteration]
    rounds, seconds = (axes.lines[0].get_xydata() for axes in figure.axes)
    assert rounds.tolist() == [[row.width, row.rounds] for row in rows]
    assert seconds.tolist() == [[row.width, row.seconds] for row in rows]
    plt.close(figure)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    analysis = ps.analyze(ps.ODE(ring), START, UNIFORM(0, 1, 20), **EULER)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        analysis.plot()
