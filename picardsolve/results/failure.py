"""What is said of a solve on a grid that could not be finished."""

import numpy as np
from torch import Tensor

from picardsolve.results.solution import Result, Solution, SolveError


def failure_of(solution: Solution, ts: Tensor, reached: np.ndarray, failed: np.ndarray, batched: bool) -> SolveError:
    """The error of a solve that ended before its last step.

    Args:
        solution: what there is of it.
        ts: ``(N + 1,)`` the grid.
        reached: ``(B,)`` steps of each sample that are known.
        failed: ``(B,)`` whether the step after them is not finite.
        batched: whether the user's states are samples.
    """
    result = solution.result
    if result is Result.max_rounds:
        return SolveError(f"{int(reached.min())} of {solution.stats.steps} steps converged. {result.value}", solution)
    sample = int(failed.argmax())
    step = int(reached[sample])
    time, which = float(ts[step]), f" of sample {sample}" if batched else ""
    return SolveError(f"Step {step}{which} at t = {time:g} is not finite. {result.value}", solution, step, time)
