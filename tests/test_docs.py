"""The documentation's table of pipelines is the tests', and its code runs as it stands."""

import re
from pathlib import Path

import numpy as np
import torch
from cases import generator, randn, seeds
from hypothesis import assume, given
from hypothesis import strategies as st
from pipelines import CASES
from scipy.integrate import solve_ivp

import picardsolve as ps

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "pipelines.md"


def shown_in(page):
    """What the Python blocks of a page define."""
    shown = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(block, shown)
    return shown


def test_the_table_of_pipelines_has_every_case():
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = rows[rows.index("case") + 1 :]
    assert listed == [case.name for case in CASES]


def test_the_code_about_odes_runs():
    shown = shown_in("odes.md")
    torch.testing.assert_close(shown["fast"], shown["ys"], rtol=0.0, atol=1e-6)
    assert abs(float(shown["states"][-1, 0])) < 1e-8
    assert shown["paths"].shape == (8, 101, 2)
    assert shown["sensitivity"].shape == (8, 2, 2)
    areas = torch.linalg.det(shown["sensitivity"])  # a pendulum without friction keeps them
    torch.testing.assert_close(areas, torch.ones(8).double(), rtol=0.0, atol=1e-4)
    assert shown["sol"].result is ps.Result.terminated
    torch.testing.assert_close(shown["sol"].events[1].ts, torch.tensor([20 / 9.81]).double(), rtol=0.0, atol=1e-4)
    expected = solve_ivp(shown["lotka_volterra"], (0, 20), [1.0, 1.0], "DOP853", rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shown["result"].y[:, -1], expected.y[:, -1], rtol=1e-7)
    assert shown["result"].nfev < expected.nfev / 20


def test_the_code_about_likelihoods_runs():
    shown = shown_in("likelihoods.md")
    assert shown["likelihood"].shape == shown["given"].shape == (64,)
    assert float(shown["network"][0].weight.grad.abs().max()) > 0
    back = torch.linspace(1.0, 0.0, 201)
    ys = ps.odeint(shown["flow"], (shown["x"], torch.zeros(64)), back, method="rk4", options={"vectorized": True})
    expected = shown["base"].log_prob(ys[0][-1]) - ys[1][-1]
    torch.testing.assert_close(shown["likelihood"].detach(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_code_about_sdes_runs():
    shown = shown_in("sdes.md")
    torch.testing.assert_close(shown["sol"].ys, shown["ref"].ys, rtol=0.0, atol=1e-5)
    assert float((shown["ito"].ys[-1] - shown["sol"].ys[-1]).abs().max()) < 0.02
    assert abs(float(shown["samples"].std()) - 0.5) < 0.3
    assert shown["ys"].shape == (5, 16, 3)


def test_the_code_about_serving_runs():
    shown = shown_in("serving.md")
    assert len(shown["found"]) == 4
    for seed, y in shown["found"].items():
        x = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        model = ps.Denoiser(shown["eps"], shown["schedule"])
        expected = ps.sequential(model, x, shown["ts"], integrator=ps.DDIM()).ys[-1]
        assert float((y - expected).norm() / expected.norm()) < 5e-3


@given(st.data())
def test_the_method_in_plain_lines_agrees_bit_for_bit(data):
    """Where no window diverges, which the plain lines know nothing of. Elementwise sums, products and quotients do not
    depend on the batch."""
    gen, size, steps = generator(data.draw(seeds)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    weight, y0 = randn(gen, size, dtype=dtype), randn(gen, size, dtype=dtype)
    ts = torch.linspace(0, data.draw(st.sampled_from([0.5, -1.0, 4.0])), steps + 1, dtype=torch.float64)
    tol, window = data.draw(st.sampled_from([1e-2, 1e-4, 1e-6])), data.draw(st.integers(1, 40))

    def drift(t, y):
        t = t.to(y)
        return weight * y.roll(1, -1) / (1 + y * y) - y / 2 + t * (2 - t)

    how = {"integrator": ps.Euler(), "iteration": ps.Picard(), "guess": ps.Copy(), "stop": "increment"}
    sol = ps.solve(ps.ODE(drift), y0, ts, window=window, tol=tol, **how)
    assume(all(int(now.width) >= min(window, steps - int(now.begin)) for now in sol.history))
    ys, rounds = PLAIN["picard"](drift, y0, ts, window, tol)
    assert torch.equal(sol.ys, ys)
    assert sol.stats.rounds == rounds


PLAIN = shown_in("how-it-works.md")
