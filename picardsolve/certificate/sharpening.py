"""Errors that have grown beyond the tolerance along the solution: found after a solve, and solved again."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from picardsolve.certificate.accepted import Accepted
from picardsolve.certificate.growth import Growth, measurable, measured
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.guesses import FromTrajectory, guess_for
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import DriftChain
from picardsolve.problem.machine import drive
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import rms
from picardsolve.problem.tolerances import Tolerance

_DOUBTED = 2.0  # tolerances: samples of a denoiser with a larger estimated error anywhere are solved again
_TRIES = 2  # of a solve whose errors have grown beyond the tolerance
_ROUNDING = 4.0  # units of rounding that a sharper tolerance is at least


@dataclass
class Sharpening:
    """Solves the samples of a window again whose errors are beyond the tolerance, from their own path.

    Attributes:
        problem: what is solved.
        window: a solve that has come to its end.
        y: ``(B, D)`` the initial states.
        max_rounds: limit of the rounds in all; None: none.
        rounds: rounds that were added.
    """

    problem: Problem
    window: Window
    y: Tensor
    max_rounds: int | None
    rounds: int = 0

    @property
    def chain(self) -> DriftChain:
        """The chain of the window."""
        assert isinstance(self.window.chain, DriftChain)
        return self.window.chain

    def of_denoiser(self) -> None:
        """Solve the samples again whose estimated error is more than two tolerances.

        Errors grow where a sample is about to choose between modes, and estimates are low there: the tolerance is
        therefore divided by the square of the excess. Where that could take more rounds in all than there are steps,
        the samples stay as they are.
        """
        rule, done = self.window.settings.stopping, len(self.window.history)
        if not isinstance(rule, ErrorEstimate) or rule.worst is None or not self.window.done:
            return
        excess = np.where(rule.worst > _DOUBTED, rule.worst, 1)
        most = min(self._left(), self.chain.length - done)
        if (excess > 1).any() and most >= done and not self.window.failed.any():
            self._solve(excess**-2.0, most)

    def of_grown_errors(self, allowed: Tolerance) -> tuple[Growth | None, bool]:
        """Measure how errors grow along the solution, and solve again the samples whose errors grow too far.

        Nothing is measured for samples whose errors would stay within the tolerance even if they grew as fast as steps
        change states.

        Args:
            allowed: the tolerance of errors.

        Returns:
            The growth, None where it is not known; and False where errors are still estimated beyond the tolerance.
        """
        path, length, samples = self.window.path, self.chain.length, len(self.y)
        rule = self.window.settings.stopping
        if path is None or not isinstance(rule, ErrorEstimate) or not self.window.done or self._left() < 1:
            return None, True
        if not measurable(self.problem, self.chain, self.y.shape[-1]):
            return None, True
        known = Accepted.of(self.window.history, length, samples)
        size = allowed.size(path).double().cpu()
        reached = torch.where(known.errors[1:] > 0, known.errors[1:] * known.rates.cumsum(0).exp(), 0)
        doubted = ~(reached <= size[1:]).all(0).numpy() & ~self.window.failed
        if not doubted.any():
            return None, True
        growth, self.rounds = measured(self.chain, path, _scale(path, allowed), known.rates, doubted)
        factor = torch.ones(samples, dtype=torch.float64)
        for attempt in range(_TRIES + 1):
            beyond = ((growth.carried(known.expected) / size).amax(0) > 1) & growth.since_start.isfinite()
            spent = growth.carried(factor * size[1:] / length) / size
            factor = torch.where(beyond, factor / (2 * spent.amax(0)), 1).clamp(min=_ROUNDING * _rounding(path, size))
            if attempt == _TRIES or self._left() < 1 or not bool((beyond & (factor < 1)).any()):
                break
            self._solve(factor.where(beyond, 1).numpy(), self._left())
            known = Accepted.of(self.window.history, length, samples)
        return growth, not bool(beyond.any())

    def _solve(self, factor: np.ndarray, most: int) -> None:
        """Solve the samples with a ``factor`` (B,) of the tolerance below 1 again, in at most so many rounds."""
        window, settings, again = self.window, self.window.settings, factor < 1
        rule, guess = settings.stopping, settings.guess
        assert isinstance(rule, ErrorEstimate)
        tolerance = rule.tolerance.scaled(torch.from_numpy(factor).to(self.y))
        finer = ErrorEstimate(tolerance, self.chain.length, rule.trusts_slopes, reserves=False, patient=rule.patient)
        if window.path is not None:
            guess = FromTrajectory(self.problem.layout.unpack_path(window.path))
            guess = guess_for(guess, self.problem, self.chain)
        settings = replace(settings, width=window.width, guess=guess, stopping=finer)
        sharper = Window(self.chain, self.y, settings, None if window.path is None else window.path.clone())
        sharper.begin = sharper.reached = np.where(again, 0, self.chain.length)
        drive(sharper, most)
        if sharper.done and not sharper.failed.any():
            chosen = torch.from_numpy(again).to(self.y.device)[:, None]
            window.x = torch.where(chosen, sharper.x[:1], window.x[:1])
            if window.path is not None and sharper.path is not None:
                window.path = torch.where(chosen, sharper.path, window.path)
            window.history.extend(sharper.history)
        self.rounds += len(sharper.history)

    def _left(self) -> int:
        """How many more rounds there may be: no more than the steps of the sequential solver."""
        if self.max_rounds is None:
            return self.chain.length
        return min(self.chain.length, self.max_rounds // self.chain.rounds - len(self.window.history))


def _scale(path: Tensor, tolerance: Tolerance) -> Tensor:
    """The unit of changes of each number, ``(B, D)``: its usual size, and the size below which it counts as zero."""
    usual = path.square().mean(0).sqrt()
    atol, rtol = (torch.as_tensor(value).to(usual) for value in (tolerance.atol, tolerance.rtol))
    atol, rtol = (value[:, None] if value.dim() == 1 else value for value in (atol, rtol))
    floor = (atol / rtol.clamp(min=torch.finfo(usual.dtype).tiny)).nan_to_num(0, 0)
    scale = usual + floor
    return torch.where(scale > 0, scale, 1)


def _rounding(path: Tensor, allowed: Tensor) -> Tensor:
    """The largest rounding of a sample's states in tolerances, ``(B,)``."""
    return (torch.finfo(path.dtype).eps * rms(path).double().cpu() / allowed).amax(0)
