"""What a call of adaptive collocation promises: of samples, dtypes, structures and costs; of failures in words."""

import math
import re
from typing import Any

import pytest
import torch
from cases import generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS
from torch import Tensor

import picardsolve as ps
from picardsolve.results.abstract_certificate import AbstractCertificate

ITERATIONS = [None, ps.Picard(), ps.Secant(), ps.Newton()]
every_iteration = pytest.mark.parametrize("iteration", ITERATIONS, ids=["auto", "picard", "secant", "newton"])
ONE = torch.ones(2, dtype=torch.float64)


def decay(t: Any, y: Any) -> Any:
    return -y


def waves(t: Tensor, y: Tensor) -> Tensor:
    """Elementwise and not linear, with solutions that differ much in what they need."""
    return (3 * y + t).sin() - y**3 / 10


def solve(f: Any, y0: Any, ts: Any, **more: Any) -> ps.Solution:
    term = ps.ODE(f) if callable(f) else f
    return ps.solve(term, y0, ts, **{"integrator": ps.Collocation(), **more})


# ---- samples


@given(seeds, st.integers(2, 5), st.sampled_from(ITERATIONS))
@settings(max_examples=10)
def test_a_samples_result_does_not_depend_on_its_company(seed, samples, iteration):
    """Each has its own tolerance, arguments and times; to the last bit."""
    random = generator(seed)
    y0, rate = 2 * randn(random, samples, 3), 1 + randn(random, samples, 1) / 4
    rtol = 10 ** -(3 + 6 * torch.rand(samples, generator=random, dtype=torch.float64))
    gaps = 0.2 + torch.rand(3, samples, generator=random, dtype=torch.float64)
    ts = torch.cat([0 * gaps[:1], gaps.cumsum(0)]) - torch.arange(samples)

    def f(t, y, rate):
        return rate * waves(t, y)

    def solved(which: list[int]) -> ps.Solution:
        own = {"rtol": rtol[which], "atol": rtol[which] / 10, "args": (rate[which],)}
        return solve(f, y0[which], ts[:, which], batch_dims=1, iteration=iteration, **own)

    together = solved(list(range(samples)))
    alone = [solved([i]) for i in range(samples)]
    assert torch.equal(together.ys, torch.cat([each.ys for each in alone], 1))
    assert together.stats.rounds == max(each.stats.rounds for each in alone)
    probes = samples - 1  # of one row, which tell a drift's shape, one for each solve
    assert together.stats.evaluations == sum(each.stats.evaluations for each in alone) - probes
    assert torch.equal(together.certificate.error, torch.cat([each.certificate.error for each in alone], 1))


@every_iteration
def test_samples_of_a_drift_with_products_are_those_of_systems(iteration):
    matrix, y0 = randn(generator(1), 4, 4), randn(generator(2), 3, 4)

    def f(t, y):
        return (y @ matrix).sin()

    given = {"rtol": 1e-9, "atol": 1e-9, "iteration": iteration}
    together = solve(f, y0, [0.0, 2.0, 3.0], batch_dims=1, **given)
    for i, start in enumerate(y0):
        torch.testing.assert_close(together.ys[:, i], solve(f, start, [0.0, 2.0, 3.0], **given).ys, rtol=0, atol=1e-8)


