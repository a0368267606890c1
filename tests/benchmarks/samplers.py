"""Short sequential samplers, and one of them solved in parallel: distance to the converged sample, and calls.

``python tests/benchmarks/samplers.py`` prints the tables of ``docs/benchmarks.md``.
"""

import statistics
from itertools import product
from typing import Any

import torch
from chains import BETAS, Samples, measured, samples
from diffusers import UniPCMultistepScheduler
from methods import SEEDS, Case, chosen, line, ours
from torch import Tensor

HELD_OUT = tuple(range(SEEDS, 2 * SEEDS))
CONVERGED = 1000  # steps of DPM-Solver++(2M)
SHORT = (15, 20, 25)
LIMIT = 1e-2
SPACINGS = ("trailing", "linspace", "log-SNR")


def unipc(of: Samples, steps: int, spacing: str) -> Tensor:
    """diffusers' UniPC of order 2, step by step, ``(B, D)``."""
    settings: dict[str, Any] = (
        {"use_exponential_sigmas": True} if spacing == "log-SNR" else {"timestep_spacing": spacing}
    )
    scheduler = UniPCMultistepScheduler(trained_betas=BETAS.numpy(), final_sigmas_type="zero", **settings)
    scheduler.set_timesteps(steps)
    x = of.y0
    for t in scheduler.timesteps:
        out = of.term.model(x, t.expand(len(x)), **of.given["cond"])
        x = scheduler.step(out, t, x).prev_sample
    return x


def sequential(model: str) -> None:
    """Every sampler from the first time of the schedule, by each spacing."""
    print(f"\n{f'{model}, in sequence':18s} calls  spacing   distance to the converged sample")
    converged = samples(model, "DPM-Solver++(2M)", HELD_OUT, CONVERGED, "trailing").reference
    for name, steps in (*(("DPM-Solver++(2M)", n) for n in SHORT), *(("UniPC", n) for n in SHORT), ("DDIM", 100)):
        if name == "UniPC" and model == "mixture":
            continue
        for spacing in SPACINGS:
            of = samples(model, "DDIM" if name == "UniPC" else name, HELD_OUT, steps, spacing)
            last = unipc(of, steps, spacing) if name == "UniPC" else of.reference
            error = (last - converged).square().mean(-1).sqrt().tolist()
            calls = steps if name == "UniPC" else len(of.ts) - 1
            print(f"{name:18s} {calls:5d}  {spacing:9s} {statistics.median(error):.1e} / {max(error):.1e}", flush=True)


def parallel(case: Case, spacing: str) -> None:
    """The best of our methods on top of DPM-Solver++, chosen on other seeds."""
    given = case.model, case.sampler
    choosing, of = (samples(*given, seeds, case.steps, spacing) for seeds in (case.choosing, case.held_out))
    found = []
    for method in ours(case):
        choice = chosen(method, choosing, case.window, case.limit)
        if choice is not None:
            got = measured(choosing, window=case.window, **choice[1])
            found.append((statistics.median(got.rounds), statistics.median(got.work), method.name, choice))
    name, (tol, setting) = min(found, key=lambda row: row[:2])[2:]
    got = measured(of, window=case.window, **setting)
    print(f"{case.model:7s}  {spacing:9s} {f'{name}, {tol}':46s} {line(got, case.limit)}", flush=True)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    for model in ("digits", "mixture"):
        sequential(model)
    print(f"\nDPM-Solver++(2M)-25 in parallel: distance to its sequential self, at most {LIMIT:g} where chosen")
    print(f"model    spacing   {'method':46s} rounds       evaluations/N  width  error")
    for model, spacing, window in product(("digits", "mixture"), ("trailing", "log-SNR"), (25, 12)):
        parallel(Case(model, "DPM-Solver++(2M)", 25, window, limit=LIMIT), spacing)


if __name__ == "__main__":
    main()
