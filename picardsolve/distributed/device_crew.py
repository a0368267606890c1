"""Several devices of one process as a crew: a copy of the model and a thread for each, kept for the next solve."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.distributed.replicas import Replicas
from picardsolve.distributed.shares import Shares
from picardsolve.problem.crew import Crew, Job

Outcome = TypeVar("Outcome")


class Worker:
    """A device with its thread and its copies of functions."""

    _made: dict[tuple[torch.device, int], "Worker"] = {}  # noqa: RUF012 - kept for the life of the process
    _lock = Lock()

    def __init__(self, device: torch.device, number: int):
        self.device, self.replicas = device, Replicas(device)
        self.thread = ThreadPoolExecutor(1, f"picardsolve-{device}-{number}")

    @classmethod
    def of(cls, device: torch.device, number: int) -> "Worker":
        """The worker of the ``number``-th mention of a device."""
        with cls._lock:
            return cls._made.setdefault((device, number), cls(device, number))


class DeviceCrew(Crew):
    """Devices of this process.

    Args:
        devices: of the workers. A device that is named twice has two copies of the model.
        home: where the solve is; the first worker there uses the model itself.

    Raises:
        TypeError: ``devices`` is no list of devices.
        ValueError: it is empty, or there is no such device.
    """

    def __init__(self, devices: Sequence[Any], home: torch.device):
        named = [_device(device) for device in _listed(devices)]
        self._home = home
        self._workers = [Worker.of(device, named[:k].count(device)) for k, device in enumerate(named)]
        self._at_home = next((k for k, worker in enumerate(self._workers) if worker.device == home), None)
        self.workers, self.notes = len(named), []
        self._shares = Shares.of(self.workers)
        self._originals: list[Job] = []
        self._jobs: list[list[Job | None]] = []  # by number and worker; copies are made when they are first needed

    def enlist(self, job: Job) -> int:
        """Make a job known; its copies are made when rows are first shared."""
        self._jobs.append([job if k == self._at_home else None for k in range(self.workers)])
        self._originals.append(job)
        return len(self._jobs) - 1

    def shares(self, rows: int, unit: int = 1) -> list[int]:
        """How many rows each worker gets."""
        return self._shares.of_rows(rows, unit)

    def together(self, lead: Callable[[], Outcome], settings: Mapping[str, Any], *reach: Any) -> Outcome:
        """What ``lead`` returns: there is one process."""
        return lead()

    def run(self, number: int, parts: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """The results of a job, on the solve's device; rows of a worker that fails are done by another one.

        Raises:
            Exception: what the last worker raised that was left to try.
        """
        context = _Context.here(self._home)
        asked = [(k, part) for k, part in enumerate(parts) if part is not None]
        futures = [(k, part, self._start(k, number, part, context)) for k, part in asked]
        results: list[Any] = [None] * self.workers
        seconds: list[float | None] = [None] * self.workers
        failed: list[tuple[int, Any, Exception]] = []
        for k, part, future in futures:
            try:
                results[k], seconds[k] = future.result()
            except Exception as error:
                failed.append((k, part, error))
        for k, part, error in failed:
            results[k] = self._by_another(k, number, part, error, context)
        self._shares.note(rows, seconds)
        return results

    def _start(self, k: int, number: int, part: Any, context: "_Context") -> Future[Any]:
        worker, job = self._workers[k], self._jobs[number][k]
        if job is None:  # here, because an error of this is none of the worker
            job = self._jobs[number][k] = self._originals[number].on(worker.device, worker.replicas.of)
        return worker.thread.submit(self._work, worker, job, part, context)

    def _work(self, worker: Worker, job: Job, part: Any, context: "_Context") -> tuple[Any, float]:
        """In the thread of a worker: its result, where the solve is, and the seconds it took."""
        with context:
            began = perf_counter()
            result = _moved(job.work(_moved(part, worker.device)), self._home)
            if worker.device.type == "cuda":
                torch.cuda.current_stream(worker.device).synchronize()
            return result, perf_counter() - began

    def _by_another(self, k: int, number: int, part: Any, error: Exception, context: "_Context") -> Any:
        """The result of a worker's part by one that has not failed; the worker gets no more rows if that goes well."""
        others = [other for other in range(self.workers) if other != k and other not in self._shares.out]
        for other in others:
            try:
                result, _ = self._start(other, number, part, context).result()
            except Exception:  # so it is the function that fails, and the first error says how
                continue
            self._shares.drop(k)
            said = f"{type(error).__name__}: {error}".rstrip(".")
            self.notes.append(f"{self._workers[k].device} failed ({said}): its rows were evaluated on the others.")
            return result
        raise error


class _Context:
    """The modes of torch that belong to a thread, as they are where a round is asked for."""

    def __init__(self, device: torch.device, grad: bool, inference: bool, autocast: Any):
        self._device, self._grad, self._inference, self._autocast = device, grad, inference, autocast

    @staticmethod
    def here(device: torch.device) -> "_Context":
        """Those of this thread."""
        kind = device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return _Context(device, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)

    def __enter__(self) -> None:
        self._modes = [torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad)]
        if self._autocast is not None:
            self._modes.append(torch.autocast(self._device.type, self._autocast))
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def _moved(value: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def _listed(devices: Any) -> list[Any]:
    if not isinstance(devices, list | tuple):
        raise TypeError(f'devices: expected a list such as ["cuda:0", "cuda:1"], got {devices!r}.')
    if not devices:
        raise ValueError("devices: expected at least one, got an empty list; leave it out for the device of y0.")
    return list(devices)


def _device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"devices: there is no {device!r} here ({error}); leave it out.") from None
    return torch.device(found.type, torch.cuda.current_device()) if str(found) == "cuda" else found
