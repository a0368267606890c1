"""Linear parts of a drift whose exponential is known: diagonal, in Fourier space, or a matrix."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from picardsolve.problem.recurrence import matrix_recurrence, recurrence

Table: TypeAlias = Tensor  # functions of h L: (U, ...), one for each of U step lengths h; of rows: (*rows, ...)
_TERMS = 20  # of Taylor series within |z| < 1: the next is below 1e-19


class Linear(ABC):
    """The L of ``dy/dt = L y + N(t, y)``, on states of its own shape, with any dimensions before it.

    Tables hold functions of h L for many h; they are made in double precision.
    """

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse states of another shape.

        Raises:
            ValueError: naming both.
        """

    @abstractmethod
    def apply(self, y: Tensor) -> Tensor:
        """``L y`` of states ``(..., *shape)``."""

    @abstractmethod
    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """``phi_0(h L) = e^{h L}``, ..., ``phi_most(h L)`` with ``phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z``.

        Args:
            h: ``(U,)`` float64.
            most: at least 0.
            shape: of the states.
        """

    @abstractmethod
    def norm(self, table: Table) -> Tensor:
        """Largest factor by which the root mean square of a state grows, ``(U,)``."""

    @abstractmethod
    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """The sum of tables of rows times states ``(*rows, *shape)``."""

    @abstractmethod
    def recur(self, table: Table, c: Tensor) -> Tensor:
        """``d`` of ``d[j + 1] = table[j] d[j] + c[j]``, ``d[0] = 0``: ``d[1], ..., d[W]``.

        Args:
            table: of rows ``(W, B or 1)``.
            c: ``(W, B, *shape)``.
        """


@dataclass(frozen=True, eq=False)
class Diagonal(Linear):
    """Each number of a state by itself: ``(L y)_i = values_i y_i``; ``values`` of the state's shape."""

    values: Tensor

    def check(self, shape: tuple[int, ...]) -> None:
        """The same shape."""
        if tuple(self.values.shape) != shape:
            raise ValueError(
                f"linear: expected one value for each of the state's numbers, shape {shape}, or a square matrix for a "
                f"state of one dimension, got {tuple(self.values.shape)}."
            )

    def apply(self, y: Tensor) -> Tensor:
        """Elementwise."""
        return self.values.to(y) * y

    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """Elementwise."""
        return scalar_phi(h.reshape(-1, *[1] * self.values.dim()) * self.values.to("cpu", torch.float64), most)

    def norm(self, table: Table) -> Tensor:
        """The largest."""
        return table.abs().flatten(1).amax(-1)

    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """Elementwise."""
        return sum((table * y for table, y in terms[1:]), terms[0][0] * terms[0][1])

    def recur(self, table: Table, c: Tensor) -> Tensor:
        """Elementwise."""
        return recurrence(table.flatten(2), c.flatten(2)).reshape(c.shape)


@dataclass(frozen=True, eq=False)
class Fourier(Linear):
    """A differential operator with constant coefficients on a periodic grid: each Fourier mode times its symbol.

    ``-nu * k**2`` for diffusion, ``-1j * c * k`` for transport, ``-k**4`` ..., with
    ``k = 2 * torch.pi * torch.fft.fftfreq(n, length / n)`` for n points on an interval of that length.

    Args:
        symbol: of the shape of the grid, which is that of the state's last dimensions, in the order of
            `torch.fft.fftn`; real or complex, at -k the conjugate of what it is at k (so, real at the highest mode of
            an even number of points: set odd derivatives to 0 there).

    Raises:
        TypeError: it is no floating-point or complex tensor.
        ValueError: it has no dimension, or makes complex states of real ones.
    """

    symbol: Tensor
    _half: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        symbol = self.symbol
        if not isinstance(symbol, Tensor) or not (symbol.is_floating_point() or symbol.is_complex()):
            kind = symbol.dtype if isinstance(symbol, Tensor) else type(symbol).__name__
            raise TypeError(f"symbol: expected a floating-point or complex tensor, got {kind}; pass -nu * k**2.")
        if symbol.dim() == 0:
            raise ValueError("symbol: expected one value for each Fourier mode, got a single one; pass -nu * k**2.")
        dims = tuple(range(symbol.dim()))
        mirrored = symbol.flip(dims).roll([1] * symbol.dim(), dims).conj()
        if not torch.allclose(mirrored.resolve_conj(), symbol, rtol=1e-5, atol=1e-6 * float(symbol.abs().max())):
            raise ValueError(
                "symbol: expected at -k the conjugate of its value at k, in the order of torch.fft.fftfreq, got one "
                "that makes complex states of real ones; set odd derivatives to 0 at the highest mode."
            )
        half = symbol[..., : symbol.shape[-1] // 2 + 1].cpu()
        object.__setattr__(self, "_half", half.to(torch.complex128 if half.is_complex() else torch.float64))

    def check(self, shape: tuple[int, ...]) -> None:
        """The state's last dimensions."""
        if shape[-self.symbol.dim() :] != tuple(self.symbol.shape):
            raise ValueError(
                f"linear: expected a symbol of the shape of the state's last dimensions, got "
                f"{tuple(self.symbol.shape)} for states of shape {shape}; put the grid last."
            )

    def apply(self, y: Tensor) -> Tensor:
        """By a transform there and back."""
        return self._states(self._half.to(y.device, _like(self._half, y.dtype)) * self._modes(y))

    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """Of each mode."""
        return scalar_phi(h.reshape(-1, *[1] * len(shape)) * self._half, most)

    def norm(self, table: Table) -> Tensor:
        """The largest: modes are orthogonal."""
        return table.abs().flatten(1).amax(-1)

    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """All in Fourier space, and back."""
        parts = [table * self._modes(y) for table, y in terms]
        return self._states(sum(parts[1:], parts[0]))

    def recur(self, table: Table, c: Tensor) -> Tensor:
        """All in Fourier space, and back."""
        modes = self._modes(c)
        factor = table.expand(*table.shape[:2], *modes.shape[2:])
        if not factor.is_complex():  # of a real factor, a complex mode is two real ones
            factor = factor[..., None].expand(*factor.shape, 2)
            changes = recurrence(factor.flatten(2), torch.view_as_real(modes).flatten(2))
            return self._states(torch.view_as_complex(changes.reshape(*modes.shape, 2)))
        return self._states(recurrence(factor.flatten(2), modes.flatten(2)).reshape(modes.shape))

    def _modes(self, y: Tensor) -> Tensor:
        return torch.fft.rfftn(y, dim=self._dims)

    def _states(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=tuple(self.symbol.shape), dim=self._dims)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-self.symbol.dim(), 0))