@every_iteration
def test_a_failing_sample_disturbs_no_neighbour(iteration):
    """One has a pole at 1, one meets NaN at 0.5; they are right up to there, and NaN beyond."""
    y0, until = torch.tensor([[0.5], [1.0], [0.25], [0.1]]).double(), torch.tensor([[9.0], [9], [9], [0.5]]).double()
    ts = torch.tensor([0, 0.25, 0.4, 0.75, 0.9, 1.2, 1.5], dtype=torch.float64)

    def f(t, y, until):
        return torch.where(t > until, torch.nan, y * y)

    def solved(which: list[int]) -> ps.Solution:
        own = {"args": (until[which],), "iteration": iteration, "rtol": 1e-8, "atol": 1e-8}
        return solve(f, y0[which], ts, batch_dims=1, throw=False, **own)

    sol = solved([0, 1, 2, 3])
    assert sol.result in (ps.Result.diverged, ps.Result.nonfinite_drift)
    assert torch.equal(sol.ys[:, [0, 2]], solved([0, 2]).ys)
    assert sol.ys[..., 0].isnan().sum(0).tolist() == [0, 2, 0, 4]
    expected = y0.T / (1 - y0.T * ts[:, None])
    known = sol.ys[..., 0].isfinite()
    torch.testing.assert_close(sol.ys[..., 0][known], expected[known], rtol=1e-7, atol=1e-7)
    assert bool((sol(0.4).isfinite()).all())
    assert sol(1.4).isfinite().flatten().tolist() == [True, False, True, False]
    with pytest.raises(ps.SolveError, match=r"^Sample 1: "):
        solve(f, y0, ts, batch_dims=1, args=(until,), iteration=iteration)


# ---- dtypes and structures


@every_iteration
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_dtypes(dtype, iteration):
    """At the default tolerance, which is one that single precision reaches."""
    rate = complex(-0.5, 2) if dtype.is_complex else -0.5
    seen = set()

    def f(t, y):
        seen.update([t.dtype, y.dtype])
        return rate * y

    sol = solve(f, torch.ones(2, dtype=dtype), [0.0, 1.0, 3.0], iteration=iteration)
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    assert sol.ys.dtype == sol(0.7).dtype == dtype
    assert seen - {torch.float64} == {real, dtype} - {torch.float64}  # times may be in double precision
    expected = torch.tensor([1, rate, 3 * rate]).to(torch.complex128).exp()
    expected[0] = 1
    assert float((sol.ys.to(torch.complex128) - expected[:, None]).abs().max()) < 3e-5


@every_iteration
@pytest.mark.parametrize("vectorized", [True, False])
def test_structures_are_those_of_one_tensor(vectorized, iteration):
    """A dict with a scalar and a matrix, against a vector of all; a plain function is lifted."""
    y0 = randn(generator(3), 5)

    def f(t, y):
        return {"a": t.reshape(y["a"].shape) - y["a"], "b": y["b"].sin() + t}

    def flat(t, y):
        return torch.cat([t - y[:, :1], y[:, 1:].sin() + t], 1)

    given: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8, "iteration": iteration}
    start = {"a": y0[0], "b": y0[1:].reshape(2, 2)}
    sol = solve(ps.ODE(f, vectorized=vectorized), start, [0.0, 1.0, 2.0], **given)
    expected = solve(flat, y0, [0.0, 1.0, 2.0], **given)
    assert sol.ys["a"].shape == (3,)
    assert sol.ys["b"].shape == (3, 2, 2)
    for states, other in ((sol.ys, expected.ys), (sol([0.3, 1.7]), expected([0.3, 1.7]))):
        joined = torch.cat([states["a"][:, None], states["b"].flatten(1)], 1)
        torch.testing.assert_close(joined, other, rtol=1e-7, atol=1e-7)


def test_a_number_is_a_state():
    sol = solve(ps.ODE(lambda t, y: -2 * t * y, vectorized=False), torch.tensor(1.0).double(), [-1.0, 0.0, 1.0])
    torch.testing.assert_close(sol.ys, torch.tensor([1, math.e, 1]).double(), rtol=1e-5, atol=1e-7)
    assert sol(0.5).shape == ()


# ---- costs


@every_iteration
@pytest.mark.parametrize("max_batch", [None, 50])
def test_costs_are_what_the_drift_saw(iteration, max_batch):
    rows = []

    def f(t, y):
        assert t.shape == (len(y), 1)
        rows.append(len(y))
        return waves(t, y)

    given: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8, "iteration": iteration}
    sol = solve(f, ONE, [0.0, 4.0], max_batch=max_batch, **given)
    assert sol.stats.calls == len(rows)
    assert sol.stats.evaluations == sum(rows)
    if max_batch is None:
        assert sol.stats.rounds == len(rows)
        assert sol.stats.max_width == max(rows)
    else:
        whole = solve(waves, ONE, [0.0, 4.0], **given)
        assert max(rows) <= max_batch < whole.stats.max_width
        assert sol.stats.rounds == whole.stats.rounds
        assert torch.equal(sol.ys, whole.ys)


