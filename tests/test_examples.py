"""The examples run, in small."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gru
import sliding_window
import two_moons


def test_a_flow_on_two_moons(monkeypatch, capsys, tmp_path):
    """Both solvers train the same network, and the density that comes out is one."""
    fits, draw = [], two_moons.picture
    monkeypatch.setattr(two_moons, "CELLS", 24)
    monkeypatch.setattr(two_moons, "picture", lambda *given: fits.extend(given[0]) or draw(*given))
    monkeypatch.setattr(sys, "argv", ["two_moons.py", "--steps", "4", "--out", str(tmp_path)])
    two_moons.main()
    ours, theirs = (torch.tensor(fit.losses) for fit in fits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    mass = float(capsys.readouterr().out.split("adds up to ")[1].split()[0])
    assert abs(mass - 1) < 0.02
    assert (tmp_path / "two_moons.png").stat().st_size > 10_000


def test_every_frame_of_the_sliding_window_is_a_round():
    seen, sol, reference = sliding_window.rounds()
    assert len(seen) == sol.stats.rounds
    assert float((sol.ys[:, 0] - reference).abs().max()) < 4 * sliding_window.TOL
    shown = sliding_window.picture()
    assert shown.count('<g class="frame"') == sol.stats.rounds
    assert shown.count('class="now"') == sol.stats.evaluations
    kept = (Path(__file__).parents[1] / "docs" / "images" / "window.svg").read_text()
    assert shown.count("<circle") == kept.count("<circle")


def test_a_recurrent_network(monkeypatch, capsys, tmp_path):
    """All steps at once find the states of the loop."""
    monkeypatch.setattr(sys, "argv", ["gru.py", "--steps", "100", "--out", str(tmp_path)])
    gru.main()
    assert float(capsys.readouterr().out.split("largest difference ")[1]) < 1e-6
    assert (tmp_path / "gru.png").stat().st_size > 10_000
