"""What a denoiser or a scheduler remembers: seen, compared, copied and put back."""

from picardsolve.integrations.diffusers.mutable_state.copies import independent
from picardsolve.integrations.diffusers.mutable_state.denoisers import MemoryLost, Watch, WatchedDenoiser
from picardsolve.integrations.diffusers.mutable_state.reachable import immutable, trusted
from picardsolve.integrations.diffusers.mutable_state.snapshot import Snapshot, random_generators
from picardsolve.integrations.diffusers.mutable_state.tensors import equal, version

__all__ = [
    "MemoryLost",
    "Snapshot",
    "Watch",
    "WatchedDenoiser",
    "equal",
    "immutable",
    "independent",
    "random_generators",
    "trusted",
    "version",
]
