"""Collocation nodes on [0, 1], and the matrices that integrate, interpolate and check values at them."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.polynomial import legendre

Kind = Literal["radau", "lobatto", "chebyshev"]


@dataclass(frozen=True)
class Nodes:
    """``n`` points in [0, 1]. The last is 1; for "lobatto" and "chebyshev" the first is 0.

    Attributes:
        kind: "radau": zeros of ``P_n - P_(n-1)``, right end included (Radau IIA of order ``2 n - 1``). "lobatto": both
            ends and the zeros of ``P'_(n-1)`` (Lobatto IIIA). "chebyshev": both ends and the extrema of ``T_(n-1)``.
        n: the number of points.
    """

    kind: Kind
    n: int

    @cached_property
    def c(self) -> np.ndarray:
        """The points, ``(n,)``."""
        if self.kind == "chebyshev":
            return (1 - np.cos(np.pi * np.arange(self.n) / (self.n - 1))) / 2
        top = legendre.Legendre.basis(self.n - 1)
        if self.kind == "lobatto":
            inner = _polished(top.deriv())
            return np.r_[0.0, (1 + inner) / 2, 1.0]
        inner = _polished(legendre.Legendre.basis(self.n) - top)[:-1]
        return np.r_[(1 + inner) / 2, 1.0]

    @cached_property
    def integrate(self) -> np.ndarray:
        """``(n, n)``: integrals from 0 to each node of the polynomial through values at the nodes."""
        return _integrals(self.c, self.c)

    @cached_property
    def twice(self) -> np.ndarray:
        """``(n, n)``: integrals of integrals."""
        return self.integrate @ self.integrate

    @cached_property
    def points(self) -> np.ndarray:
        """The start and the nodes, which the solution's polynomial goes through, ``(n or n + 1,)``."""
        return self.c if self.c[0] == 0 else np.r_[0.0, self.c]

    @cached_property
    def last_terms(self) -> np.ndarray:
        """``(2, points)``: the two highest Legendre coefficients of the polynomial through the points."""
        return np.linalg.inv(legendre.legvander(2 * self.points - 1, len(self.points) - 1))[-2:]

    @cached_property
    def check(self) -> np.ndarray:
        """The points of the check: one more Gauss point than there are nodes, ``(n + 1,)``."""
        return (1 + legendre.leggauss(self.n + 1)[0]) / 2

    @cached_property
    def to_check(self) -> np.ndarray:
        """``(n + 1, points)``: interpolation from the points to those of the check."""
        return self.interpolate(self.check)

    @cached_property
    def integrate_check(self) -> np.ndarray:
        """``(n, n + 1)``: integrals from 0 to each node of the polynomial through values at the check."""
        return _integrals(self.check, self.c)

    @cached_property
    def _weights(self) -> np.ndarray:
        return _barycentric(self.points)

    def interpolate(self, x: np.ndarray) -> np.ndarray:
        """``(*x.shape, points)``: interpolation from the points to ``x`` (Berrut & Trefethen 2004, eq. 4.2)."""
        return _interpolation(self.points, self._weights, x)

    def extrapolate(self, x: np.ndarray, count: int) -> np.ndarray:
        """``(*x.shape, count)``: extrapolation from the last ``count`` points, stabler than from all."""
        few = self.points[-count:]
        return _interpolation(few, _barycentric(few), x)


@lru_cache
def nodes(kind: Kind, n: int) -> Nodes:
    """The nodes of a kind; their matrices are computed once."""
    return Nodes(kind, n)


def _polished(polynomial: legendre.Legendre) -> np.ndarray:
    """Roots in [-1, 1] in order, to the last bits."""
    x, slope = np.sort(polynomial.roots().real), polynomial.deriv()
    for _ in range(3):
        x = x - polynomial(x) / slope(x)
    return x


def _integrals(known: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """``(ends, known)``: integrals from 0 to each end of the polynomial through values at ``known``, all in [0, 1]."""
    n, x = len(known), 2 * ends - 1
    each = [legendre.legval(x, legendre.legint(row, lbnd=-1)) for row in np.eye(n)]
    return np.stack(each, 1) @ np.linalg.inv(legendre.legvander(2 * known - 1, n - 1)) / 2


def _barycentric(points: np.ndarray) -> np.ndarray:
    differences = 4 * (points[:, None] - points)
    np.fill_diagonal(differences, 1)
    return 1 / differences.prod(1)


def _interpolation(points: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    distance = x[..., None] - points
    hit = distance == 0
    terms = weights / np.where(hit, 1, distance)
    matrix = terms / terms.sum(-1, keepdims=True)
    return np.where(hit.any(-1, keepdims=True), hit, matrix)
