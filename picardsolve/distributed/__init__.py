"""A window's rows spread over devices: the ranks of a `torch.distributed` mesh, or the devices of one process.

`picardsolve.solve` and other public calls take ``mesh=`` or ``devices=``; `shard` is for other solvers. `Crew`, `Job`,
`MeshCrew`, `Marks`, `crew_of` and `spread` are for adapters, which have a loop of their own.
"""

from picardsolve.distributed.errors import RankError
from picardsolve.distributed.led import crew_of
from picardsolve.distributed.marks import Marks
from picardsolve.distributed.mesh_crew import MeshCrew
from picardsolve.distributed.sharded import shard
from picardsolve.problem.crew import Copied, Crew, Job, spread

__all__ = ["Copied", "Crew", "Job", "Marks", "MeshCrew", "RankError", "crew_of", "shard", "spread"]
