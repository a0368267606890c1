"""A second look at the whole path of a discrete chain, by one more round of Newton's method.

A map may jump, so that slopes say nothing of the states between; and its errors may grow. Each step is therefore taken
once more from the state that was accepted. What the values are off, ``r[n] = Phi_n(X[n]) - X[n+1]``, adds up to the
distance to the sequential solution, ``e[n+1] = J_n e[n] + r[n]`` to first order, with the Jacobians of the same round.
What rounding adds up to follows from the same recurrence: a loop rounds otherwise than a round of many rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.fixed_point.grid_machine import forget_beyond
from picardsolve.fixed_point.sequential import Stepper
from picardsolve.fixed_point.window import Window
from picardsolve.integrators.base import DriftChain, Rows
from picardsolve.problem.machine import drive
from picardsolve.problem.recurrence import matrix_recurrence, rms
from picardsolve.problem.tolerances import Tolerance

_LOOKS = 4  # each of which corrects the path, before steps are taken one after the other
_ROUNDING = 4.0  # units of rounding that a step adds


@dataclass
class SecondLook:
    """Looks at the path of a window that is done, and puts right what is off.

    Attributes:
        chain: the steps.
        window: holds the path.
        y: ``(B, D)`` the initial states.
        allowed: the tolerance of errors.
        rounds: rounds that were added.
    """

    chain: DriftChain
    window: Window
    y: Tensor
    allowed: Tolerance
    rounds: int = 0

    def found(self, max_rounds: int | None) -> tuple[Tensor | None, bool]:
        """Look, correct the samples that are beyond the tolerance, and step those that stay there one after the other.

        Args:
            max_rounds: limit of the rounds in all; None: none.

        Returns:
            Sizes of the errors, ``(N + 1, B)`` float64 on the CPU, None where they are not known; and whether they are
            within the tolerance.
        """
        window = self.window
        if window.path is None or not window.done or window.exact or window.failed.all():
            return None, True
        most = np.inf if max_rounds is None else max_rounds - len(window.history)
        for _ in range(_LOOKS):
            if self.rounds >= most:
                return None, False
            error, rounding = self._missing()
            beyond, unsure = self._beyond(error), self._beyond(rounding)
            if not (beyond | unsure).any():
                return rms(error).double().cpu(), True
            better = error.isfinite().all(-1).all(0).cpu().numpy() & beyond & ~unsure
            beyond = beyond | unsure
            if not better.any():
                break
            chosen = torch.from_numpy(better).to(error.device)[:, None]
            window.path = torch.where(chosen, window.path + error, window.path)
            window.x = window.path[-1:].where(chosen, window.x[:1])
        if most - self.rounds < self.chain.length:
            return None, False
        self._step(beyond)
        return rms(error).double().cpu().masked_fill(torch.from_numpy(beyond), 0), True

    def _beyond(self, error: Tensor) -> np.ndarray:
        """Whether errors of a sample that has not failed are beyond the tolerance or not known, ``(B,)``."""
        assert self.window.path is not None
        excess, _ = self.allowed.measure(error, self.window.path, None)
        return ~(excess.nan_to_num(torch.inf) <= 1).all(0).cpu().numpy() & ~self.window.failed

    def _missing(self) -> tuple[Tensor, Tensor]:
        """The errors of all states to first order, signed, ``(N + 1, B, D)``, and what rounding adds up to, the same.

        NaN where it is not known.
        """
        chain, path = self.chain, self.window.path
        assert path is not None
        samples, size = path.shape[1:]
        found = [path.new_zeros(1, 2, samples, size)]
        signs = torch.randint(2, (chain.width, 1, size), generator=torch.Generator().manual_seed(0)).to(path) * 2 - 1
        rounding = _ROUNDING * torch.finfo(path.dtype).eps * signs
        for begin in range(0, chain.length, chain.width):
            n = np.arange(begin, min(begin + chain.width, chain.length))
            value, *columns = self._differentiated(n, path[n])
            jacobian = torch.stack(columns, -1)
            added = torch.stack([value - path[n + 1], rounding[: len(n)] * rms(value)[..., None]], 1)
            added[0] += (jacobian[0] @ found[-1][-1][..., None])[..., 0]
            added = added.masked_fill(~jacobian.isfinite().all(-1)[:, None], torch.nan)
            both = jacobian.nan_to_num(0, 0, 0)[:, None].expand(*added.shape, size)
            found.append(matrix_recurrence(both.flatten(1, 2), added.flatten(1, 2)).view_as(added))
        self.rounds += 1
        error, carried = torch.cat(found).unbind(1)
        return error, carried

    def _differentiated(self, n: np.ndarray, x: Tensor) -> Tensor:
        """The values of steps n at states x, ``(W, B, D)``, with their derivatives behind them, ``(1 + D, W, B, D)``.

        By differences for an iteration that takes no derivatives: the step may have none.
        """
        samples, size = x.shape[1:]
        step, sample, unit = n.repeat(samples), np.tile(np.arange(samples), len(n)), torch.eye(size).to(x)
        if self.window.settings.iteration.directions(size, 0) is not None:
            flat = x.flatten(0, 1)
            rows = Rows(step, sample, flat, unit[:, None].expand(-1, *flat.shape))
            return self.chain.evaluate(rows).unflatten(1, x.shape[:2])
        move = torch.finfo(x.dtype).eps ** 0.5 * (1 + x.abs())
        moved = torch.cat([x[None], x + move * unit[:, None, None]])
        many = Rows(np.tile(step, 1 + size), np.tile(sample, 1 + size), moved.flatten(0, 2))
        found = self.chain.evaluate(many).view_as(moved)
        really = (moved[1:] - x).diagonal(dim1=0, dim2=-1).movedim(-1, 0)[..., None]  # as it was rounded
        return torch.cat([found[:1], (found[1:] - found[:1]) / really])

    def _step(self, chosen: np.ndarray) -> None:
        """Take the steps of some samples one after the other."""
        window = self.window
        assert window.path is not None
        stepper = Stepper(self.chain, self.y, torch.empty_like(window.path))
        self.rounds += drive(stepper)
        assert stepper.path is not None
        forget_beyond(stepper.path, stepper.reached)
        here = torch.from_numpy(chosen).to(self.y.device)[:, None]
        window.path = torch.where(here, stepper.path, window.path)
        window.x = torch.where(here, stepper.y, window.x[0])[None]
        window.begin = np.where(chosen, stepper.reached, window.begin)
        window.failed = window.failed | (chosen & (stepper.reached < self.chain.length))
        window.exact = bool(chosen.all())
        window.notes = (*window.notes, "Errors grow so much along this chain that its steps were taken one by one.")
