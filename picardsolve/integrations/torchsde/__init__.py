"""torchsde's objects in picardsolve."""

from picardsolve.integrations.torchsde.objects import sdeint
from picardsolve.integrations.torchsde.path import TorchsdePath

__all__ = ["TorchsdePath", "sdeint"]
