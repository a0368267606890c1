"""torchsde's objects in picardsolve."""

from integrations.torchsde.path import TorchsdePath

__all__ = ["TorchsdePath"]
