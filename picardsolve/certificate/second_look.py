"""A second look at the whole path of a discrete chain, by one more round of Newton's method.

A map may jump, so that slopes say nothing of the states between; and its errors may grow. Each step is therefore taken
once more from the state that was accepted. What the values are off, ``r[n] = Phi_n(X[n]) - X[n+1]``, adds up to the
distance to the sequential solution, ``e[n+1] = J_n e[n] + r[n]`` to first order, with the Jacobians of the same round.
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
            error = self._missing()
            excess, size = self.allowed.measure(error, window.path, None)
            beyond = ~(excess.nan_to_num(torch.inf) <= 1).all(0).cpu().numpy() & ~window.failed
            if not beyond.any():
                return size.double().cpu(), True
            better = error.isfinite().all(-1).all(0).cpu().numpy() & beyond
            if not better.any():
                break
            chosen = torch.from_numpy(better).to(error.device)[:, None]
            window.path = torch.where(chosen, window.path + error, window.path)
            window.x = window.path[-1:].where(chosen, window.x[:1])
        if most - self.rounds < self.chain.length:
            return None, False
        self._step(beyond)
        error = rms(self._missing()).double().cpu()
        return error.masked_fill(torch.from_numpy(beyond), 0), True

    def _missing(self) -> Tensor:
        """The error of every state to first order, signed, ``(N + 1, B, D)``; NaN where it is not known."""
        chain, path = self.chain, self.window.path
        assert path is not None
        samples, size = path.shape[1:]
        found, unit = [torch.zeros_like(path[:1])], torch.eye(size).to(path)
        for begin in range(0, chain.length, chain.width):
            n = np.arange(begin, min(begin + chain.width, chain.length))
            x = path[n].flatten(0, 1)
            rows = Rows(n.repeat(samples), np.tile(np.arange(samples), len(n)), x, unit[:, None].expand(-1, *x.shape))
            value, *columns = chain.evaluate(rows).unflatten(1, (len(n), samples))
            jacobian = torch.stack(columns, -1)
            residual = value - path[n + 1]
            residual[0] += (jacobian[0] @ found[-1][-1][..., None])[..., 0]
            residual = residual.masked_fill(~jacobian.isfinite().all(-1), torch.nan)
            found.append(matrix_recurrence(jacobian.nan_to_num(0, 0, 0), residual))
        self.rounds += 1
        return torch.cat(found)

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
