"""What successive rounds show of the steps that they hold: how a step answers to a change of its state."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators import DriftChain
from picardsolve.integrators.base import Rows
from picardsolve.results.history import Round

_REMEMBERED = 3  # rounds whose changes tell how others are carried on
_RIDGE = 1e-3


@dataclass
class Sightings:
    """What the last round saw of each step, ``(M, B, ...)``, and what successive rounds said of it."""

    state: Tensor
    image: Tensor
    output: Tensor
    count: np.ndarray
    change: Tensor  # of the states that steps start from, in the last round
    tables: list[Tensor]
    directions: list[tuple[Tensor, Tensor]]  # of the last rounds: changes of length one, and images' beyond them
    unforeseen: Tensor

    @staticmethod
    def none(chain: DriftChain, y0: Tensor, rounds: int) -> "Sightings":
        """Nothing has been seen."""
        blank = y0.new_full((chain.length, *y0.shape), torch.nan)
        empty = torch.full(blank.shape[:2], torch.nan)
        count = np.zeros(empty.shape, dtype=np.int64)
        return Sightings(
            blank, blank.clone(), blank[..., :0], count, empty, [], [], empty.expand(rounds, -1, -1).clone()
        )

    def note(self, chain: DriftChain, rows: Rows, outputs: Tensor) -> None:
        """Compare a round's rows with what was last seen of the same steps."""
        at = torch.from_numpy(rows.step), torch.from_numpy(rows.sample)
        images = chain.image(rows, outputs)
        dx, df = rows.state - self.state[at], images - self.image[at]
        size = dx.norm(dim=-1)
        rounding = torch.finfo(dx.dtype).eps ** 0.75 * rows.state.norm(dim=-1)
        size = torch.where(size > rounding, size, torch.nan)
        unit = dx / size[:, None]
        beyond = df / size[:, None] - unit
        table = self.state.new_full((3, *self.state.shape[:2]), torch.nan)
        table[:, at[0], at[1]] = torch.stack(
            [beyond.norm(dim=-1), (unit * beyond).sum(-1), (unit + beyond).norm(dim=-1)]
        )
        self.tables.append(table.cpu())
        pair = self.state.new_zeros(2, *self.state.shape)
        pair[:, at[0], at[1]] = torch.stack([unit, beyond]).nan_to_num(0, 0, 0)
        self.directions = [*self.directions[1 - _REMEMBERED :], (pair[0], pair[1])]
        if self.output.shape[-1] != outputs.shape[-1]:
            self.output = outputs.new_full((*self.state.shape[:2], outputs.shape[-1]), torch.nan)
        self.state[at], self.image[at], self.output[at] = rows.state, images, outputs
        self.count[rows.step, rows.sample] += 1

    def compare(self, record: Round) -> None:
        """Compare the residuals that a round found with the changes of the one before."""
        width = len(record.increments)
        step = record.begin.numpy() + np.arange(width)[:, None]
        inside = step < np.minimum(record.begin.numpy() + record.width.numpy(), len(self.count))
        row, sample = np.nonzero(inside)
        n = step[row, sample]
        on = torch.from_numpy(row), torch.from_numpy(sample)
        if record.residuals is not None:
            ratio = record.residuals[on] / self.change[n, sample]
            self.unforeseen[np.maximum(self.count[n, sample] - 2, 0), n, sample] = ratio.to(self.unforeseen)
        self.change = torch.full_like(self.change, torch.nan)
        further = n + 1 < len(self.count)
        self.change[n[further] + 1, sample[further]] = record.increments[on].to(self.change)[torch.from_numpy(further)]

    def ratios(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Contraction, one-sided constant, gain, their exponent, and what was not foreseen, all near known states."""
        far = ~states[:-1].isfinite().all(-1).cpu()
        tables = torch.stack([*torch.stack(self.tables, 1), self.unforeseen[: len(self.tables)]])
        contraction, one_sided, gain, unforeseen = tables.masked_fill(far, torch.nan)
        return contraction, one_sided, gain, self._exponent(~far, one_sided), unforeseen

    def _exponent(self, known: Tensor, one_sided: Tensor) -> Tensor:
        """A change is carried on by what was seen of changes, there and at the steps beside: a secant update each.

        What it has in no seen direction is scaled as the last changes were, along themselves.
        """
        samples, size = self.state.shape[1:]
        change = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        change = (change / change.norm()).expand(samples, -1)
        exponent = torch.zeros(samples, dtype=torch.float64)
        scalar = one_sided.double().nanmedian(0).values.nan_to_num(0)
        for m in range(len(known)):
            beside = slice(max(m - 1, 0), m + 2)
            near, beyond = (torch.cat([pair[i][beside] for pair in self.directions]) for i in (0, 1))
            near, beyond = (rows.transpose(0, 1).double().cpu() for rows in (near, beyond))
            beyond = beyond - scalar[m][:, None, None] * near
            gram = near @ near.mT + _RIDGE * torch.eye(near.shape[1], dtype=torch.float64)
            along = torch.linalg.solve(gram, near @ change[..., None])
            moved = (1 + scalar[m])[:, None] * change + (along.mT @ beyond)[:, 0]
            length = moved.norm(dim=-1).clamp(min=1e-300)
            exponent += torch.where(known[m], length.log(), 0)
            change = torch.where(known[m][:, None], moved / length[:, None], change)
        return exponent
