"""Linear parts of a drift whose exponential is known: diagonal, diagonal in Fourier space, or a matrix."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from picardsolve.problem.recurrence import matrix_recurrence, recurrence

Table: TypeAlias = Tensor  # functions of h L: (U, ...), one for each of U step lengths h; of rows: (*rows, ...)
_TERMS = 20  # terms of Taylor series for |z| < 1: the next one is below 1e-19


class Linear(ABC):
    """The L of ``dy/dt = L y + N(t, y)``. It acts on states ``(..., *shape)``.

    Tables hold functions of h L for several h. They are computed in double precision.
    """

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse states of another shape.

        Raises:
            ValueError: the message names both shapes.
        """

    @abstractmethod
    def apply(self, y: Tensor) -> Tensor:
        """``L y`` for states ``(..., *shape)``."""

    @abstractmethod
    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """``phi_0(h L) = e^{h L}``, ..., ``phi_most(h L)`` with ``phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z``.

        Args:
            h: ``(U,)`` float64.
            most: at least 0.
            shape: shape of a state.
        """

    @abstractmethod
    def norm(self, table: Table) -> Tensor:
        """The largest factor by which the root mean square of a state grows, ``(U,)``."""

    @abstractmethod
    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """The sum of tables of rows times states ``(*rows, *shape)``."""

    @abstractmethod
    def recur(self, table: Table, c: Tensor) -> Tensor:
        """Solve ``d[j + 1] = table[j] d[j] + c[j]`` from ``d[0] = 0`` for ``d[1], ..., d[W]``.

        Args:
            table: of rows ``(W, B or 1)``.
            c: ``(W, B, *shape)``.
        """


class _Elementwise(Linear):
    """A linear part that multiplies each mode of a state by a number; Diagonal has the state's elements as modes."""

    _symbol: Tensor  # on the CPU in double precision, of the shape of the modes or of their last dimensions

    @abstractmethod
    def _modes(self, y: Tensor) -> Tensor:
        """The modes of states."""

    @abstractmethod
    def _states(self, modes: Tensor) -> Tensor:
        """The states that have these modes."""

    def phi(self, h: Tensor, most: int, shape: tuple[int, ...]) -> list[Table]:
        """The functions of h times each mode's number."""
        return scalar_phi(h.reshape(-1, *[1] * len(shape)) * self._symbol, most)

    def norm(self, table: Table) -> Tensor:
        """The largest absolute value: modes are orthogonal."""
        return table.abs().flatten(1).amax(-1)

    def combined(self, terms: Sequence[tuple[Table, Tensor]]) -> Tensor:
        """The sum over modes."""
        parts = [table * self._modes(y) for table, y in terms]
        return self._states(sum(parts[1:], parts[0]))

    def recur(self, table: Table, c: Tensor) -> Tensor:
        """One recurrence for each mode."""
        modes = self._modes(c)
        factor = table.expand(*table.shape[:2], *modes.shape[2:])
        if modes.is_complex() and not factor.is_complex():  # for a real factor, a complex mode is two real ones
            factor = factor[..., None].expand(*factor.shape, 2)
            changes = recurrence(factor.flatten(2), torch.view_as_real(modes).flatten(2))
            return self._states(torch.view_as_complex(changes.reshape(*modes.shape, 2)))
        return self._states(recurrence(factor.flatten(2), modes.flatten(2)).reshape(modes.shape))


