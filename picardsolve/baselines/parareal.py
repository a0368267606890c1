"""Parareal: the hyper-parameters of a solve by the wavefront."""

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt

from torch import Tensor

from picardsolve.baselines.wavefront import Wavefront
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.iterations import Method
from picardsolve.fixed_point.stopping import Stopping
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.checks import check_optional_positive_integer, check_positive_integer
from picardsolve.problem.tolerances import Stop


@dataclass(frozen=True)
class Parareal(Method):
    """``delta = G(y) - G(x)`` over blocks of steps, G a coarse solver (Lions, Maday & Turinici 2001), pipelined.

    Cores step the same chain from starts along the grid, each from a coarse jump off the one before. When core c - 1
    reaches the step that core c was last corrected at, core c is corrected by the difference of two coarse jumps from
    there, one from either state: with equal blocks its state at a block's end is parareal's. Core 0 is the
    sequential solver, so there are never more rounds than steps. A jump is one step of the same integrator with the
    output of its first state held fixed (DDIM over DDIM, Euler over Euler; over a Runge-Kutta method its slope), with
    the noise of the steps it covers; that evaluation is the first fine step as well, so one coarse step costs no row.
    SRDS (Selvam et al. 2024) and CHORDS (Han et al. 2025) are choices of starts, see `picardsolve.presets`.

    In `picardsolve.solve` ``guess`` is unused, and ``window`` bounds the number of cores, which with one coarse step is
    the rows of a sample in a round. All samples keep to one schedule; each stops by itself.

    Args:
        blocks: number of blocks of equal length, the first takes the remainder; the square root of the number of steps
            by default. Fewer where blocks would not be longer than ``coarse``, or than ``window`` allows.
        starts: instead of ``blocks``: the steps where cores start, 0 first.
        grid: steps of the grid that ``starts`` are meant for; on another they are scaled to it, and those that come too
            close to the one before are left out. None: they are steps of any grid.
        coarse: steps of a coarse jump; all but the first are rows and rounds of their own.
        iterations: stop when the core that makes this iteration reaches the end, 1 being the last core, the first to
            arrive, whatever the tolerance says. None: stop by tolerance only.

    Raises:
        TypeError: ``blocks``, ``coarse`` or ``iterations`` is no integer, or ``starts`` no tuple of them.
        ValueError: one of them is out of range, or starts are not more than ``coarse`` steps apart.
    """

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
        """The steps that cores start at.

        Args:
            steps: of the grid.
            most: cores there may be.

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

    @property
    def stop(self) -> Stop:
        """Where a core reaches the state that the next one went on from, it is compared with that state."""
        return "increment"

    def machine(
        self,
        chain: DriftChain,
        y: Tensor,
        path: Tensor | None,
        *,
        width: int,
        guess: Guess,
        stopping: Stopping,
        meter: ErrorEstimate | None = None,
        lockstep: bool = False,
    ) -> Wavefront:
        """A `Wavefront` of at most ``width`` cores; it has no use for a guess.

        Raises:
            TypeError: steps of the chain read outputs of earlier steps.
            ValueError: cores cannot start where a subclass says.
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
    """Starts on a grid of other length, to the nearest step."""
    kept = [0]
    for start in starts:
        scaled = (2 * start * steps + grid) // (2 * grid)
        if scaled > kept[-1] + coarse and scaled < steps:
            kept.append(scaled)
    return tuple(kept)