@dataclass(frozen=True, eq=False)
class Matrix(Linear):
    """A matrix ``(D, D)`` on states of shape ``(D,)``, by `torch.linalg.matrix_exp`."""

    matrix: Tensor

    def check(self, shape: tuple[int, ...]) -> None:
        """One dimension, of the matrix's size."""
        if shape != (len(self.matrix),):
            raise ValueError(
                f"linear: expected a square matrix of the size of a state of one dimension, got "
                f"{tuple(self.matrix.shape)} for states of shape {shape}; pass picardsolve.Diagonal(values) if it "
                "holds one value for each of their numbers."
            )

    def apply(self, y: Tensor) -> Tensor:
        """Of each row."""
        return y @ self.matrix.T.to(y)

    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """The top row of the exponential of ``[[h L, I, 0], [0, 0, I], [0, 0, 0]]`` (Al-Mohy & Higham 2011)."""
        size, count = len(self.matrix), most + 1
        blocks = h.new_zeros(len(h), count * size, count * size)
        blocks[:, :size, :size] = h[:, None, None] * self.matrix.to("cpu", torch.float64)
        blocks[:, :-size, size:] += torch.eye(most * size, dtype=h.dtype)
        return list(torch.linalg.matrix_exp(blocks)[:, :size].split(size, -1))

    def norm(self, table: Table) -> Tensor:
        """The largest singular value."""
        return torch.linalg.matrix_norm(table, 2)

    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """Products with each row."""
        parts = [(table @ y[..., None])[..., 0] for table, y in terms]
        return sum(parts[1:], parts[0])

    def recur(self, table: Table, c: Tensor) -> Tensor:
        """Products with each row."""
        return matrix_recurrence(table.expand(*c.shape[:2], *table.shape[2:]), c)


def scalar_phi(z: Tensor, most: int) -> list[Tensor]:
    """``phi_0(z) = e^z`` to ``phi_most(z)``, elementwise, to a few units in the last place.

    By the recursion where it does not cancel, ``|z| >= 1``, by Taylor series elsewhere: see Kassam & Trefethen 2005.
    """
    small = z.abs() < 1
    near, far = torch.where(small, z, 0), torch.where(small, 1, z)
    found, term = [z.exp()], torch.ones_like(z)
    for k in range(most):
        series = sum(near**j / float(math.factorial(j + k + 1)) for j in range(_TERMS))
        term = ((far.exp() if k == 0 else term) - 1 / math.factorial(k)) / far
        found.append(torch.where(small, series, term))
    return found


def linear_of(given: object) -> Linear:
    """A user's linear part: a `Linear` as it is; a tensor, if square of two dimensions a matrix, else a diagonal.

    Raises:
        TypeError: it is neither.
        ValueError: it is not finite.
    """
    if isinstance(given, Linear):
        return given
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(
            f"linear: expected a floating-point tensor, diagonal or matrix, or picardsolve.Fourier(symbol), got {kind}."
        )
    if not bool(given.isfinite().all()):
        raise ValueError("linear: expected finite values, got NaN or infinity; check what computed it.")
    return Matrix(given) if given.dim() == 2 and given.shape[0] == given.shape[1] else Diagonal(given)


def _like(table: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a table for states of a dtype."""
    return dtype.to_complex() if table.is_complex() else dtype