@every_iteration
def test_rounds_are_limited_and_what_is_done_is_right(iteration):
    problem = PROBLEMS["kepler_0.3"]
    ts = torch.linspace(*problem.span, 50, dtype=torch.float64)
    given: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7, "iteration": iteration}
    needed = solve(problem.f, problem.y0, ts, **given).stats.rounds
    reached = []
    for limit in (1, needed // 3, 2 * needed // 3):
        sol = solve(problem.f, problem.y0, ts, max_rounds=limit, throw=False, **given)
        assert sol.result is ps.Result.max_rounds
        assert sol.stats.rounds == limit
        known = sol.ys.isfinite().all(1)
        assert torch.equal(sol.ys[0], problem.y0)
        expected = torch.as_tensor(problem.exact(ts.numpy()))
        assert ((sol.ys - expected)[known].abs() <= 1e-5 * (1 + expected[known].abs())).all()
        reached.append(int(known.sum()))
    assert 1 == reached[0] < reached[1] < reached[2] < 50
    with pytest.raises(ps.SolveError, match="raise max_rounds") as error:
        solve(problem.f, problem.y0, ts, max_rounds=1, **given)
    assert error.value.solution.stats.rounds == 1
    assert solve(problem.f, problem.y0, ts, max_rounds=needed, **given).result is ps.Result.solved


# ---- failures


@every_iteration
def test_a_pole_is_named_and_what_comes_before_it_is_right(iteration):
    ts = torch.tensor([0, 0.5, 0.9, 0.99, 2]).double()
    with pytest.raises(ps.SolveError, match=r" at t = (1|0\.999)") as error:
        solve(lambda t, y: y * y, ONE, ts, rtol=1e-6, atol=1e-6, iteration=iteration)
    sol = error.value.solution
    assert sol.result in (ps.Result.diverged, ps.Result.nonfinite_drift)
    assert abs(error.value.time - 1) < 1e-3
    torch.testing.assert_close(sol.ys[:4, 0], 1 / (1 - ts[:4]), rtol=1e-4, atol=0)
    assert sol.ys[4].isnan().all()
    at = torch.linspace(0, 0.99, 30, dtype=torch.float64)
    torch.testing.assert_close(sol(at)[:, 0], 1 / (1 - at), rtol=1e-4, atol=0)


@every_iteration
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_time_at_which_the_drift_is_not_finite_is_named(bad, iteration):
    ts = torch.tensor([3, 2.9, 2.301, 1]).double()
    with pytest.raises(ps.SolveError, match=r"the drift is not finite at t = 2\.(3|29)") as error:
        solve(lambda t, y: torch.where(t < 2.3, bad, y), ONE, ts, iteration=iteration)
    assert error.value.solution.result is ps.Result.nonfinite_drift
    assert error.value.time == pytest.approx(2.3, abs=0.01)
    torch.testing.assert_close(error.value.solution.ys[:3], ((ts - 3).exp()[:, None] * ONE)[:3], rtol=1e-5, atol=1e-6)
    assert error.value.solution.ys[3].isnan().all()


@every_iteration
@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda t, y: (t - 1).sign() + 0 * y, 2.0),
        (lambda t, y: t.floor() + 0 * y, 4.0),
        (lambda t, y: (t - 1.3).abs() + 0 * y, 1 + 1.3**2 / 2 + 1.7**2 / 2),
        (lambda t, y: -y.sign(), None),
        (lambda t, y: torch.where(y < 2, 1.0, -1.0) + 0 * y, None),
    ],
    ids=["jump", "stairs", "kink", "sliding", "chattering"],
)
def test_drifts_that_jump_are_solved_or_refused(f, expected, iteration):
    sol = solve(f, ONE, [0.0, 3.0], rtol=1e-6, atol=1e-6, iteration=iteration, max_rounds=400, throw=False)
    if expected is None:
        assert sol.result is not ps.Result.solved
        assert sol.ys[-1].isnan().all()
    elif sol.result is ps.Result.solved:
        assert abs(float(sol.ys[-1, 0]) - expected) < 1e-4


