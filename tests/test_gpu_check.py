"""``make gpu-check`` runs: on the CPU, with sizes that measure nothing; and without a GPU it says so."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import gpu_check

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_every_section_runs_and_is_kept(capsys):
    found = gpu_check.run(torch.device("cpu"), gpu_check.TINY)
    assert json.loads(json.dumps(found)) == found
    assert "left out" not in found
    assert all(row["agrees"] for row in found["answers"])
    assert {row["path"] for row in found["rounds"]} == set(gpu_check.TINY.paths)
    for section in ("widths", "pipeline"):
        assert [row["run"] for row in found[section]] == ["sequential", "window 1", "window 4"]
        assert max(row["distance"] for row in found[section]) < 0.01
    printed = capsys.readouterr().out
    assert all(f"\n{section}\n" in printed for section in ("answers", "constants", "rounds", "widths", "pipeline"))


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path / "found.json")]) == 0
    assert "skipped" in capsys.readouterr().out
    assert not (tmp_path / "found.json").exists()
