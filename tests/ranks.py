"""Real processes that form a process group on gloo, each with a limit of time: no hang of theirs outlives a test."""

import multiprocessing
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

_CONTEXT = multiprocessing.get_context("forkserver")
_HEAVY = [
    name for name in sys.modules if name.startswith(("diffusers.", "transformers.models."))
]  # where pipelines are
_HEAVY = ("diffusers.", "transformers.models.")  # imported once for all ranks, where the test needs them


def run(work, folder, *args, ranks=2, shape=None, names=None, patience=20.0, limit=250.0):
    """What ``work(mesh, *args)`` returns or raises on every rank: ``(value, error, seconds)``; None for one that died.

    Args:
        work: a function of a module; its mesh has the given shape and names.
        folder: an empty one.
        patience: the timeout of the process group.
        limit: seconds after which what is still running is killed.
    """
    heavy = [name for name in sys.modules if name.startswith(_HEAVY)]
    _CONTEXT.set_forkserver_preload(["torch", "picardsolve", *heavy])
    shape = shape or (ranks,)
    given = work, str(folder), args, ranks, shape, names, patience, limit
    children = [_CONTEXT.Process(target=_rank, args=(rank, *given), daemon=True) for rank in range(ranks)]
    found = [Path(folder) / f"{rank}.pt" for rank in range(ranks)]
    ends = time.monotonic() + limit
    try:
        for child in children:
            child.start()
        while time.monotonic() < ends and any(
            child.is_alive() and not path.exists() for child, path in zip(children, found, strict=True)
        ):
            time.sleep(0.02)
    finally:
        for child in children:
            child.kill()
            child.join()
    return [torch.load(path, weights_only=False) if path.exists() else None for path in found]


def _rank(rank, work, folder, args, ranks, shape, names, patience, limit):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=timedelta(seconds=patience))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    began, value, error = time.monotonic(), None, None
    try:
        value = work(mesh, *args)
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}", getattr(raised, "solution", None)
    torch.save((value, error, time.monotonic() - began), f"{folder}/{rank}.part")
    Path(f"{folder}/{rank}.part").rename(f"{folder}/{rank}.pt")
    time.sleep(limit)  # a process that ends is an error of its own to those that wait for it: the test ends all
