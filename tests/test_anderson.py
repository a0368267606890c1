"""Anderson acceleration against its definition, state by state, and what it gains."""

import statistics
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from cases import assert_close, denoiser_cases, generator, randn, random_drift, seeds
from hypothesis import example, given
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import mixture

SAMPLES = 8


def opened(term, y0, ts, integrator, iteration):
    """A window of all steps that accepts nothing but the exact prefix."""
    batched = int(isinstance(term, ps.Denoiser))
    layout = Layout.of(y0, batched)
    chain = integrator.chain(Problem(term, layout, ts, {} if batched else (), ps.BrownianPath(0)))
    return chain, Window(chain, layout.pack(y0), Settings(len(ts) - 1, iteration, ps.Copy(), Increment(Tolerance())))


def base_of(images, x, order):
    """``G(X)`` of Picard: every state by ``order`` increments from an old one."""
    increments = images - x[:-1]
    return torch.stack(
        [x[max(n + 1 - order, 0)] + increments[max(n + 1 - order, 0) : n + 1].sum(0) for n in range(len(images))]
    )


def by_definition(residuals, images, memory, triangular):
    """The next states of one sample from all rounds so far, each ``(N, D)``, by least squares."""
    dr = [new - old for old, new in pairwise(residuals)][-memory:]
    dg = [new - old for old, new in pairwise(images)][-memory:]
    if not dr:
        return images[-1]
    y = images[-1].clone()
    first = int((residuals[-1] != 0).any(-1).long().argmax()) + 1
    for n in range(first, len(y)):
        upto = n + 1 if triangular else len(y)
        system = torch.stack([d[:upto].flatten() for d in dr], -1)
        gamma = torch.linalg.lstsq(system, residuals[-1][:upto].flatten()[:, None], driver="gelsd").solution[:, 0]
        y[n] -= sum(g * d[n] for g, d in zip(gamma, dg, strict=True))
    return y


@given(st.integers(3, 10), st.integers(1, 3), st.booleans(), st.sampled_from([None, 1, 2, 4]), seeds)
@example(3, 1, False, 1, 3)  # its second round diverges
def test_the_states_of_the_first_rounds_are_those_of_the_definition(steps, memory, triangular, order, seed):
    term, ts = ps.ODE(random_drift("mlp", seed, (4,), torch.float64)), ps.grids.uniform(0, 2, steps)
    y0 = randn(generator(seed), 4)
    iteration = ps.Anderson(memory, triangular, ridge=0.0, order=order)
    chain, window = opened(term, y0, ts, ps.Euler(), iteration)
    x = y0.expand(steps + 1, 4)
    residuals, images = [], []
    for round_ in range(min(memory + 1, 3)):
        phi = x[:-1] + ts.diff()[:, None] * term.drift(ts[:-1, None], x[:-1])
        images.append(base_of(phi, x, order or steps))
        images[-1][:round_] = x[1 : round_ + 1]  # exact, and no difference of sums
        residuals.append(images[-1] - x[1:])
        # the window has dropped the exact states, and what they showed
        x = torch.cat(
            [
                y0[None],
                x[1 : round_ + 1],
                by_definition([r[round_:] for r in residuals], [g[round_:] for g in images], memory, triangular),
            ]
        )
        with patch("picardsolve.fixed_point.acceptance._BLOW_UP", 1e300):  # else it forgets states that diverge
            window.tell(chain.evaluate(window.ask()))
        assert int(window.begin[0]) == round_ + 1
        assert_close(window.x[:, 0], x[round_ + 1 :], 1e-6 * float(x.abs().max()))


def test_the_definition_tells_the_variants_apart():
    """Without this the test above might not see which variant it tests."""
    term, ts = ps.ODE(random_drift("mlp", 1, (4,), torch.float64)), ps.grids.uniform(0, 2, 8)
    states = []
    for iteration in (ps.Anderson(), ps.Anderson(1), ps.Anderson(triangular=False), ps.Anderson(order=3)):
        chain, window = opened(term, randn(generator(1), 4), ts, ps.Euler(), iteration)
        for _ in range(3):
            window.tell(chain.evaluate(window.ask()))
        states.append(window.x[-1])
    assert all(float((a - b).abs().max()) > 1e-5 for i, a in enumerate(states) for b in states[:i])


def after(rounds: int, case, iteration) -> torch.Tensor:
    chain, window = opened(case.term, case.y0, case.ts, case.integrator, iteration)
    for _ in range(rounds):
        window.tell(chain.evaluate(window.ask()))
    return window.x


