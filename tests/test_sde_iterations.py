"""How many rounds SDEs take: known noise is foreseen, and an unstable stretch does not throw the window back."""

import torch

import picardsolve as ps


def rounds(term: ps.SDE, y0: torch.Tensor, end: float, steps: int, **how) -> int:
    common = {"integrator": ps.EulerMaruyama(), "brownian": ps.BrownianPath(3), "save": "last", "window": steps}
    return ps.solve(term, y0, ps.grids.uniform(0.0, end, steps), tol=1e-3, **common | how).stats.rounds


def test_geometric_brownian_motion_is_foreseen_by_default():
    """One round for the first step, one at guesses, one to measure with, one to see that nothing moves."""
    term = ps.SDE(lambda t, y: 0.05 * y, lambda t, y: 0.4 * y)
    y0 = torch.ones(16, dtype=torch.float64)
    assert rounds(term, y0, 10.0, 256) <= 4 < rounds(term, y0, 10.0, 256, iteration=ps.Picard())


def test_a_window_too_wide_for_an_unstable_drift_finds_its_width():
    """At once doubled after each divergence, and without what did not diverge, it takes more than twice as long."""
    term = ps.SDE(lambda t, y: 2 * (y - y**3), lambda t, y: 0.7 + 0 * y, noise="additive")
    y0 = torch.linspace(-1, 1, 16, dtype=torch.float64)
    how = {"iteration": ps.Picard(), "stop": "increment"}
    narrow = min(rounds(term, y0, 5.0, 500, window=width, **how) for width in (32, 64))
    assert rounds(term, y0, 5.0, 500, **how) <= 1.5 * narrow
