"""Parareal: its hyperparameters, and the steps where cores start."""

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

from torch import Tensor

from picardsolve.baselines.wavefront import Wavefront
from picardsolve.fixed_point.iterations import Method
from picardsolve.fixed_point.stopping import Stopping
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.checks import check_optional_positive_integer, check_positive_integer


@dataclass(frozen=True)
class Parareal(Method):
    """``delta = G(y) - G(x)`` over blocks of steps, G a coarse solver (Lions, Maday & Turinici 2001), pipelined.

    Cores step the same chain from starts along the grid. A core starts from a coarse jump of the core before. Its
    correction is the difference of two coarse jumps, from the new and the old state at the step of its last correction.
    With equal blocks, a core's state at the end of a block is that of parareal. Core 0 is the sequential solver, so
    there are never more rounds than steps. A jump is one step of the same integrator (DDIM over DDIM, Euler over Euler,
    for a Runge-Kutta method its slope), with the output of its first state held fixed and the noise of the steps that
    it covers. The first fine step uses the same evaluation, so a coarse step costs no row. SRDS (Selvam et al. 2024)
    and CHORDS (Han et al. 2025) are choices of starts, see `picardsolve.presets`.

    In `picardsolve.solve`, ``guess`` is unused, and ``window`` is the largest number of cores. A core takes one row of
    each sample in a round. All samples share one schedule, but each sample stops separately.

    Args:
        blocks: number of blocks of equal length; the first takes the remainder. Default: the square root of the number
            of steps. There are fewer if they would not be longer than ``coarse``, or if ``window`` is smaller.
        starts: instead of ``blocks``, the steps where cores start, 0 first.
        coarse: number of steps of a coarse jump, 1 by default. All but the first need rows and rounds of their own.
        iterations: stop when the core that makes this iteration reaches the end, whatever the tolerance. 1 is the last
            core, which arrives first. None, the default: stop by tolerance only.
        grid: number of steps of the grid that ``starts`` are for. On another grid they are scaled, and starts too close
            to the one before are dropped. None, the default: ``starts`` are steps of any grid.

    Raises:
        TypeError: ``blocks``, ``coarse``, ``iterations`` or ``grid`` is no integer, or ``starts`` no tuple of integers.
        ValueError: a number is out of range, or starts are not more than ``coarse`` steps apart.
    """

    stop = "increment"  # differences of cores are increments, and give no error estimate
    blocks: int | None = None
    starts: tuple[int, ...] | None = None
    coarse: int = 1
    iterations: int | None = None
    grid: int | None = None

    def __post_init__(self):
        check_optional_positive_integer("blocks", self.blocks)
        check_positive_integer("coarse", self.coarse)
        check_optional_positive_integer("iterations", self.iterations)
        check_optional_positive_integer("grid", self.grid)
        if self.grid is not None and self.starts is None:
            raise ValueError(f"grid: got {self.grid} without starts; pass starts=, or leave it out.")
        if self.starts is None:
            return
        if self.blocks is not None:
            raise ValueError(f"blocks: got {self.blocks} beside starts={self.starts!r}; pass either one.")
        if not isinstance(self.starts, tuple) or not all(type(start) is int for start in self.starts):
            raise TypeError(f"starts: expected a tuple of integers, got {self.starts!r}.")
        if self.starts[:1] != (0,) or any(b - a <= self.coarse for a, b in pairwise(self.starts)):
            raise ValueError(
                f"starts: expected 0 and then steps more than coarse={self.coarse} apart, got {self.starts!r}."
            )

    def cores(self, steps: int, most: int) -> tuple[int, ...]:
        """The steps where cores start.

        Args:
            steps: number of steps of the grid.
            most: largest number of cores.

        Raises:
            ValueError: a start lies beyond the grid.
        """
        if self.starts is not None:
            if self.grid is not None:
                return _scaled(self.starts, self.grid, steps, self.coarse)[:most]
            if self.starts[-1] >= steps:
                raise ValueError(
                    f"iteration: Parareal has a start at step {self.starts[-1]} of a grid of {steps} steps; pass "
                    "starts on the grid, or blocks."
                )
            return self.starts[:most]
        wanted = isqrt(steps - 1) + 1 if self.blocks is None else self.blocks
        count = max(min(wanted, most, steps // (self.coarse + 1)), 1)
        length = steps // count
        return (0, *(steps - length * left for left in range(count - 1, 0, -1)))

    def machine(
        self,
        chain: DriftChain,
        y: Tensor,
        path: Tensor | None,
        *,
        width: int,
        stopping: Stopping,
        lockstep: bool = False,
        **unused: Any,
    ) -> Wavefront:
        """A `Wavefront` of at most ``width`` cores.

        Raises:
            TypeError: steps of the chain read outputs of earlier steps.
            ValueError: a subclass gives invalid starts.
        """
        if chain.memory:
            raise TypeError(
                f"integrator: Parareal goes on from single states, and a step of this one also reads the outputs of "
                f"{chain.memory} earlier steps; pass a one-step integrator such as DDIM() or DPMSolver(1), or another "
                "iteration."
            )
        starts, wanted = self._checked_cores(chain.length, width), len(self.cores(chain.length, chain.length))
        fewer = f", of {wanted}: window={width} allows no more" if len(starts) < wanted else ""
        note = f"Parareal with {len(starts)} core{'s' * (len(starts) > 1)}{fewer}"
        how = starts, self.coarse, self.iterations
        return Wavefront(chain, y, path, *how, stopping.tolerance, lockstep, (note,))

    def _checked_cores(self, steps: int, most: int) -> tuple[int, ...]:
        starts, apart = self.cores(steps, most), self.coarse
        whole = isinstance(starts, tuple) and all(type(start) is int for start in starts)
        begins = whole and starts[:1] == (0,) and len(starts) <= most and starts[-1] < steps
        if not begins or any(b - a <= apart for a, b in pairwise(starts)):
            raise ValueError(
                f"iteration: {self!r}.cores must give at most {most} steps, 0 first and each more than "
                f"coarse={apart} behind the one before, below {steps}; got {starts!r}."
            )
        return starts


def _scaled(starts: tuple[int, ...], grid: int, steps: int, coarse: int) -> tuple[int, ...]:
    """Starts on a grid of another length, to the nearest step."""
    kept = [0]
    for start in starts:
        scaled = (2 * start * steps + grid) // (2 * grid)
        if scaled > kept[-1] + coarse and scaled < steps:
            kept.append(scaled)
    return tuple(kept)
