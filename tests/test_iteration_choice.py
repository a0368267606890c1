"""Newton's method or a secant: by the size of states, and by what calls and rows of the drift cost."""

import equations as eq
import numpy as np
import pytest
import torch
from clocked import clocked

import picardsolve as ps
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.iteration_choice import Prices, newton_pays
from picardsolve.collocation.numpy_arrays import NumpyArrays

TOL = 1e-5


def network(size):
    """Of one hidden layer."""
    first, second = eq.normal(1, 20, size) / size**0.5, eq.normal(2, size, 20) / 20**0.5
    return lambda t, y: torch.tanh(y @ first.T) @ second.T


def solved(f, batch, size, **more):
    y0 = eq.normal(3, batch, size)
    return ps.solve(ps.ODE(f), y0, [0.0, 2.0], integrator=ps.Collocation(), rtol=TOL, atol=TOL, batch_dims=1, **more)


def march(batch, size):
    """By the size of the states, and its samples."""
    one = np.ones((1, 1))
    problem = InitialValueProblem(np.ones((batch, size)), np.array([0.0, 1.0]), one, one, 1e-16, NumpyArrays())
    method = ps.Collocation()
    choice, orders = method.plan(problem, None)
    return problem, method.march(problem, choice, int(orders[0]))


def check_right(sol, f, batch, size):
    """Against the embedded steps at a sharper tolerance."""
    given = {"integrator": ps.Dopri8(), "rtol": TOL / 1e3, "atol": TOL / 1e3, "batch_dims": 1}
    right = ps.solve(ps.ODE(f), eq.normal(3, batch, size), [0.0, 2.0], **given).ys[-1]
    assert ((sol.ys[-1] - right).abs() <= 10 * TOL * (1 + right.abs())).all()


@pytest.mark.parametrize(("batch", "size"), [(1, 2), (1, 8), (1, 32), (200, 2)])
def test_small_algebra_and_cheap_rows_are_by_newtons_method(batch, size):
    problem, own = march(batch, size)
    for calls in ([(batch, 3e-3)], [(batch, 3e-3), (100 * batch, 1e-4)], [(batch, 1e-4), (100 * batch, 2e-3)]):
        assert newton_pays(problem, own, None, calls)


@pytest.mark.usefixtures("nothing_is_decided_by_the_clock")
@pytest.mark.parametrize(("batch", "size"), [(64, 8), (40, 32), (10, 64)])
def test_algebra_of_many_samples_is_avoided_before_a_row_is_evaluated_for_it(batch, size):
    sol = solved(network(size), batch, size)
    assert "secant" in sol.notes[0]
    moved = batch * 10 * (1 + size)  # rows of the Jacobians of a segment of each
    assert sol.stats.evaluations < (20 * 60 * batch + 12 * moved)
    check_right(sol, network(size), batch, size)


def test_the_same_samples_are_by_newtons_method_where_calls_are_dear(monkeypatch):
    sol = solved(clocked(monkeypatch, network(8), 0.1, 0.0), 8, 8)
    assert "newton" in sol.notes[0]
    assert sol.stats.rounds <= 12


def test_dear_rows_are_seen_by_the_first_jacobians(monkeypatch):
    dear = clocked(monkeypatch, network(64), 0.0, 1e-4)
    sol = solved(dear, 1, 64)
    assert "secant" in sol.notes[0]
    assert sum(rows > 400 for rows in dear.calls[:6]) <= 1
    check_right(sol, network(64), 1, 64)


def test_what_one_call_costs_may_be_the_call_or_its_rows():
    assert Prices.possible([(4, 2.0)]) == (Prices(2.0, 0.0), Prices(0.0, 0.5))


@pytest.mark.parametrize("row", [0.0, 1e-3])
def test_prices_of_later_calls_are_those_of_rows_and_calls(row):
    (price,) = Prices.possible([(rows, 1e-3 + row * rows) for rows in (1, 30, 700, 500)])
    assert price.row == pytest.approx(row, rel=0.05, abs=1e-9)
    assert price.call <= 2.1e-3


def test_stiff_samples_of_many_are_found():
    def f(t, y, rate):
        return -rate * (y - torch.cos(t))

    batch, size = 48, 8
    rate = torch.ones(batch, 1).double()
    rate[::7] = 1e5
    sol = solved(f, batch, size, args=(rate,))
    assert any("secant" in note for note in sol.notes)
    assert any("stiff" in note for note in sol.notes)
    t = torch.tensor(2.0).double()
    y0, r = eq.normal(3, batch, size), rate
    forced = (r**2 * torch.cos(t) + r * torch.sin(t)) / (r**2 + 1)
    exact = (y0 - r**2 / (r**2 + 1)) * torch.exp(-r * t) + forced
    assert ((sol.ys[-1] - exact).abs() <= 10 * TOL * (1 + exact.abs())).all()
