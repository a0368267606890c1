"""The allowed error of a state, and the forms in which users give it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.recurrence import rms
from picardsolve.problem.state import Layout, sorted_keys

Stop = Literal["error", "residual", "increment"]

_TINY = 1e-30  # weights of at least this size are normal numbers in every dtype of states


@dataclass(frozen=True)
class Tolerance:
    """The unit in which changes and errors of states are measured, as a root mean square over the state.

    Each field is a number, or a tensor of shape ``(B,)`` with one value per sample. ``atol`` and ``rtol`` may also be
    ``(1, D)`` or ``(B, D)``, with one value per element of a state.

    Args:
        atol: absolute tolerance.
        rtol: tolerance relative to the size of each element of the state.
        noise: tolerance relative to the noise scale of a step (`Steps.noise_scale`). In a solve this scale is the
            standard deviation of the noise that the step adds (Shih et al. 2023, section 3.2); for a pipeline's
            scheduler, the size of the state.
        state: tolerance relative to the root mean square of the whole state.
    """

    atol: float | Tensor = 0.0
    rtol: float | Tensor = 0.0
    noise: float | Tensor = 0.0
    state: float | Tensor = 0.0

    @property
    def nothing(self) -> bool:
        """Whether the tolerance is 0, so that no change is allowed."""
        return all(map(_is_zero, (self.rtol, self.atol, self.noise, self.state)))

    def scaled(self, factor: float | Tensor) -> "Tolerance":
        """The tolerance times a number, or times one number per sample."""
        given = self.atol, self.rtol, self.noise, self.state
        return Tolerance(*(value if _is_zero(value) else _times(value, factor) for value in given))

    @property
    def smallest(self) -> float:
        """The smallest relative tolerance of any sample; a sample without one counts with its absolute tolerance."""
        rtol, state, atol = (torch.as_tensor(_column(value)) for value in (self.rtol, self.state, self.atol))
        relative = rtol + state
        return float(torch.where(relative > 0, relative, atol).min())

    def size(self, y: Tensor) -> Tensor:
        """The allowed root mean square error of states ``(..., D)``, without the part relative to noise."""
        if not (_has_elements(self.rtol) or _has_elements(self.atol)):
            return rms(y) * (self.rtol + self.state) + self.atol
        return rms(y.abs() * _column(self.rtol) + _column(self.atol)) + rms(y) * self.state

    def measure(self, change: Tensor, y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Measure changes in units of the tolerance.

        Args:
            change: ``(W, B, D)``.
            y: the states that changed, ``(W, B, D)``.
            noise: standard deviation of the step's noise, ``(W, B)``; None without noise.

        Returns:
            The size of each change in units of the tolerance, and its root mean square, both ``(W, B)``. Where the
                tolerance is 0, the first is 0 without a change, and infinite otherwise.
        """
        norms = [norm.cpu().numpy() for norm in self.norms(change, y, noise)]
        scaled, size = (
            torch.from_numpy(found.astype(norms[0].dtype)) for found in self.in_units(norms, noise, change.shape[-1])
        )
        return scaled.to(change.device), size.to(change.device)

    def norms(self, change: Tensor, y: Tensor, noise: Tensor | None) -> list[Tensor]:
        """What changes are measured by, as tensors ``(W, B)`` for `in_units`; arguments as for `measure`."""
        length = torch.linalg.vector_norm(change, dim=-1)
        if self.nothing:
            return [_any(change), length]  # from the elements, because the squares in the length may underflow
        if self._by_elements(noise):  # the squares of changes may underflow
            return [self._by_element(change, y, noise), length]
        found = [length] if _is_zero(self.state) else [length, torch.linalg.vector_norm(y, dim=-1)]
        if noise is not None and not _is_zero(self.noise):
            found.append(noise.expand(length.shape))
        return [*found, _any(change)] if self._of_samples else found

    @np.errstate(all="ignore")
    def in_units(
        self, norms: Sequence[np.ndarray], noise: Tensor | None, numbers: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The result of `measure` from the norms on the host, of states of so many numbers; ``noise`` as there."""
        root = numbers**-0.5
        if self.nothing or self._by_elements(noise):
            return norms[0], norms[1] * root
        allowed, of_noise, of_state = self._on_host
        size, *more = norms
        size, parts = size * root, iter(more)
        allowed = allowed if _is_zero(self.state) else allowed + of_state * root * next(parts)
        allowed = allowed if noise is None or _is_zero(self.noise) else allowed + of_noise * next(parts)
        scaled = np.where(size == 0, 0, size / allowed)
        return (np.where(allowed > 0, scaled, next(parts)) if self._of_samples else scaled), size

    def _by_elements(self, noise: Tensor | None) -> bool:
        """Whether changes are divided element by element."""
        relative = not (_is_zero(self.state) and (noise is None or _is_zero(self.noise)))
        return not relative or not _is_zero(self.rtol) or _has_elements(self.atol)

    @cached_property
    def _on_host(self) -> list[float | np.ndarray]:
        given = self.atol, self.noise, self.state
        return [value.cpu().numpy() if isinstance(value, Tensor) else value for value in given]

    @property
    def _of_samples(self) -> bool:
        """Whether samples have tolerances of their own."""
        return any(isinstance(value, Tensor) for value in (self.atol, self.noise, self.state))

    def within(self, change: Tensor, y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Whether each change is within the tolerance, and its root mean square, both ``(W, B)``; see `measure`."""
        scaled, size = self.measure(change, y, noise)
        return scaled <= 1, size

    def _by_element(self, change: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        weights = y.abs()
        if isinstance(self.rtol, Tensor) or isinstance(self.atol, Tensor):
            weights.mul_(_column(self.rtol)).add_(_column(self.atol))
        else:
            torch.add(torch.tensor(self.atol, dtype=y.dtype), weights, alpha=self.rtol, out=weights)
        if noise is not None and not _is_zero(self.noise):
            weights += (self.noise * noise)[..., None]
        if isinstance(self.atol, Tensor) or self.atol < _TINY:
            weights.clamp_(min=torch.finfo(y.dtype).tiny)
        return rms(torch.div(change, weights, out=weights))


def read_tolerance(name: str, value: Any, layout: Layout, by_component: bool) -> float | Tensor:
    """Convert a user's tolerance to a field of `Tolerance`: a number, ``(B,)``, or ``(1, D)`` or ``(B, D)``.

    Args:
        name: the argument's name in messages.
        value: a number, or a tensor ``(B,)``. With ``by_component`` also a tensor of the state's shape, with or without
            the samples, or any of these in the structure of y0.
        layout: layout of the state.
        by_component: whether components may have different tolerances.

    Raises:
        TypeError: the value is not a number, a real tensor, or a structure of these.
        ValueError: the value has another shape or structure than y0, or is negative or NaN.
    """
    if isinstance(value, Tensor) and value.dim():
        out = _read_tensor(name, value, layout, by_component)
    elif by_component and isinstance(value, tuple | list | dict):
        out = _read_structure(name, value, layout)
    elif isinstance(value, int | float | Tensor) and not isinstance(value, bool):
        out = float(value)
    else:
        raise TypeError(f"{name}: expected a number or a tensor of one per sample, got {value!r}.")
    if not bool((torch.as_tensor(out) >= 0).all()):
        raise ValueError(f"{name}: expected values >= 0, got {value!r}; 0 asks for the sequential answer itself.")
    return out


def _read_tensor(name: str, value: Tensor, layout: Layout, by_component: bool) -> Tensor:
    _check_real(name, value)
    shape, rows = tuple(value.shape), ((1, layout.size), (layout.batch, layout.size))
    if shape != (layout.batch,) and not (by_component and shape in rows):
        if not by_component or not layout.structure.is_leaf():
            parts = f", or {layout.structure.num_leaves} of them in the structure of y0" if by_component else ""
            raise ValueError(f"{name}: expected a number or shape ({layout.batch},){parts}, got {shape}.")
        value = _rows_of_leaf(name, value, layout, layout.shapes[0])
    return value.to(layout.device, layout.compute_dtype)


def _read_structure(name: str, value: Any, layout: Layout) -> Tensor:
    leaves, structure = pytree.tree_flatten(sorted_keys(value))
    if structure != layout.structure:
        raise ValueError(
            f"{name}: expected a number, a tensor, or the structure of y0, got a {type(value).__name__} of "
            f"{len(leaves)}; put a number or a tensor in the place of each of its tensors."
        )
    parts = [_rows_of_leaf(name, leaf, layout, shape) for leaf, shape in zip(leaves, layout.shapes, strict=True)]
    rows = max(len(part) for part in parts)
    alike = [part.expand(rows, -1).to(layout.device, layout.compute_dtype) for part in parts]  # numbers are on the host
    return torch.cat(alike, 1)


def _rows_of_leaf(name: str, value: Any, layout: Layout, shape: torch.Size) -> Tensor:
    """The tolerances of one tensor of the state, ``(1 or B, elements)``."""
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        raise TypeError(f"{name}: expected numbers or tensors, got {value!r}.")
    value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    _check_real(name, value)
    got, batch = tuple(value.shape), layout.batch
    if got == () or (layout.batched and got == (batch,)):
        out = value.reshape(-1, 1).expand(-1, shape.numel())
    elif got in ((batch, *shape), (1, *shape)) if layout.batched else got == tuple(shape):
        out = value.reshape(-1, shape.numel())
    else:
        one, each = (f"({batch},)", (batch, *shape)) if layout.batched else ("(1,)", tuple(shape))
        of_one = " (or 1 in place of the number of samples)" if layout.batched else ""
        raise ValueError(
            f"{name}: expected a number, shape {one}, or one for each component, {each}{of_one}, got {got}."
        )
    return out.repeat_interleave(2, 1) if layout.dtype.is_complex else out


def _check_real(name: str, value: Tensor) -> None:
    if value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}.")


def _any(change: Tensor) -> Tensor:
    """Infinity where any element changes, otherwise 0."""
    return torch.where(change.abs().amax(-1) == 0, 0.0, torch.inf).to(change.dtype)


def _is_zero(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _has_elements(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def _times(value: float | Tensor, factor: float | Tensor) -> float | Tensor:
    return value * (_column(factor) if _has_elements(value) else factor)


def _column(value: float | Tensor) -> float | Tensor:
    """A value per sample as a column, which broadcasts over the elements of states."""
    return value[:, None] if isinstance(value, Tensor) and value.dim() == 1 else value
