"""Wall clock of ``window="auto"`` over that of the sequential solver, for drifts of different costs."""

import statistics
import time

import torch
from torch import Tensor

import picardsolve as ps

DRIFTS = (  # name, seconds a call, seconds a row
    ("5 ms a call", 5e-3, 0.0),
    ("5 ms a call, 0.1 ms a row", 5e-3, 1e-4),
    ("1 ms a row", 0.0, 1e-3),
    ("5 ms a row", 0.0, 5e-3),
    ("no cost", 0.0, 0.0),
)
REPEATS = 5


def ratio(call: float, row: float, steps: int) -> str:
    """Median and worst ratio of the times, widest window, rounds."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        if call or row:
            time.sleep(call + row * len(y))
        return torch.sin(3 * t) - y

    term, y0, ts = ps.ODE(drift), torch.randn(64, dtype=torch.float64), ps.grids.uniform(0, 3, steps)
    ratios, widths, rounds = [], [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        ps.sequential(term, y0, ts, integrator=ps.Euler())
        middle = time.perf_counter()
        solution = ps.solve(term, y0, ts, integrator=ps.Euler(), window="auto", tol=1e-4, stop="error")
        ratios.append((time.perf_counter() - middle) / (middle - start))
        widths.append(solution.stats.max_width)
        rounds.append(solution.stats.rounds)
    ratio, width, count = (statistics.median(values) for values in (ratios, widths, rounds))
    return f"{ratio:6.3f} / {max(ratios):.3f}  {width:6d}  {count:6d}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f'\nwindow="auto" against sequential, Euler, tol 1e-4; median of {REPEATS} solves')
    print("drift                      steps  time ratio (worst)  widest  rounds")
    for name, call, row in DRIFTS:
        for steps in (100, 300):
            print(f"{name:26s} {steps:5d}  {ratio(call, row, steps)}", flush=True)


if __name__ == "__main__":
    main()
