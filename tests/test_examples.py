"""The examples run, in small."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gru
import posterior
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


def test_a_posterior_in_parallel_and_step_by_step(monkeypatch, capsys, tmp_path):
    """With a network that is hardly trained: both ways give the same samples, and the same densities."""
    small = ["--training", "20", "--samples", "3", "--steps", "24", "--cells", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["posterior.py", *small])
    posterior.main()
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split("parallel, ")[1].split()[0]) < 5e-3 for line in lines[:2]] == [True, True]
    assert float(lines[2].split("(collocation), ")[1].split()[0]) < 1e-2
    assert (tmp_path / "posterior.png").stat().st_size > 5_000


def test_the_exact_posterior_is_the_simulator_s():
    """Parameters that are kept where they measure nearly the same lie where the density says."""
    g = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(200_000, 2, generator=g) - 1
    near = theta[posterior.simulated(theta, g).norm(dim=1) < 0.03]
    counts = torch.bincount(((near + 1) * 4).long().clamp(0, 7) @ torch.tensor([8, 1]), minlength=64) / len(near)
    fine = (2 * torch.arange(64) + 1) / 64 - 1
    density = posterior.exact(torch.cartesian_prod(fine, fine), torch.zeros(1, 2), 0.02).view(8, 8, 8, 8).mean((1, 3))
    expected = density.flatten() / density.sum()
    assert float((counts - expected).abs().sum()) < 0.2
