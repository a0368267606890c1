"""Rounds and error of the published parareal samplers on the exact-score mixture: run it to print the table."""

import statistics

import mixture
import numpy as np
import torch

import picardsolve as ps

SEEDS = 8


def main() -> None:
    """Root mean square distance per dimension to the sequential samples, median and worst of eight seeds."""
    seeds = [np.random.default_rng(100 + seed) for seed in range(SEEDS)]  # of the figures that it is compared with
    start = torch.tensor(np.array([rng.standard_normal(mixture.DIM) for rng in seeds]))
    term = mixture.denoiser()
    cases = [
        *((f"SRDS DDIM-100, {k} iteration", 100, ps.presets.srds(iterations=k)) for k in (1, 2, 3)),
        *((f"SRDS DDIM-25, {k} iteration", 25, ps.presets.srds(iterations=k)) for k in (1, 2, 3)),
        *((f"CHORDS 8 cores DDIM-50, core {9 - k}", 50, ps.presets.chords(50, 8, k)) for k in (1, 2)),
        *((f"CHORDS 6 cores DDIM-50, core {7 - k}", 50, ps.presets.chords(50, 6, k)) for k in (1, 2)),
        *((f"CHORDS 4 cores DDIM-50, core {5 - k}", 50, ps.presets.chords(50, 4, k)) for k in (1, 2)),
        *((f"CHORDS 8 cores DDIM-75, core {9 - k}", 75, ps.presets.chords(75, 8, k)) for k in (1, 2)),
        *((f"CHORDS 8 cores DDIM-100, core {9 - k}", 100, ps.presets.chords(100, 8, k)) for k in (1, 2, 3)),
    ]
    print("method                            rounds  evaluations/N  RMSE median / worst")
    for name, steps, preset in cases:
        report(name, term, start, steps, preset | {"tol": 0})
    print("by tolerance: each sample stops by itself")
    for tol in (0.3, 0.1, 0.02):
        report(f"SRDS DDIM-100, tol {tol}", term, start, 100, ps.presets.srds() | {"tol": tol})
        report(f"CHORDS 8 cores DDIM-50, tol {tol}", term, start, 50, ps.presets.chords(50) | {"tol": tol})


def report(name: str, term: ps.Denoiser, start: torch.Tensor, steps: int, given: dict) -> None:
    """One line of the table."""
    given = {"integrator": ps.DDIM(), "save": "last"} | given
    reference = ps.sequential(term, start, mixture.grid(steps), integrator=ps.DDIM(), save="last").ys
    solution = ps.solve(term, start, mixture.grid(steps), **given)
    error = (solution.ys - reference)[0].square().mean(-1).sqrt().tolist()
    widths = torch.stack([record.width for record in solution.history])
    rounds = statistics.median((widths > 0).sum(0).tolist())
    work = statistics.median((widths.sum(0) / steps).tolist())
    print(f"{name:34s}{rounds:6.1f}  {work:13.2f}  {statistics.median(error):.1e} / {max(error):.1e}")


if __name__ == "__main__":
    main()
