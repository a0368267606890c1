"""How many times faster than torchdiffeq's best we are, at the same error, against the samples of a batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from batch_tables import REGRET, ratio, unique
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#CC79A7")  # Okabe & Ito 2008; from loose to sharp
DEFAULT = "ours"


def title(drift: str, size: int) -> str:
    return "Lotka-Volterra" if drift == "lotka_volterra" else f"network, d = {size}"


def draw(records: Sequence[dict[str, Any]]) -> Path:
    """Small multiples: modes down, drifts and sizes across; of our default."""
    some = [record for record in records if record["solver"] == DEFAULT]
    modes = unique(record["mode"] for record in some)
    columns = unique((record["drift"], record["size"]) for record in some)
    figure, grid = plt.subplots(
        len(modes),
        len(columns),
        figsize=(2.2 * len(columns) + 0.6, 2.3 * len(modes) + 0.8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    tolerances = sorted(unique(record["tolerance"] for record in some), reverse=True)
    for axes_row, mode in zip(grid, modes, strict=True):
        for axes, column in zip(axes_row, columns, strict=True):
            here = [r for r in some if r["mode"] == mode and (r["drift"], r["size"]) == column]
            panel(axes, here, tolerances)
            if axes is axes_row[0]:
                axes.set_ylabel(f"{mode}\ntorchdiffeq / ours")
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(title(*column), fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("samples")
        axes.set_xticks(sorted({record["batch"] for record in some}))
    found = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside upper center", ncols=len(found) or 1, frameon=False)
    path = IMAGES / "batches.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def panel(axes: Any, records: Sequence[dict[str, Any]], tolerances: Sequence[float]) -> None:
    """Of a drift and size: a line for each tolerance; crosses at the bottom where ours has no answer."""
    for tolerance, colour in zip(tolerances, COLOURS, strict=False):
        own = sorted((r for r in records if r["tolerance"] == tolerance), key=lambda r: r["batch"])
        if own:
            solved = [r for r in own if not r["failure"]]
            points = [(r["batch"], ratio(r)) for r in solved]
            label = f"tolerance {tolerance:.0e}"
            axes.plot(*(zip(*points, strict=True) if points else ([], [])), "o-", color=colour, ms=4, label=label)
            failed = [r["batch"] for r in own if r["failure"]]
            axes.plot(failed, [0.03] * len(failed), "x", color=colour, transform=axes.get_xaxis_transform())
    axes.axhspan(1 / REGRET, 1, color="0.85", lw=0)
    axes.axhline(1, color="0.4", lw=0.8)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
