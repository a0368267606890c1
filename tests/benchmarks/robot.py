"""Diffusion policies on Meta-World, planned in parallel and step by step: every task and sampler, in one run.

pip install "picardsolve[robot]"
make bench-robot
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "diffusion_policy"))
from evaluate import TASKS, evaluated
from samplers import SAMPLERS

_HEAD = (
    "task                sampler           success seq/par  return seq/par  rounds cold/warm/worst  rows  "
    "RMS med/max of range  largest   ms p50/p99      cold   lean  diffusers  faster"
)


def main() -> None:
    """Print a line for each task and sampler."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--episodes", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--tasks", nargs="*", default=TASKS)
    arguments.add_argument("--samplers", nargs="*", default=SAMPLERS)
    asked = arguments.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{asked.episodes} episodes each, threads {asked.threads}; faster: than diffusers, than the lean loop")
    print(_HEAD)
    for task in asked.tasks:
        for sampler in asked.samplers:
            print(_line(evaluated(task, sampler, asked.episodes, asked.seed)), flush=True)


def _line(found: dict) -> str:
    return (
        "{task:19s} {sampler:17s} {success_sequential:6.2f} {success_parallel:6.2f}   {return_sequential:6.0f} "
        "{return_parallel:6.0f}  {rounds_median:8.4g} {rounds_warm_median:4.4g} {rounds_worst:4d}        "
        "{evaluations_median:4.0f}  {plan_rmse_median:9.1e} {plan_rmse_max:8.1e}  {plan_difference_max:8.1e}  "
        "{ms_p50:6.1f} {ms_p99:6.1f}  {ms_cold:6.1f} {ms_lean:6.1f} {ms_diffusers:6.1f}   {speedup_diffusers:5.2f} "
        "{speedup_lean:5.2f}"
    ).format(**found)


if __name__ == "__main__":
    main()
