"""The clock that methods are chosen by."""

from time import perf_counter

import torch


def seconds() -> float:
    """Seconds of a clock; always 0 where torch is asked for deterministic algorithms: then no time decides anything."""
    return 0.0 if torch.are_deterministic_algorithms_enabled() else perf_counter()
