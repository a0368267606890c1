"""The exact error of Picard iteration for y' = lambda y, and the bound that holds for every Lipschitz drift.

Picard on Euler's method with step h: ``x^{k+1}_n = y0 + h sum_{j<n} f(x^k_j)``. For ``f = lambda y`` the error to the
sequential solution obeys ``e^{k+1}_n = h lambda sum_{j<n} e^k_j``, and a k-fold sum over j < n has the weights
``C(n-1-j, k-1)``: ``e^k_n = (h lambda)^k sum_j C(n-1-j, k-1) e^0_j``. It is zero for k >= n: e^0_0 is.
"""

import math

import pytest
import torch
from cases import generator, randn, seeds
from hypothesis import given
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.fixed_point.stopping import Increment
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators import Chain
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance


def full_window(drift, y0: torch.Tensor, span: float, steps: int, iteration: ps.Iteration) -> tuple[Chain, Window]:
    ts = ps.grids.uniform(0, span, steps)
    chain = ps.Euler().chain(Problem(ps.ODE(drift), Layout.of(y0, 0), ts, (), ps.BrownianPath(0)))
    return chain, Window(chain, y0[None], Settings(steps, iteration, ps.Copy(), Increment(Tolerance())))


def formula(k: int, ratio: float, guess: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """The errors of all states after k rounds from those of the initial guess, both ``(N + 1, D)``."""
    if k == 0:
        return guess
    length = len(guess)
    rows = [[math.comb(n - 1 + shift - j, k - 1) if j < n + shift else 0 for j in range(length)] for n in range(length)]
    return ratio**k * torch.tensor(rows, dtype=guess.dtype) @ guess


def errors_by_round(rate: float, span: float, steps: int, y0: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of the initial guess ``(N + 1, D)``, and of every round."""
    chain, window = full_window(lambda t, y: rate * y, y0, span, steps, ps.Picard())
    ref = ps.sequential(ps.ODE(lambda t, y: rate * y), y0, ps.grids.uniform(0, span, steps), integrator=ps.Euler()).ys
    rounds = []
    while not window.done:
        window.tell(chain.evaluate(window.ask()))
        begin = int(window.begin[0])
        error = torch.zeros_like(ref)
        error[begin : begin + len(window.x)] = window.x[:, 0] - ref[begin : begin + len(window.x)]
        rounds.append(error)
        k = len(rounds)
        # the exact prefix grows by one state a round, and by no more until e^k_{k+1} = -(h lambda)^{k+1} y0 rounds away
        vanishes = (rate * span / steps) ** k * float(y0.max()) < 1e-14 * float(ref.max())
        assert begin == k or (begin > k and vanishes)
    return y0.expand_as(ref) - ref, rounds


def obeys(rounds: list[torch.Tensor], guess: torch.Tensor, ratio: float, law=formula) -> bool:
    """Every error of every round, to 9 digits, above the rounding of the states."""
    rounding = 1e-13 * float(guess.abs().max())
    return all(
        torch.allclose(error, law(k, ratio, guess), rtol=1e-9, atol=rounding) for k, error in enumerate(rounds, 1)
    )


growing = st.tuples(st.floats(0.2, 2.0), st.floats(0.5, 2.0), st.integers(4, 20), seeds)


@given(growing)
def test_picard_obeys_the_exact_error_formula(problem):
    rate, span, steps, seed = problem
    ratio = rate * span / steps
    guess, rounds = errors_by_round(rate, span, steps, 1 + torch.rand(2, generator=generator(seed)).double())
    assert obeys(rounds, guess, ratio)
    # and no other formula: a factor, an exponent or an index that is off is rejected
    assert not obeys(rounds, guess, ratio * (1 + 1e-6))
    assert not obeys(rounds, guess, ratio, lambda k, r, g: formula(k, r, g) * r)
    assert not obeys(rounds, guess, ratio, lambda k, r, g: formula(k + 1, r, g))
    assert not obeys(rounds, guess, ratio, lambda k, r, g: formula(k - 1, r, g))
    assert not obeys(rounds, guess, ratio, lambda k, r, g: formula(k, r, g, shift=1))
    assert not obeys(rounds, guess, ratio, lambda k, r, g: formula(k, r, g, shift=-1))


def test_the_formula_on_numbers():
    """N = 20, T = 2, lambda = 1.7, y0 = 1: errors of the last state after rounds 1 to 4, without the formula."""
    guess, rounds = errors_by_round(1.7, 2.0, 20, torch.ones(1, dtype=torch.float64))
    ratio, n = 0.17, 20
    sequential = 1.17**n
    # the first sweep from the constant guess is 1 + n ratio, the second adds C(n, 2) ratio^2, and so on: the binomial
    partial = [sum(math.comb(n, i) * ratio**i for i in range(k + 1)) for k in range(5)]
    assert float(guess[n]) == pytest.approx(1 - sequential, rel=1e-12)
    for k in range(1, 5):
        assert float(rounds[k - 1][n]) == pytest.approx(partial[k] - sequential, rel=1e-12)


@given(st.floats(0.2, 3.0), st.floats(0.5, 2.0), st.integers(4, 20), seeds)
def test_the_bound_for_lipschitz_drifts(lipschitz, span, steps, seed):
    """``|e^k_n| <= (hL)^k sum_j C(n-1-j, k-1) |e^0_j| <= (hL)^k C(n-1, k) max|e^0|``, here for L sin(y + phase)."""
    phase, y0 = randn(generator(seed), 1), randn(generator(seed + 1), 1)
    drift = lambda t, y: lipschitz * torch.sin(y + phase)  # noqa: E731
    chain, window = full_window(drift, y0, span, steps, ps.Picard())
    ref = ps.sequential(ps.ODE(drift), y0, ps.grids.uniform(0, span, steps), integrator=ps.Euler()).ys
    guess, ratio = (y0 - ref).abs(), lipschitz * span / steps
    k = 0
    while not window.done:
        window.tell(chain.evaluate(window.ask()))
        k, begin = k + 1, int(window.begin[0])
        error = (window.x[:, 0] - ref[begin : begin + len(window.x)]).abs()
        sharp = formula(k, ratio, guess)[begin : begin + len(window.x)]
        assert (error <= sharp * (1 + 1e-9) + 1e-13 * math.exp(lipschitz * span)).all()
        # C(n-1-j, k-1) summed over j >= 1, where the guess may be wrong, is C(n-1, k)
        loose = [ratio**k * math.comb(n - 1, k) * float(guess.max()) for n in range(begin, begin + len(window.x))]
        assert (sharp <= torch.tensor(loose)[:, None] * (1 + 1e-6)).all()
    assert k <= steps


@given(st.floats(0.2, 1.5), st.integers(10, 60), st.sampled_from([1e-2, 1e-4, 1e-6]))
def test_rounds_until_the_tolerance(rate, steps, tol):
    """A full window accepts what the formula says, when it says so: a state changes by ``e^k - e^{k-1}`` in round k.

    From then on the window starts at a state that is not exact, and the formula is no longer about it.
    """
    ratio, term = rate / steps, ps.ODE(lambda t, y: rate * y)
    y0, ts = torch.ones(4, dtype=torch.float64), ps.grids.uniform(0, 1, steps)  # a mean square, not a sum
    sol = ps.solve(
        term, y0, ts, integrator=ps.Euler(), window=steps, guess=ps.Copy(), rtol=0, atol=tol, stop="increment"
    )
    guess = 1 - (1 + ratio) ** torch.arange(steps + 1, dtype=torch.float64)[:, None]
    for k, record in enumerate(sol.history, 1):
        expected = (formula(k, ratio, guess) - formula(k - 1, ratio, guess)).abs()[k:, 0]
        assert int(record.begin) == k - 1
        assert torch.allclose(record.increments[:, 0], expected, rtol=1e-9, atol=1e-13)
        small = int((expected <= tol).long().cumprod(0).sum())
        near = ((expected / tol - 1).abs() < 1e-6).any()  # rounding may decide
        assert near or int(record.stride) == min(small + 1, steps - k + 1)
        if small or near:
            break
    else:
        raise AssertionError("the tolerance was never reached")


@given(st.integers(2, 15), seeds)
def test_jacobi_only_moves_one_state_a_round(steps, seed):
    """With delta = 0 news travels one step a round: state n of the constant guess is Phi^k(y0) after k rounds."""
    y0 = 1 + torch.rand(1, generator=generator(seed), dtype=torch.float64)
    chain, window = full_window(lambda t, y: 0.7 * y, y0, 1.0, steps, ps.Jacobi())
    for k in range(1, steps):
        window.tell(chain.evaluate(window.ask()))
        expected = y0 * (1 + 0.7 / steps) ** k
        assert int(window.begin[0]) == k
        assert torch.allclose(window.x[:, 0], expected.expand(len(window.x), 1), rtol=1e-13, atol=0)
