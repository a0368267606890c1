"""A window's rows spread over devices: the ranks of a `torch.distributed` mesh, or the devices of one process."""

from picardsolve.distributed.errors import RankError

__all__ = ["RankError"]
