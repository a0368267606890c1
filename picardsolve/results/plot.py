"""Pictures of a solve, drawn by matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from picardsolve.results.history import Round

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_rounds(history: Sequence[Round], steps: int, rounds: int, sample: int = 0) -> "Figure":
    """Draw the residual of each step in each round in colour, and the two ends of the window.

    Where residuals are not known, changes are drawn.

    Args:
        history: one record per round of the window.
        steps: steps of the grid.
        rounds: rounds in all, for the title.
        sample: index of a sample in the batch.
    """
    figure, axes = _subplots(figsize=(7.5, 3.8))
    from matplotlib.colors import LogNorm

    field, begins, ends = torch.full((len(history), steps), torch.nan), [], []
    for k, record in enumerate(history):
        begin, width = int(record.begin[sample]), int(record.width[sample])
        norms = record.increments if record.residuals is None else record.residuals
        at = torch.arange(begin, begin + width) if record.step is None else record.step[:width, sample]
        known = ~norms[:width, sample].isnan()
        field[k, at[known]] = norms[:width, sample][known].to(field)
        begins.append(begin)
        ends.append(int(at.max()) + 1 if width else begin)
    positive = field[field > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1e-16, 1.0)
    low = max(low, high * 1e-9)
    image = axes.pcolormesh(field.clamp(min=low).numpy(), norm=LogNorm(low, high), cmap="viridis", rasterized=True)
    middles = [k + 0.5 for k in range(len(begins))]
    axes.step(begins, middles, where="mid", color="black", linewidth=1.2, label="accepted so far")
    axes.plot(ends, middles, color="black", linewidth=0.8, linestyle=":", label="end of the window")
    axes.set(xlabel="step", ylabel="sweep", ylim=(len(begins), 0), xlim=(0, steps))
    axes.set_title(f"{steps} steps in {rounds} rounds")
    axes.legend(loc="lower left", fontsize="small")
    residuals = all(record.residuals is not None for record in history)
    figure.colorbar(image, label="residual" if residuals else "change in the round")
    return figure


def plot_segments(ends: Tensor, rounds: int) -> "Figure":
    """Draw the lengths of the segments of a solve by collocation.

    Args:
        ends: ``(S + 1,)`` times where segments begin, and the end of the last one.
        rounds: of the solve, for the title.
    """
    figure, axes = _subplots(figsize=(7.5, 3.2))
    axes.stairs(ends.diff().abs().numpy(), ends.numpy(), baseline=None, color="black")
    axes.set(xlabel="t", ylabel="length of the segment", title=f"{len(ends) - 1} segments in {rounds} rounds")
    if len(ends) > 1:
        axes.set_yscale("log")
    return figure


def plot_expected(widths: Sequence[int], rounds: Sequence[float], seconds: Sequence[float], alone: float) -> "Figure":
    """Draw the rounds and seconds that solves with several widths of the window are expected to take.

    Args:
        widths: of the window.
        rounds: expected with each width.
        seconds: expected with each width.
        alone: seconds of the sequential solver.
    """
    figure, (left, right) = _subplots(1, 2, figsize=(7.5, 3.2))
    left.plot(widths, rounds, "o-", color="black")
    left.set(xlabel="width of the window", ylabel="expected rounds", xscale="log", yscale="log")
    right.plot(widths, seconds, "o-", color="black", label="in parallel")
    right.axhline(alone, color="black", linestyle=":", label="one step at a time")
    right.set(xlabel="width of the window", ylabel="expected seconds", xscale="log", yscale="log")
    right.legend(fontsize="small")
    return figure


def _subplots(*shape: int, figsize: tuple[float, float]) -> tuple["Figure", Any]:
    """A figure and its axes.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("plot: needs matplotlib; pip install picardsolve[plot]") from error
    return plt.subplots(*shape, figsize=figsize, layout="constrained")
