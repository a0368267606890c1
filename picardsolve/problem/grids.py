"""Time grids ``ts``: float64 tensors of shape ``(N + 1,)`` on the CPU, increasing or decreasing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from picardsolve.problem.parameters import recordable
from picardsolve.problem.schedules import Schedule


def uniform(t0: float, t1: float, steps: int) -> Tensor:
    """A grid of ``steps`` equal steps from ``t0`` to ``t1``, such as ``ps.grids.uniform(0.0, 1.0, 100)``.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: ``steps`` is below 1, or both times are the same.
    """
    _check_steps(steps)
    if t0 == t1:
        raise ValueError(f"t0, t1: expected two times that differ, got {t0!r} twice.")
    return given(torch.linspace(t0, t1, steps + 1, dtype=torch.float64))


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> Tensor:
    """A grid of noise levels for the `EDM` schedule, whose time is sigma (Karras et al. 2022, eq. 5).

        ts = ps.grids.karras(sigma_max=80.0, sigma_min=0.002, steps=40)

    Args:
        sigma_max: first noise level.
        sigma_min: last positive noise level, below ``sigma_max``.
        steps: number of steps; the last one goes from ``sigma_min`` to 0.
        rho: how strongly the grid is refined towards small noise.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: an argument has a wrong value.
    """
    _check_steps(steps)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
    if not rho > 0:
        raise ValueError(f"rho: expected a positive number, got {rho!r}.")
    ramp = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return given(torch.cat([sigmas, sigmas.new_zeros(1)]))


def log_snr(schedule: Schedule, t0: float, t1: float, steps: int) -> Tensor:
    """A grid from ``t0`` to ``t1`` with equal steps in ``log(alpha / sigma)`` (Lu et al. 2022, section 3.3).

        ts = ps.grids.log_snr(ps.schedules.Flow(), 0.999, 0.001, steps=50)

    Both ends must have a finite log-SNR. End at a small time, and append the clean end if it is wanted.

    Raises:
        TypeError: ``schedule`` is no `Schedule`, or ``steps`` no integer.
        ValueError: the log-SNR is infinite at an end, or ``steps`` is below 1.
    """
    _check_steps(steps)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected an instance such as VP(alpha_bar), got {schedule!r}.")
    ends = torch.tensor([t0, t1], dtype=torch.float64)
    levels = schedule.log_snr(ends)
    if not bool(torch.isfinite(levels).all()):
        raise ValueError(f"t0, t1: log-SNR must be finite at both ends, got {levels.tolist()} at {ends.tolist()}.")
    targets = torch.lerp(levels[0], levels[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    sign = torch.sign(levels[1] - levels[0])
    before, after = ends[:1].expand(steps + 1).clone(), ends[1:].expand(steps + 1).clone()
    for _ in range(64):  # halvings: more than a float64 number has bits
        middle = (before + after) / 2
        early = sign * (schedule.log_snr(middle) - targets) < 0
        before, after = torch.where(early, middle, before), torch.where(early, after, middle)
    return given(torch.cat([ends[:1], ((before + after) / 2)[1:-1], ends[1:]]))


def given(ts: Tensor | Sequence[float]) -> Tensor:
    """A user's grid as float64 on the CPU: shape ``(N + 1,)`` with N >= 1, finite, strictly monotonic.

    Raises:
        TypeError: it is no tensor or sequence of real numbers.
        ValueError: it has another shape, or its times are not finite or not in order.
    """
    try:
        grid = recordable(ts.detach()) if isinstance(ts, Tensor) else torch.as_tensor(ts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"ts: expected a tensor or a sequence of times, got {type(ts).__name__}.") from error
    if grid.is_complex():
        raise TypeError("ts: expected real times, got complex ones.")
    grid = grid.to("cpu", torch.float64)
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(f"ts: expected shape (N + 1,) with at least two times, got {tuple(grid.shape)}.")
    if not bool(torch.isfinite(grid).all()):
        raise ValueError("ts: expected finite times, got NaN or infinity; check the grid's end points.")
    steps = grid.diff()
    if not bool((steps > 0).all() or (steps < 0).all()):
        raise ValueError("ts: expected strictly increasing or strictly decreasing times; sort them and drop repeats.")
    return grid


def per_sample(ts: Tensor, batch: int) -> Tensor:
    """Times of each sample, ``(T, B)``, where every column is a grid as in `given`."""
    if ts.shape[1] != batch:
        raise ValueError(f"ts: expected a column for each of {batch} samples, got shape {tuple(ts.shape)}.")
    return torch.stack([given(column) for column in ts.unbind(1)], 1)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps: expected an integer, got {steps!r}.")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
