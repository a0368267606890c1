"""Adaptive steps of embedded Runge-Kutta pairs, batched, with a length of its own for every sample."""

from picardsolve.embedded.methods import Dopri5, Dopri8, EmbeddedMethod, Tsit5

__all__ = ["Dopri5", "Dopri8", "EmbeddedMethod", "Tsit5"]
