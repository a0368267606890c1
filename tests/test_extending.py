"""Every block of docs/extending.md runs, and finds the sequential solution."""

import pytest
import torch
from cases import generator, randn, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_docs import shown_in

import picardsolve as ps
from picardsolve import extend

SHOWN = shown_in("extending.md")
SLOPE, LINE, RULE = SHOWN["ConstantSlope"], SHOWN["StraightLine"](), SHOWN["LargestElement"]
INTEGRATORS = {name: SHOWN[name]() for name in ("Ralston", "AdamsBashforth", "Discrete")}
PARTS = {
    "nothing": {},
    "an iteration": {"iteration": SLOPE(0.9)},
    "a guess": {"guess": LINE},
    "a stopping rule": {"stop": RULE},
    "all of them": {"iteration": SLOPE(1.0), "guess": LINE, "stop": RULE},
    "Newton's method": {"iteration": ps.Newton()},
    "a secant": {"iteration": ps.Secant(), "guess": LINE},
    "Parareal": {"iteration": ps.Parareal(blocks=3)},
}


def swing(t, y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)


def shrinking(n, y):
    return 0.9 * torch.sin(y.roll(1, -1)) + 0.1 * torch.cos(n)


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize("parts", PARTS)
@settings(max_examples=15)
@given(data=st.data())
def test_tolerance_zero_gives_the_sequential_answer(name, parts, data):
    gen, steps, window = generator(data.draw(seeds)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    y0, discrete = randn(gen, data.draw(st.integers(1, 3)), 2), name == "Discrete"
    ts = torch.arange(steps + 1.0) if discrete else torch.linspace(0, steps / 20, steps + 1, dtype=torch.float64)
    posed = {"term": ps.ODE(shrinking if discrete else swing), "y0": y0, "ts": ts, "integrator": INTEGRATORS[name]}
    if (name, parts) == ("AdamsBashforth", "Parareal"):
        with pytest.raises(TypeError, match="one-step integrator"):
            ps.solve(**posed, batch_dims=1, window=window, tol=0, **PARTS[parts])
        return
    ref = ps.sequential(**posed, batch_dims=1)
    sol = ps.solve(**posed, batch_dims=1, window=window, tol=0, **PARTS[parts])
    torch.testing.assert_close(sol.ys, ref.ys, rtol=1e-11, atol=1e-11)
    assert sol.stats.rounds <= ref.stats.rounds


@pytest.mark.parametrize("name", ["Ralston", "AdamsBashforth"])
def test_an_integrator_has_its_order(name):
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    exact = ps.sequential(ps.ODE(swing), y0, ps.grids.uniform(0.0, 2.0, 400), integrator=ps.RK4()).ys[-1]

    def error(steps):
        ts = 2 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.5  # steps of all lengths
        return float((ps.solve(ps.ODE(swing), y0, ts, integrator=INTEGRATORS[name], tol=1e-12).ys[-1] - exact).norm())

    assert 3.5 < error(80) / error(160) < 4.6


def test_the_recurrent_network_is_solved_in_few_rounds():
    zero, steps = torch.zeros(8, dtype=torch.float64), torch.arange(201.0)
    ref = ps.sequential(ps.ODE(SHOWN["cell"]), zero, steps, integrator=INTEGRATORS["Discrete"])
    torch.testing.assert_close(SHOWN["states"].ys, ref.ys, rtol=0, atol=1e-8)
    assert SHOWN["states"].stats.rounds < 10


class Never(extend.Stopping):
    """Accepts no state but the exact ones."""

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def judge(self, swept, noise):
        size = extend.rms(swept.change).numpy()
        return size < 0, size


@given(st.data())
def test_a_stopping_rule_is_made_from_the_tolerance_and_obeyed(data):
    y0, ts = randn(generator(data.draw(seeds)), 4), ps.grids.uniform(0.0, 2.0, 30)
    posed = {"term": ps.ODE(shrinking), "y0": y0, "ts": ts, "integrator": ps.Euler()}
    tol, made = data.draw(st.sampled_from([1e-3, 1e-6])), []

    def rule(tolerance):
        made.append(Never(tolerance))
        return made[-1]

    sol = ps.solve(**posed, stop=rule, window=data.draw(st.integers(2, 32)), tol=tol)
    assert [each.tolerance.atol for each in made] == [tol]
    assert sol.stats.rounds == len(ts) - 1
    torch.testing.assert_close(sol.ys, ps.sequential(**posed).ys, rtol=1e-13, atol=1e-13)
    assert float(sol.certificate.bound.max()) < 1e-12


@pytest.mark.parametrize("stop", [lambda tolerance: None, lambda tolerance: "error", repr])
def test_what_makes_no_rule_is_refused(stop):
    with pytest.raises(TypeError, match=r"^stop: expected Stopping, got .*; pass a subclass of picardsolve\.extend"):
        ps.solve(ps.ODE(swing), torch.ones(2), torch.linspace(0, 1, 9), integrator=ps.Euler(), stop=stop)


def test_a_rule_of_another_solve_is_no_name():
    with pytest.raises(ValueError, match=r"^stop: expected one of 'error', "):
        ps.solve(
            *(ps.ODE(swing), torch.ones(2), torch.linspace(0, 1, 9)),
            integrator=ps.Euler(),
            stop=RULE(extend.Tolerance(atol=1.0)),
        )


def test_a_machine_is_driven_by_a_loop_of_the_users_own():
    """As `picardsolve.extend.drive` does it, and it finds what `solve` finds."""
    y0, ts = torch.tensor([1.0, 0.5], dtype=torch.float64), ps.grids.uniform(0.0, 2.0, 50)
    seen = []

    class Taking(ps.Euler):
        def chain(self, problem):
            seen.append(super().chain(problem))
            return seen[-1]

    sol = ps.solve(
        ps.ODE(swing), y0, ts, integrator=Taking(), iteration=ps.Picard(), guess=ps.Copy(), stop="increment", tol=1e-6
    )
    rule = extend.Increment(extend.Tolerance(atol=1e-6, rtol=1e-6))
    path = y0.new_full((len(ts), 1, 2), torch.nan)
    by_hand = ps.Picard().machine(seen[0], y0[None], path.clone(), width=32, guess=ps.Copy(), stopping=rule)
    while not by_hand.done:
        by_hand.tell(by_hand.evaluate(by_hand.ask()))
    driven = ps.Picard().machine(seen[0], y0[None], path.clone(), width=32, guess=ps.Copy(), stopping=rule)
    assert extend.drive(driven) == sol.stats.rounds == len(by_hand.history)
    for machine in (by_hand, driven):
        assert torch.equal(machine.path[:, 0], sol.ys)


def test_every_name_is_there_and_explained():
    assert extend.__all__ == sorted(extend.__all__)
    assert all(hasattr(extend, name) and f"`{name}`" in extend.__doc__ for name in extend.__all__)
