"""Every small pipeline of the tests, untouched and in parallel: the table of ``docs/pipelines.md``."""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers.utils import logging
from pipelines import CASES, generator

from picardsolve.integrations.diffusers import sample

STEPS, WINDOW, TOLERANCE = 20, 8, 1e-3


def row(case) -> str:
    """One line: what it cost, how far it is from the untouched pipeline, and what kept it from being faster."""
    arguments = case.arguments(num_inference_steps=STEPS)
    pipe = case.make()
    name = f"| {case.name} | `{type(pipe).__name__}`, {type(pipe.scheduler).__name__.removesuffix('Scheduler')} | "
    torch.manual_seed(0)
    expected = torch.as_tensor(case.result(pipe(generator=generator(5), **arguments))).double()
    pipe = case.make()
    torch.manual_seed(0)
    try:
        out = sample(pipe, generator=generator(5), window=WINDOW, tolerance=TOLERANCE, **arguments)
    except RuntimeError as error:
        return f"{name}refused | | | {str(error).split(';')[0].split(': ', 1)[1]} |"
    report = out.report
    distance = torch.linalg.vector_norm(torch.as_tensor(case.result(out)).double() - expected)
    distance = float(distance / torch.linalg.vector_norm(expected))
    why = "" if report.sequential is None else "one step at a time: " + report.sequential.split(" (")[0]
    why = why or " ".join(report.notes) or (f"{report.misses} misses" if report.misses else "")
    work = report.evaluations / max(1, report.steps * report.samples)
    rounds = f"{report.rounds} of {report.steps}" if report.steps else "all"
    return f"{name}{rounds} | {work:.1f} | {distance:.0e} | {why} |"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print("| case | pipeline, scheduler | rounds | evaluations per step | distance | |\n|---|---|---|---|---|---|")
    for case in CASES:
        print(row(case), flush=True)


if __name__ == "__main__":
    main()
