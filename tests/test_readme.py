"""The README's code runs as it stands."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import picardsolve as ps

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_there_is_code_for_every_kind_of_user():
    assert len(BLOCKS) == 4


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_the_pipeline_code_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    block = BLOCKS[0].replace("examples/digits", str(ROOT / "examples" / "digits"))
    namespace = {"torch": torch}
    exec(block.replace("digit.png", str(tmp_path / "digit.png")), namespace)
    assert (tmp_path / "digit.png").exists()
    assert namespace["out"].report.rounds <= 1000 / 15
    assert namespace["run"].report.steps == 1000


def test_the_ode_and_sde_code_runs():
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ps.ConvergenceWarning)
        exec(BLOCKS[1], namespace)
    assert namespace["sol"].stats.rounds < 4 * 4000 / 10
    assert float((namespace["ys"] - namespace["sol"].ys).abs().max()) < 1e-4
    assert namespace["path"].ys.shape == (513, 8, 2)


def test_the_sampler_code_runs():
    few = "uniform(999, -1, 250)"  # steps, for they are taken six times
    namespace = {}
    torch.manual_seed(0)
    exec(BLOCKS[2].replace("uniform(999, -1, 1000)", few), namespace)
    assert len(namespace["ts"]) == 251
    samples, expected = namespace["sol"].ys[-1], namespace["ref"].ys[-1]
    assert float((samples - expected).square().mean().sqrt()) < 0.05
    assert torch.allclose(samples.flatten(1).std(1), namespace["labels"], rtol=0.2)


def test_the_code_about_trust_runs(capsys):
    exec(BLOCKS[3], {})
    shown = capsys.readouterr().out
    assert "estimated distance" in shown
    assert "rounds" in shown
