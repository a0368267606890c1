"""The same as `picardsolve.integrations.torchsde`, under a shorter name."""

from picardsolve.integrations.torchsde import TorchsdePath, sdeint

__all__ = ["TorchsdePath", "sdeint"]
