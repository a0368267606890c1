"""torchsde's objects in picardsolve."""

from integrations.torchsde.objects import sdeint
from integrations.torchsde.path import TorchsdePath

__all__ = ["TorchsdePath", "sdeint"]