@dataclass(frozen=True, eq=False)
class Diagonal(_Elementwise):
    """A linear part that multiplies each number of a state by its own rate, ``(L y)_i = values_i y_i``.

        term = ps.SemilinearODE(ps.Diagonal(torch.tensor([-1.0, -1000.0])), lambda t, y: y.sin())

    Args:
        values: of the shape of a state.
    """

    values: Tensor

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse all shapes but that of the values."""
        if tuple(self.values.shape) != shape:
            raise ValueError(
                f"linear: expected one value for each of the state's numbers, shape {shape}, or a square matrix for a "
                f"state of one dimension, got {tuple(self.values.shape)}."
            )

    def apply(self, y: Tensor) -> Tensor:
        """The values times the states."""
        return self.values.to(y) * y

    @property
    def _symbol(self) -> Tensor:
        return self.values.to("cpu", torch.float64)

    def _modes(self, y: Tensor) -> Tensor:
        return y

    def _states(self, modes: Tensor) -> Tensor:
        return modes


@dataclass(frozen=True, eq=False)
class Fourier(_Elementwise):
    """A differential operator with constant coefficients on a periodic grid; it multiplies each mode by its symbol.

        k = 2 * torch.pi * torch.fft.fftfreq(n, length / n)  # n points on a periodic interval
        diffusion, transport = ps.Fourier(-nu * k**2), ps.Fourier(-1j * c * k)

    Args:
        symbol: one number for each mode, in the order of `torch.fft.fftn`. Its shape is that of the grid, which is the
            last dimensions of the state. It is real or complex. Its value at -k is the conjugate of that at k, so it is
            real at the highest mode of an even number of points: set odd derivatives to 0 there.

    Raises:
        TypeError: the symbol is no floating-point or complex tensor.
        ValueError: the symbol has no dimension, or makes complex states of real ones.
    """

    symbol: Tensor
    _symbol: Tensor = field(init=False, repr=False)  # the half of it that real states need

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
        object.__setattr__(self, "_symbol", half.to(torch.complex128 if half.is_complex() else torch.float64))

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse states whose last dimensions are not the grid's."""
        if shape[-self.symbol.dim() :] != tuple(self.symbol.shape):
            raise ValueError(
                f"linear: expected a symbol of the shape of the state's last dimensions, got "
                f"{tuple(self.symbol.shape)} for states of shape {shape}; put the grid last."
            )

    def apply(self, y: Tensor) -> Tensor:
        """The symbol times the modes."""
        dtype = y.dtype.to_complex() if self._symbol.is_complex() else y.dtype
        return self._states(self._symbol.to(y.device, dtype) * self._modes(y))

    def _modes(self, y: Tensor) -> Tensor:
        return torch.fft.rfftn(y, dim=self._dims)

    def _states(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=tuple(self.symbol.shape), dim=self._dims)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-self.symbol.dim(), 0))


@dataclass(frozen=True, eq=False)
class Matrix(Linear):
    """A matrix ``(D, D)`` on states of shape ``(D,)``; its exponential is `torch.linalg.matrix_exp`."""

    matrix: Tensor

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse states other than vectors of the matrix's size."""
        if shape != (len(self.matrix),):
            raise ValueError(
                f"linear: expected a square matrix of the size of a state of one dimension, got "
                f"{tuple(self.matrix.shape)} for states of shape {shape}; pass picardsolve.Diagonal(values) if it "
                "holds one value for each of their numbers."
            )

    def apply(self, y: Tensor) -> Tensor:
        """The matrix times each state."""
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
        """The sum of products of matrices and states."""
        parts = [(table @ y[..., None])[..., 0] for table, y in terms]
        return sum(parts[1:], parts[0])

    def recur(self, table: Table, c: Tensor) -> Tensor:
        """One recurrence with matrices."""
        return matrix_recurrence(table.expand(*c.shape[:2], *table.shape[2:]), c)


def scalar_phi(z: Tensor, most: int) -> list[Tensor]:
    """``phi_0(z) = e^z`` to ``phi_most(z)``, elementwise, to a few units in the last place.

    The recursion is used where it does not cancel, ``|z| >= 1``, and Taylor series elsewhere (Kassam & Trefethen 2005).
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
    """A user's linear part: a `Linear` as it is, a square tensor of two dimensions as a matrix, another as a diagonal.

    Raises:
        TypeError: it is neither a `Linear` nor a floating-point tensor.
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
