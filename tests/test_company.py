"""A sample's solution by collocation does not depend on the samples that it is solved with."""

from typing import Any

import pytest
import torch
from cases import generator, seeds
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.collocation import method as collocation_method

ITERATIONS = [None, ps.Picard(), ps.Secant(), ps.Newton()]
KINDS = 6


def drift(t: Any, y: torch.Tensor, kind: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """Elementwise, of several kinds: oscillating, stiff, growing, with a pole, with NaN from a time on, chaotic."""
    a, b, c = y.unbind(-1)
    t, kind, rate = t[..., 0], kind[..., 0], rate[..., 0]
    choices = [
        torch.stack([b, -rate * a, -c + a * b], -1),
        torch.stack([-300 * rate * (a - t.cos()), a - b, -c], -1),
        torch.stack([rate * a, a - b, b * c / 4], -1),
        torch.stack([a * a, -b, c], -1),
        torch.stack([torch.where(t > 0.5, torch.nan, -a), b.cos(), -c], -1),
        torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1),
    ]
    out = choices[0]
    for i, other in enumerate(choices[1:], 1):
        out = torch.where((kind == i)[..., None], other, out)
    return out


def crosses(t: Any, y: torch.Tensor, kind: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    return y[1] - 0.3


crosses.terminal = 3  # pyright: ignore[reportFunctionMemberAccess]


@given(
    seeds,
    st.lists(st.integers(0, KINDS - 1), min_size=2, max_size=5),
    st.sampled_from(ITERATIONS),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_the_company_changes_no_bit(seed, kinds, iteration, backward, events):
    """Each sample has its own equation, start, tolerance, span and events; some fail."""
    random, count = generator(seed), len(kinds)
    y0 = 1 + torch.rand(count, 3, generator=random, dtype=torch.float64)
    rtol = 10 ** -(3 + 5 * torch.rand(count, generator=random, dtype=torch.float64))
    span = 0.5 + torch.rand(count, generator=random, dtype=torch.float64)
    direction = -1.0 if backward else 1.0
    ts = direction * torch.linspace(0, 1, 4, dtype=torch.float64)[:, None] * span + torch.arange(count)
    args = torch.tensor(kinds).double()[:, None], 1 + torch.rand(count, 1, generator=random, dtype=torch.float64)

    def solved(which: list[int]) -> ps.Solution:
        return ps.solve(
            ps.ODE(drift),
            y0[which],
            ts[:, which],
            args=tuple(arg[which] for arg in args),
            integrator=ps.Collocation(),
            iteration=iteration,
            rtol=rtol[which],
            atol=rtol[which] / 10,
            batch_dims=1,
            events=crosses if events else None,
            max_rounds=150,
            throw=False,
        )

    together, alone = solved(list(range(count))), [solved([i]) for i in range(count)]
    for i, single in enumerate(alone):
        assert torch.equal(together.ys[:, i].nan_to_num(7.0), single.ys[:, 0].nan_to_num(7.0))
        assert torch.equal(together.dense.segments(i), single.dense.segments(0))
        errors = [sol.certificate.error[:, k].nan_to_num(7.0) for sol, k in ((together, i), (single, 0))]
        assert torch.equal(*errors)
        for here, there in zip(together.events, single.events, strict=True):
            assert torch.equal(here[i].ts, there[0].ts)
    assert together.stats.rounds == max(single.stats.rounds for single in alone)


@pytest.mark.parametrize("iteration", ITERATIONS, ids=repr)
def test_samples_of_a_large_batch_are_solved_as_alone(iteration):
    """Drawn one by one from the batch."""
    count, random = 200, generator(3)
    y0 = 1 + 0.5 * torch.rand(count, 2, generator=random, dtype=torch.float64)
    rate = 1 + 0.1 * torch.rand(count, 1, generator=random, dtype=torch.float64)

    def waves(t, y, rate):
        return rate * ((3 * y + t).sin() - y.flip(-1) / 2)

    def solved(which: list[int]) -> ps.Solution:
        how = {"integrator": ps.Collocation(), "iteration": iteration, "rtol": 1e-5, "atol": 1e-6}
        return ps.solve(ps.ODE(waves), y0[which], [0.0, 2.0], args=(rate[which],), batch_dims=1, **how)

    together = solved(list(range(count)))
    for i in (0, 17, 101, 199):
        assert torch.equal(together.ys[:, i], solved([i]).ys[:, 0])


@pytest.mark.parametrize("iteration", ITERATIONS, ids=repr)
def test_samples_that_all_append_several_segments_at_once(iteration):
    """Linear equations, whose segments are released all at once, and followed by several; to the closed form."""
    rates, tol = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), torch.tensor([1e-3, 1e-5, 1e-7, 1e-9]).double()
    y0 = torch.ones(4, 2).double()

    def turning(t, y, rate):
        return rate[:, None] * torch.stack([y[..., 1], -y[..., 0]], -1)

    def solved(which: list[int]) -> ps.Solution:
        how = {"integrator": ps.Collocation(), "iteration": iteration, "batch_dims": 1}
        args = {"args": (rates[which],), "rtol": tol[which], "atol": tol[which]}
        return ps.solve(ps.ODE(turning), y0[which], [0.0, 5.0], **args, **how)

    together = solved([0, 1, 2, 3])
    exact = torch.stack([(5 * rates).cos() + (5 * rates).sin(), (5 * rates).cos() - (5 * rates).sin()], -1)
    assert ((together.ys[-1] - exact).abs() <= 10 * tol[:, None]).all()
    for i in range(4):
        assert torch.equal(together.ys[:, i], solved([i]).ys[:, 0])


@given(seeds, st.lists(st.sampled_from([1.0, 30.0, 1e6]), min_size=2, max_size=3), st.booleans())
@settings(max_examples=4, deadline=None, phases=[Phase.generate])
def test_a_stiff_sample_changes_to_newtons_method_beside_others_that_do_not(seed, rates, events):
    """All begin with a secant; those that are stiff are found in the middle of the batch. To the closed form."""
    random, count, tol = generator(seed), len(rates), 1e-6
    y0 = 1 + torch.rand(count, 2, generator=random, dtype=torch.float64)
    rate = torch.tensor(rates, dtype=torch.float64)[:, None]

    def to_cosine(t, y, rate):
        return -rate * (y - torch.cos(t)) - torch.sin(t)

    def falls(t, y, rate):
        return y[0] - 0.9

    def solved(which: list[int]) -> ps.Solution:
        how = {"integrator": ps.Collocation(), "rtol": tol, "atol": tol, "batch_dims": 1}
        watched = falls if events else None
        return ps.solve(ps.ODE(to_cosine), y0[which], [0.0, 1.0, 2.0], args=(rate[which],), events=watched, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collocation_method, "usual_iteration", lambda problem, order: "secant")
        together, alone = solved(list(range(count))), [solved([i]) for i in range(count)]
    ts = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    for i, single in enumerate(alone):
        assert torch.equal(together.ys[:, i], single.ys[:, 0])
        assert torch.equal(together.certificate.error[:, i], single.certificate.error[:, 0])
        assert any("stiff" in note for note in single.notes) == (rates[i] > 1e3)
        exact = (y0[i] - 1) * torch.exp(-rate[i] * ts[:, None]) + ts[:, None].cos()
        assert ((together.ys[:, i] - exact).abs() <= 10 * tol * (1 + exact.abs())).all()
        if events:
            assert torch.equal(together.events[0][i].ts, single.events[0][0].ts)
