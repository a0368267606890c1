"""Whether the tolerance is held on trained networks, and whether the estimate is right.

``python tests/benchmarks/held.py`` prints a row for each chain and tolerance: solves beyond one and three tolerances,
the worst, how many estimates are within a factor of two of the truth (of errors above a hundredth of the tolerance),
rounds, evaluations for each step, and the rounds of the increment rule at the loosest tolerance that holds as well.
"""

import argparse
import statistics
import warnings
from dataclasses import dataclass
from typing import Any

import networks
import torch
from chains import SAMPLERS
from torch import Tensor

import picardsolve as ps

SEEDS, FIRST = 64, 7000
TOLERANCES = (1e-1, 1e-2, 1e-3)
INCREMENTS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class ChainOf:
    """Samples of one network: sampler, steps, window, guidance."""

    network: str
    sampler: str
    steps: int
    window: int
    guidance: float = 0.0

    def __str__(self) -> str:
        guided = f" guided {self.guidance:g}" if self.guidance else ""
        return f"{self.network} {self.sampler}-{self.steps} W={self.window}{guided}"


CHAINS = (
    ChainOf("moons-mlp", "DDIM", 100, 25),
    ChainOf("roll-mlp", "DDPM", 200, 32),
    ChainOf("roll-mlp", "DDIM", 100, 25),
    ChainOf("roll-mlp", "DPM-Solver++(2M)", 50, 25),
    ChainOf("digits-convolutional", "DDIM", 100, 16, 2.0),
    ChainOf("digits-convolutional", "DDPM", 100, 32, 2.0),
    ChainOf("digits-convolutional", "DDIM", 60, 60),
    ChainOf("digits-convolutional", "DPM-Solver++(2M)", 50, 25),
    ChainOf("cancer-mlp", "DDIM", 60, 20),
    ChainOf("cancer-mlp", "DDPM", 60, 20),
    ChainOf("cancer-mlp", "DPM-Solver++(2M)", 40, 40),
    ChainOf("digits-transformer", "DDIM", 100, 100),
    ChainOf("digits-transformer", "DDPM", 100, 100),
    ChainOf("digits-transformer", "DDPM", 200, 40),
)


@dataclass(frozen=True)
class Held:
    """Distances to the sequential solution and estimates, in tolerances; rounds and evaluations a step by sample."""

    true: Tensor
    estimated: Tensor
    rounds: list[int]
    work: float


def problem(chain: ChainOf, seeds: int) -> dict[str, Any]:
    term, size = networks.denoiser(chain.network, chain.guidance)
    y0 = torch.stack(
        [torch.randn(size, generator=torch.Generator().manual_seed(FIRST + seed)) for seed in range(seeds)]
    )
    times = torch.arange(0, 1000, 1000 // chain.steps).flip(0)[: chain.steps] + 1000 // chain.steps - 1
    given = {"integrator": SAMPLERS[chain.sampler], "brownian": ps.BrownianPath(FIRST)}
    if chain.guidance:
        given["cond"] = {"label": torch.arange(seeds) % 10}
    return {"term": term, "y0": y0.double(), "ts": ps.grids.given([*times.tolist(), -1]), **given}


def solved(given: dict[str, Any], reference: Tensor, window: int, tol: float, **how: Any) -> Held:
    solution = ps.solve(**given, window=window, tol=tol, save="last", **how)
    unit = tol * reference.square().mean(-1).sqrt()
    true = (solution.ys[-1] - reference).square().mean(-1).sqrt() / unit
    estimated = solution.certificate.error[-1] / unit if not how else torch.full_like(true, torch.nan)
    widths = torch.stack([record.width for record in solution.history])
    rounds = (widths > 0).sum(0).tolist()
    return Held(true, estimated, rounds, solution.stats.evaluations / len(true) / (len(given["ts"]) - 1))


def row(chain: ChainOf, seeds: int, increments: bool) -> list[tuple[int, int, int]]:
    given, out = problem(chain, seeds), []
    reference = ps.sequential(**given, save="last").ys[-1]
    for tol in TOLERANCES:
        found = solved(given, reference, chain.window, tol)
        told = found.true > 0.01
        ratio = (found.estimated / found.true)[told]
        right = int(((ratio >= 0.5) & (ratio <= 2)).sum())
        one, three = int((found.true > 1).sum()), int((found.true > 3).sum())
        best = ""
        if increments:
            for each in INCREMENTS:
                other = solved(given, reference, chain.window, each, stop="increment")
                true = other.true * each / tol
                if int((true > 1).sum()) <= max(one, 0.02 * seeds):
                    best = f"{statistics.mean(other.rounds):6.1f} (tol {each:g}, worst {float(true.max()):.2g})"
                    break
        print(
            f"{chain!s:44s} {tol:6g} {one:4d} {three:4d} {float(found.true.max()):8.2g} median "
            f"{float(found.true.median()):6.2g}  {right:3d}/{int(told.sum()):3d} ratio {float(ratio.median()):5.2f}  "
            f"{statistics.mean(found.rounds):6.1f} {max(found.rounds):4d} {found.work:5.2f}  {best}",
            flush=True,
        )
        out.append((one, three, right))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--increments", action="store_true", help="also the increment rule, many more solves")
    parser.add_argument("--networks", help="names with commas between; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = given.networks.split(",") if given.networks else list(networks.KINDS)
    rows = [row(chain, given.seeds, given.increments) for chain in CHAINS if chain.network in names]
    counts = torch.tensor(rows).sum((0, 1)).tolist()
    print(f"{len(rows) * len(TOLERANCES) * given.seeds} solves: beyond, beyond three, estimates within two: {counts}")


if __name__ == "__main__":
    main()
