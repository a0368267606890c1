"""The adaptive method that is fastest here: collocation, or steps one after the other, by what calls cost."""

from picardsolve.adaptive.method import Adaptive

__all__ = ["Adaptive"]
