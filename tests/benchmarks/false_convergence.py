"""How many of 256 samples are declared converged that are not, by each rule for stopping, on the exact-score mixture.

``python tests/benchmarks/false_convergence.py`` prints the table of ``docs/certificates.md``. The default tolerance was
chosen on seeds 0 to 255; these are others.
"""

import statistics
import warnings

import torch
from chains import measured, samples

import picardsolve as ps

SEEDS = tuple(range(2000, 2256))
ELSEWHERE = 0.1  # RMS per dimension from which a sample is another one; the data have a variance of 1
RULES = (
    ("increment, as ParaDiGMS", ps.presets.paradigms()),
    ("increment 0.1", {"stop": "increment", "tol": 0.1}),
    ("increment 0.05, the default", {"stop": "increment"}),
    ("residual, the default", {"stop": "residual"}),
    ("error 0.01", {"tol": 0.01}),
    ("error, the default", {}),
)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ps.ConvergenceWarning)
    print(f"{'chain':24s} {'rule':28s} rounds med/mean/worst  evaluations/N  median error   worst    elsewhere")
    for sampler, steps, window in (("DDIM", 100, 100), ("DDIM", 100, 16), ("DDIM", 50, 8), ("DDPM", 100, 25)):
        of = samples("mixture", sampler, SEEDS, steps)
        for name, how in RULES:
            got = measured(of, window=window, **how)
            rounds = f"{statistics.median(got.rounds):5.0f} {statistics.mean(got.rounds):6.1f} {max(got.rounds):5d}"
            print(
                f"{f'{sampler}-{steps}, width {window}':24s} {name:28s} {rounds}  {statistics.mean(got.work):16.2f}"
                f"        {statistics.median(got.error):.1e}  {max(got.error):.1e}  "
                f"{sum(error > ELSEWHERE for error in got.error):4d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
