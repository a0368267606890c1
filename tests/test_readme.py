"""The README's code runs as it stands."""

import re
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
    exec(BLOCKS[1], namespace)
    assert namespace["sol"].stats.rounds < 4 * 4000 / 10
    assert float((namespace["ys"] - namespace["sol"].ys).abs().max()) < 1e-4
    assert namespace["path"].ys.shape == (513, 8, 2)


def test_the_sampler_code_runs():
    schedule = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))

    def eps(x, t, label):
        """The exact prediction for Gaussian data whose spread is the label."""
        alpha, sigma = schedule.alpha(t.double()).float(), schedule.sigma(t.double()).float()
        return x * (sigma / ((alpha * label) ** 2 + sigma**2)).view(-1, 1, 1, 1)

    labels = torch.tensor([0.5, 1.0, 2.0, 3.0])
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    namespace = {"torch": torch, "ps": ps, "x": x, "labels": labels, "eps": eps}
    few = "uniform(999, -1, 250)"  # steps, for they are taken six times
    exec(BLOCKS[2].replace("uniform(999, -1, 1000)", few), namespace)
    assert len(namespace["ts"]) == 251
    samples, expected = namespace["sol"].ys[-1], namespace["ref"].ys[-1]
    assert float((samples - expected).square().mean().sqrt()) < 0.05
    assert torch.allclose(samples.flatten(1).std(1), labels, rtol=0.2)
    namespace |= {
        "sol": namespace["again"],
        "ts": ps.grids.uniform(999, 699, 60),
    }  # fewer steps: it is done three times
    exec(BLOCKS[3], namespace)