@pytest.mark.parametrize("iteration", [ps.Picard(), ps.Secant(), ps.Newton()], ids=repr)
def test_a_narrow_pulse_is_found_with_short_steps(iteration):
    def pulse(t, y):
        return torch.exp(-(((t - 57.3) / 0.01) ** 2)) + 0 * y

    integrator = ps.Collocation(max_step=0.5)
    sol = solve(pulse, 0 * ONE, [0.0, 100.0], integrator=integrator, rtol=1e-9, atol=1e-9, iteration=iteration)
    assert abs(float(sol.ys[-1, 0]) - 0.01 * math.pi**0.5) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_tolerance_below_rounding_is_refused_with_one_that_is_not(dtype, size):
    y0 = torch.full((2,), size, dtype=dtype)
    with pytest.raises(ValueError, match=r"^rtol, atol: got 1e-20 and 0, less than torch\.\w+ can reach") as error:
        solve(decay, y0, [0.0, 1.0], rtol=1e-20, atol=0.0)
    rtol, atol = (float(number) for number in re.findall(r">= (\S+?)[,.]?(?:\s|$)", str(error.value)))
    for tolerances in ({"rtol": rtol, "atol": 0.0}, {"rtol": 0.0, "atol": atol}):
        sol = solve(decay, y0, [0.0, 1.0], **tolerances)
        assert float((sol.ys[-1] / size - math.exp(-1)).abs().max()) <= 3 * rtol


PAIR = (ONE, ONE)
REFUSED: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("iteration: .* takes Picard", TypeError, {"iteration": ps.Anderson()}),
    ("iteration: .* takes Picard", TypeError, {"iteration": "newton"}),
    ("guess, stop: .* its own; leave them out", ValueError, {"guess": ps.Copy()}),
    ("guess, stop: .* its own; leave them out", ValueError, {"stop": "increment"}),
    ("integrator: .* takes an ODE, got SDE", TypeError, {"f": ps.SDE(decay, decay)}),
    ("integrator: .*, got Denoiser", TypeError, {"f": ps.Denoiser(decay, ps.schedules.EDM())}),
    ("y0: a SecondOrderODE starts from", ValueError, {"f": ps.SecondOrderODE(decay)}),
    ("y0: a SecondOrderODE starts from", ValueError, {"f": ps.SecondOrderODE(decay), "y0": (*PAIR, ONE)}),
    ("y0: a SecondOrderODE starts from", ValueError, {"f": ps.SecondOrderODE(decay), "y0": (ONE, ONE[:1])}),
    ("drift: expected to return shape", ValueError, {"f": lambda t, y: y[:, :1]}),
    ("drift: it writes into its argument in place", ValueError, {"f": lambda t, y: y.mul_(-1)}),
    ("drift: could not be lifted", ValueError, {"f": ps.ODE(lambda t, y: y if y[0] > 0 else -y, vectorized=False)}),
    ("max_rounds: expected an integer", ValueError, {"max_rounds": 0}),
    ("max_batch: expected an integer", ValueError, {"max_batch": 0}),
]


@pytest.mark.parametrize(("message", "kind", "change"), REFUSED)
def test_calls_that_are_refused(message, kind, change):
    with pytest.raises(kind, match=f"^{message}"):
        solve(**{"f": decay, "y0": ONE, "ts": [0.0, 1.0], **change})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("nodes", ["gauss", None]),
        ("order", [3, 41, 8.0, True]),
        ("in_flight", [0, 2.5, 10_000]),
        ("first_step", [0.0, -1.0, math.nan, "small"]),
        ("max_step", [0.0, -1.0, math.nan, False]),
    ],
)
def test_methods_that_are_refused(name, values):
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*, got {value!r}"):
            ps.Collocation(**{name: value})


