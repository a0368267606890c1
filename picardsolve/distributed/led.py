"""A solve by a crew: one worker decides, all return the same solution."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from picardsolve.distributed.device_crew import DeviceCrew
from picardsolve.distributed.errors import RankError
from picardsolve.distributed.mesh_crew import MeshCrew
from picardsolve.problem.crew import Crew
from picardsolve.results.solution import Result, Solution, SolveError


def crew_of(mesh: Any, devices: Sequence[Any] | None, home: torch.device) -> Crew | None:
    """The crew of the arguments ``mesh`` and ``devices`` of a solve; None without them.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: both are given, or one has a wrong value.
    """
    if mesh is not None and devices is not None:
        raise ValueError("devices: those of one process; pass either mesh, with a process for each device, or devices.")
    if mesh is not None:
        return MeshCrew(mesh)
    return None if devices is None else DeviceCrew(devices, home)


def led(
    crew: Crew | None,
    run: Callable[[], Solution],
    reached: Callable[[], Solution],
    settings: Mapping[str, Any],
    *reach: Any,
) -> Solution:
    """The solution of a solve, alike for all workers.

    Args:
        crew: who evaluates the rows; None: this process alone.
        run: the solve.
        reached: the solution so far, for a solve that lost a worker.
        settings: see `Crew.together`.
        reach: see `Crew.together`.

    Raises:
        SolveError: of the solve; or a worker was lost, and this one, which decides, has the solution so far.
        RankError: a worker was lost, for the other ones.
    """
    if crew is None:
        return run()

    def lead() -> tuple[Solution | None, SolveError | None]:
        try:
            solution = run()
        except SolveError as error:
            return None, error
        except RankError as error:
            solution = replace(reached(), result=Result.interrupted)
            raise SolveError(f"{error} {Result.interrupted.value}", solution) from error
        return replace(solution, notes=(*solution.notes, *crew.notes)), None

    solution, error = crew.together(lead, settings, *reach)
    if solution is None:
        assert error is not None
        raise error
    return solution
