"""The ranks of a `torch.distributed` mesh as a crew: rank 0 of the mesh solves, the others evaluate what it asks for.

Every decision is taken once, by the rank that solves: which rows, what was accepted, how wide the next round is. The
other ranks never compute one, so no last bit and no clock can let ranks part ways. Of each round a rank gets its own
rows and sends back their values, so that rows cross once each way. At the end all ranks get the result.

    rank 0                                   another rank
    together: fingerprints compared    <-    its own fingerprint
    run: rows of a share               ->    serve: the drift at these rows
                                       <-    values, and the seconds that they took
    tell: the result                   ->    what `together` returns
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from time import perf_counter
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from picardsolve.distributed.errors import RankError
from picardsolve.distributed.fingerprint import differing, fingerprint
from picardsolve.distributed.messages import Mail
from picardsolve.distributed.shares import Shares
from picardsolve.problem.checks import check_type
from picardsolve.problem.crew import Crew, Job

Outcome = TypeVar("Outcome")

_ROWS = "rows"  # the name of the dimension that rows are spread over
_REASON = "picardsolve/lost"  # where rank 0 leaves word for ranks that it cannot reach any more
_AHEAD = 256  # tensors on their way to ranks that are behind
_PATIENCE = timedelta(seconds=10)  # with which these look for it


class MeshCrew(Crew):
    """The ranks of a mesh.

    Args:
        mesh: its dimension "rows", or its only one, has the workers. Ranks that differ in other dimensions evaluate the
            same rows together, as their drift does it.

    Attributes:
        leads: whether this rank solves.

    Raises:
        TypeError: the mesh is none.
        ValueError: it has several dimensions and none is called "rows", this rank is not in it, or its process group
            sends no tensors from a CPU.
    """

    def __init__(self, mesh: DeviceMesh):
        check_type("mesh", mesh, DeviceMesh, 'torch.distributed.device_mesh.init_device_mesh("cuda", (ranks,))')
        names = mesh.mesh_dim_names or ()
        if mesh.ndim > 1 and _ROWS not in names:
            raise ValueError(
                f'mesh: expected one dimension, or one that is called "rows", got {names or mesh.ndim}; pass '
                'mesh_dim_names=("rows", ...), and the drift gets the others to itself.'
            )
        backends = dist.get_backend_config()
        if "cpu:" not in backends:
            raise ValueError(
                f'mesh: its process group sends no tensors from a CPU ("{backends}"); call init_process_group() '
                'without a backend, or with "cpu:gloo,cuda:nccl".'
            )
        ranks = mesh.mesh if mesh.ndim == 1 else mesh.mesh.movedim(names.index(_ROWS), 0)
        self._ranks: list[list[int]] = ranks.flatten(1).tolist() if mesh.ndim > 1 else ranks[:, None].tolist()
        self._rank, self._leader = dist.get_rank(), self._ranks[0][0]
        self._others = [rank for row in self._ranks for rank in row if rank != self._leader]
        if self._rank != self._leader and self._rank not in self._others:
            raise ValueError(f"mesh: rank {self._rank} is not in it; call this on the ranks of the mesh only.")
        self.workers, self.notes = len(self._ranks), []
        self.leads = self._rank == self._leader
        self._answers = self.leads or self._rank in [row[0] for row in self._ranks]
        self._shares = Shares.of(self.workers)
        self._jobs: list[Job] = []
        self._mail = Mail()
        self._own_error: BaseException | None = None
        self._open = False  # whether the other ranks serve
        self._gone: set[int | None] = set()

    def enlist(self, job: Job) -> int:
        """Make a job known under the same number as on the other ranks."""
        self._jobs.append(job)
        return len(self._jobs) - 1

    def shares(self, rows: int, unit: int = 1) -> list[int]:
        """How many rows each worker gets: outside of `together`, where nobody else serves, all are this rank's."""
        if not self._open:
            return [rows] + [0] * (self.workers - 1)
        return self._shares.of_rows(rows, unit)

    def together(self, lead: Callable[[], Outcome], settings: Mapping[str, Any], *reach: Any) -> Outcome:
        """What ``lead`` returns on the rank that solves.

        Raises:
            RankError: a rank has gone, or did not answer in time; it has other settings, code or weights; or the rank
                that solves raised an error. That rank raises the error itself.
        """
        if not self.leads:
            self.begin(settings, *reach)
            return self.serve()
        try:
            self.begin(settings, *reach)
            outcome = lead()
        except BaseException as error:
            self.fail(error)
            raise
        self.tell(outcome)
        return outcome

    # ---- the rank that solves

    def run(self, number: int, parts: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """The results of a job; this rank does its own part while the others do theirs.

        Raises:
            RankError: a rank has gone, did not answer in time, or raised an error.
        """
        asked = [(k, rank) for k, part in enumerate(parts) if part is not None for rank in self._ranks[k]]
        asked = [(k, rank) for k, rank in asked if rank != self._leader and self._open]
        for k, rank in asked:
            self._send(("run", number, parts[k]), rank)
        results: list[Any] = [None] * self.workers
        seconds: list[float | None] = [None] * self.workers
        error: Exception | None = None
        if parts[0] is not None:
            try:
                results[0], seconds[0] = timed(self._jobs[number], parts[0])
            except Exception as own:  # after the others have answered: they are then ready for the news
                error = own
        for k, rank in asked:
            try:
                kind, *answer = self._received(rank)
            except RankError as lost:  # the others wait until their answers are taken
                error = error or lost
                continue
            if kind == "raised":
                error = error or RankError(f"Rank {rank} raised {answer[0]}.")
            elif rank == self._ranks[k][0]:
                results[k], seconds[k] = answer
        self._mail.wait()
        if error is not None:
            raise error
        self._shares.note(rows, seconds)
        return results

    def tell(self, value: Any, last: bool = True) -> None:
        """Give a value to the ranks that serve; the last one ends what they do together."""
        self._open = self._open and not last
        for rank in self._others:
            self._send(("told", value, last), rank)
        if last or len(self._mail) > _AHEAD:
            self._wait()

    def fail(self, error: BaseException) -> None:
        """Let the ranks that serve raise an error, too, as far as they can be reached."""
        self._open = False
        lost = next((each for each in (error, error.__cause__) if isinstance(each, RankError)), None)
        said = f"Rank {self._leader} raised {said_by(error)}." if lost is None else str(lost)
        self._mail.afresh()  # what is on its way to a rank that is gone never leaves
        with suppress(RuntimeError):
            for rank in self._others:
                if rank not in self._gone:
                    self._mail.send(("failed", said), rank)
            self._mail.wait()

    # ---- every rank

    def begin(self, settings: Mapping[str, Any], *reach: Any) -> None:
        """Compare the fingerprint of this rank with those of the others, which serve from now on; see `together`."""
        self._own_error, own = None, fingerprint(settings, reach)
        if not self.leads:
            self._send(("ready", own), self._leader)
            self._received(self._leader)  # raises what the comparison has shown
            return
        found = {rank: self._received(rank)[1] for rank in self._others} | {self._leader: own}
        for row in self._ranks:
            for rank, first in zip(row, self._ranks[0], strict=True):
                like = {**found[self._leader], "weights": found[first]["weights"]}  # a model may be spread over a row
                names = differing(found[rank], like)
                if names:
                    raise RankError(
                        f"Rank {rank} runs with other {', '.join(names)} than rank {self._leader}; call it alike on "
                        "every rank, with the same arguments, seeds and weights."
                    )
        for rank in self._others:
            self._send(("go",), rank)
        self._open = True

    def serve(self) -> Any:
        """Do what the rank that solves asks for, until it tells the next value: that value.

        Raises:
            RankError: it has gone, did not answer in time, or failed.
        """
        while True:
            kind, *given = self._received(self._leader)
            if kind == "told":
                return given[0]
            number, part = given
            try:
                result, seconds = timed(self._jobs[number], part)
            except Exception as error:
                self._own_error = error
                self._send(("raised", said_by(error)), self._leader)
            else:
                self._send(("done", result if self._answers else None, seconds), self._leader)
            self._wait()

    def leave(self, error: BaseException) -> None:
        """On a rank that cannot go on: say so where it is asked for rows, until the rank that solves knows or ends."""
        self._own_error = error
        with suppress(type(error), RankError):
            while True:
                kind, *given = self._received(self._leader)
                if kind == "told" and given[1]:
                    return
                if kind == "run":
                    self._send(("raised", said_by(error)), self._leader)
                    self._wait()

    def _send(self, value: Any, rank: int) -> None:
        try:
            self._mail.send(value, rank)
        except RuntimeError as error:
            raise self._lost(rank, error) from error

    def _wait(self) -> None:
        try:
            self._mail.wait()
        except RuntimeError as error:
            raise self._lost(None if self.leads else self._leader, error) from error

    def _received(self, rank: int) -> Any:
        try:
            value = self._mail.received(rank)
        except (RuntimeError, EOFError) as error:
            raise self._lost(rank, error) from error
        if value[0] == "failed":
            if self._own_error is not None:
                raise self._own_error
            raise RankError(value[1])
        return value

    def _lost(self, rank: int | None, error: Exception) -> RankError:
        """The error for a rank that cannot be reached; another rank may know why."""
        which = "A rank" if rank is None else f"Rank {rank}"
        said = f"{which} has ended, or did not answer within the timeout of the process group ({error})."
        first, self._gone = not self._gone, self._gone | {rank}
        with suppress(RuntimeError):  # the store may be gone, too
            if self.leads and first:
                _store().set(_REASON, said)
            elif (
                not self.leads and "timed out" in str(error).lower()
            ):  # rank 0 may be about to find that another rank is gone
                _store().wait([_REASON], min(_PATIENCE, _store().timeout))
                said = _store().get(_REASON).decode()
        return RankError(said)


def timed(job: Job, part: Any) -> tuple[Any, float]:
    """What a job makes of a part, and the seconds that it took, its device included."""
    began = perf_counter()
    result = job.work(part)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return result, perf_counter() - began


def said_by(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".rstrip(".")


def _store() -> Any:
    """The store that the ranks met by, which is there while process groups may not be."""
    return dist.distributed_c10d._get_default_store()