@pytest.mark.parametrize("rate", [1e5, 1e7])
def test_a_stiff_state_too_large_for_jacobians_is_refused_early_and_in_words(rate):
    y0 = torch.ones(70, dtype=torch.float64)
    with pytest.raises(ps.SolveError, match=r"rounds are predicted; t = .* The equation is stiff") as error:
        solve(lambda t, y: -rate * (y - t.cos()), y0, [0.0, 10.0], rtol=1e-6, atol=1e-6)
    assert error.value.solution.result is ps.Result.stiff
    assert error.value.solution.stats.rounds <= 200
    assert torch.isfinite(error.value.solution.ys[0]).all()


def test_a_state_that_looks_for_its_first_step_is_not_called_stiff():
    """Burgers' equation on 100 points accepts its first segment after many rounds, and is no stiffer than that."""
    problem = PROBLEMS["burgers"]
    sol = solve(problem.f, problem.y0, problem.span, rtol=1e-9, atol=1e-9)
    assert float(((sol.ys[-1] - problem.y1).abs() / (1 + problem.scale)).max()) <= 1e-8


# ---- arguments of grids


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"window": 32}, r"^window: got 32, .* pass Collocation\(in_flight=\.\.\.\)"),
        ({"window": "auto"}, r"^window: got 'auto'"),
        ({"brownian": ps.BrownianPath(seed=0)}, r"^brownian: .* leave it out"),
        ({"save": "first"}, r"^save: "),
    ],
)
def test_arguments_of_grids_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ps.solve(ps.ODE(lambda t, y: -y), torch.ones(2).double(), [0.0, 1.0], integrator=ps.Collocation(), **given)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_the_last_state_alone_is_that_of_all_with_its_gradient(batch_dims):
    """And its certificate; also where a solve fails."""
    y0, ts = torch.tensor([0.5, 1.0, 2.0]).double().requires_grad_(), torch.tensor([0.0, 0.3, 2.0]).double()
    given = {"integrator": ps.Collocation(), "tol": 1e-9, "batch_dims": batch_dims}
    every, last = (ps.solve(ps.ODE(lambda t, y: -y * y), y0, ts, save=save, **given) for save in ("all", "last"))
    assert torch.equal(last.ts, ts[-1:])
    assert last.ys.shape == (1, 3)
    torch.testing.assert_close(last.ys, every.ys[-1:], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(*(torch.autograd.grad(sol.ys[-1].sum(), y0)[0] for sol in (every, last)))
    assert last.certificate.error.shape == every.certificate.error[-1:].shape
    failed = ps.solve(ps.ODE(lambda t, y: y * y), y0.detach(), ts, save="last", throw=False, **given)
    assert failed.ys.shape == (1, 3)
    assert failed.ys.isnan().any()


@pytest.mark.parametrize("ask", ["verify", "recheck", "certified"])
def test_the_certificate_says_what_to_do_instead(ask):
    """It has the interface of every certificate; what makes no sense for collocation is refused with a remedy."""
    certificate = ps.solve(ps.ODE(lambda t, y: -y), torch.ones(2), [0.0, 1.0], integrator=ps.Collocation()).certificate
    assert isinstance(certificate, AbstractCertificate)
    assert certificate.kind == "estimated"
    assert certificate.bound.isnan().all()
    assert certificate.bound.shape == certificate.error.shape
    given = (1.0,) if ask == "certified" else ()
    with pytest.raises(TypeError, match=f"^{ask}: .*(solve again|solve on a grid)"):
        getattr(certificate, ask)(*given)


@pytest.mark.parametrize("call", [ps.sequential, ps.analyze])
def test_what_needs_steps_of_a_grid_refuses_collocation(call):
    with pytest.raises(TypeError, match=r"^integrator: .*Collocation.*pass .*picardsolve\.RK4"):
        call(ps.ODE(lambda t, y: -y), torch.ones(2), [0.0, 1.0], integrator=ps.Collocation())