ode_samplers = st.sampled_from([ps.DDIM(), ps.DPMSolver(2), ps.DPMSolver(1)])


@given(st.data(), st.integers(1, 2), st.sampled_from(["picard", "exponential"]))
def test_an_order_of_the_whole_window_is_no_order(data, memory, base):
    case = data.draw(denoiser_cases([data.draw(ode_samplers)], (torch.float64,)).filter(lambda case: case.steps > 2))
    orders = (None, case.steps, case.steps + 1)
    states = [after(2, case, ps.Anderson(memory, base=base, order=order)) for order in orders]
    for state in states[1:]:
        assert_close(state, states[0], 1e-7 * (1 + float(states[0].abs().max())))


@given(st.data())
def test_the_first_round_is_the_base(data):
    """Nothing has been seen twice: of order 1 every state becomes the image of its predecessor."""
    case = data.draw(denoiser_cases([data.draw(ode_samplers)], (torch.float64,)).filter(lambda case: case.steps > 2))
    for base in ("picard", "exponential"):
        assert torch.equal(after(1, case, ps.Anderson(base=base, order=1)), after(1, case, ps.Jacobi()))
    assert torch.equal(after(1, case, ps.Anderson()), after(1, case, ps.Picard()))
    assert torch.equal(after(1, case, ps.Anderson(base="exponential")), after(1, case, ps.Exponential()))


@given(st.integers(2, 12), st.floats(0.1, 2.0), st.booleans())
def test_differences_that_depend_on_each_other_do_no_harm(steps, rate, triangular):
    """One number a state and three differences: without a ridge the first normal equations are singular."""
    term, y0, ts = ps.ODE(lambda t, y: rate * y), torch.ones(1, dtype=torch.float64), ps.grids.uniform(0, 1, steps)
    iteration = ps.Anderson(3, triangular, ridge=0.0)
    sol = ps.solve(term, y0, ts, integrator=ps.Euler(), iteration=iteration, window=steps, tol=0)
    assert torch.equal(sol.ys, ps.sequential(term, y0, ts, integrator=ps.Euler()).ys)
    assert sol.stats.rounds <= steps


@pytest.mark.parametrize("integrator", [ps.DDIM(), ps.DDPM()], ids=["DDIM", "DDPM"])
def test_it_takes_fewer_rounds_than_its_base(integrator):
    """100 steps of the exact-score mixture, until the samples stay within 1e-2 of the sequential ones."""
    median = {}
    for base, plain in (("picard", ps.Picard()), ("exponential", ps.Exponential())):
        for iteration in (plain, ps.Anderson(base=base)):
            median[type(iteration)] = statistics.median(rounds_on_the_mixture(integrator, iteration))
        assert median[ps.Anderson] < median[type(plain)]


@cache
def last_of_the_mixture(integrator, steps) -> torch.Tensor:
    y0 = randn(generator(100), SAMPLES, mixture.DIM)
    return ps.sequential(mixture.denoiser(), y0, mixture.grid(steps), integrator=integrator, save="last").ys[0]


def rounds_on_the_mixture(integrator, iteration, steps=100, within=1e-2) -> list[int]:
    term, ts = mixture.denoiser(), mixture.grid(steps)
    y0 = randn(generator(100), SAMPLES, mixture.DIM)
    ref = last_of_the_mixture(integrator, steps)
    chain, window = opened(term, y0, ts, integrator, iteration)
    far = []
    while not window.done and len(far) < 40:
        window.tell(chain.evaluate(window.ask()))
        ends = [window.x[min(steps - int(b), len(window.x) - 1), s] for s, b in enumerate(window.begin)]
        far.append((torch.stack(ends) - ref).square().mean(-1).sqrt() > within)
    return [int(sample.nonzero().max()) + 2 for sample in torch.stack(far, 1)]


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"memory": 0}, ValueError, "memory: expected an integer >= 1, got 0."),
        ({"memory": 1.5}, TypeError, "memory: expected an integer >= 1, got 1.5."),
        ({"order": 0}, ValueError, "order: expected an integer >= 1, got 0."),
        ({"base": "newton"}, ValueError, "base: expected one of 'picard', 'exponential', got 'newton'."),
        ({"triangular": 1}, TypeError, "triangular: expected True or False, got 1."),
        ({"ridge": -1.0}, ValueError, "ridge: expected a number >= 0, got -1.0."),
        ({"absolute_ridge": "a"}, TypeError, "absolute_ridge: expected a number >= 0, got 'a'."),
    ],
)
def test_bad_arguments(given_, error, message):
    with pytest.raises(error) as caught:
        ps.Anderson(**given_)
    assert str(caught.value) == message
