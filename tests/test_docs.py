"""The documentation's table of pipelines is the tests', and the code about ODEs runs as it stands."""

import re
from pathlib import Path

import numpy as np
import torch
from pipelines import CASES
from scipy.integrate import solve_ivp

import picardsolve as ps

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "pipelines.md"


def test_the_table_of_pipelines_has_every_case():
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = rows[rows.index("case") + 1 :]
    assert listed == [case.name for case in CASES]


def test_the_code_about_odes_runs():
    shown = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "odes.md").read_text(), re.DOTALL):
        exec(block, shown)
    torch.testing.assert_close(shown["fast"], shown["ys"], rtol=0.0, atol=1e-6)
    assert abs(float(shown["states"][-1, 0])) < 1e-8
    assert shown["sol"].result is ps.Result.terminated
    torch.testing.assert_close(shown["sol"].events[1].ts, torch.tensor([20 / 9.81]).double(), rtol=0.0, atol=1e-4)
    expected = solve_ivp(shown["lotka_volterra"], (0, 20), [1.0, 1.0], "DOP853", rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shown["result"].y[:, -1], expected.y[:, -1], rtol=1e-7)
    assert shown["result"].nfev < expected.nfev / 20


def test_the_code_about_sdes_runs():
    shown = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "sdes.md").read_text(), re.DOTALL):
        exec(block, shown)
    torch.testing.assert_close(shown["sol"].ys, shown["ref"].ys, rtol=0.0, atol=1e-5)
    assert float((shown["ito"].ys[-1] - shown["sol"].ys[-1]).abs().max()) < 0.02
    assert abs(float(shown["samples"].std()) - 0.5) < 0.3
    assert shown["ys"].shape == (5, 16, 3)
