"""Work-precision diagrams: error against sequential drift calls, and against wall clock."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from ode_ladders import LOOSEST, TIGHTEST, Ladder
from ode_solvers import Run

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LONG = 1.0  # seconds: no longer solves are made for a picture
LOOKS = {  # colours: Okabe & Ito 2008
    "picardsolve": ("#D55E00", "o", 2.2),
    "scipy DOP853": ("#0072B2", "s", 1.2),
    "torchdiffeq dopri8": ("#009E73", "^", 1.2),
    "torchdiffeq dopri5": ("#56B4E9", "v", 1.2),
    "torchode Tsit5": ("#CC79A7", "D", 1.2),
    "diffrax Dopri8": ("#555555", "x", 1.2),
}
SPECIAL = {"torchode Tsit5": "torchode Tsit5 (not compiled)", "diffrax Dopri8": "diffrax Dopri8 (compiled)"}


def complete(ladder: Ladder) -> None:
    """Every decade, as far as solves are short; timed again where the first time counts little."""
    for rung in range(LOOSEST, TIGHTEST + 1, 2):
        if not ladder.run(rung).seconds < LONG:
            return
        if ladder.runs[rung].seconds < LONG / 4:
            ladder.again(rung)


def draw(ladders: Sequence[Ladder]) -> None:
    """Both pictures of the problems that these ladders are of."""
    for ladder in ladders:
        complete(ladder)
    picture(ladders, lambda run: run.calls, "sequential drift calls (ours: rounds)", "work_precision_calls.png")
    picture(ladders, lambda run: run.seconds * 1e3, "wall clock, ms", "work_precision_wall.png")


def picture(ladders: Sequence[Ladder], work: Callable[[Run], float], label: str, name: str) -> None:
    """Small multiples, a problem each."""
    problems = {ladder.problem.name: ladder.problem for ladder in ladders}
    columns = min(3, len(problems))
    lines = -(-len(problems) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4 * columns, 3.2 * lines + 0.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(problems) :]:
        axes.set_visible(False)
    for axes, problem in zip(grid.flat, problems.values(), strict=False):
        for ladder in ladders:
            if ladder.problem.name == problem.name and ladder.solver.name in LOOKS:
                colour, marker, width = LOOKS[ladder.solver.name]
                runs = [ladder.runs[rung] for rung in sorted(ladder.runs) if 0 <= ladder.runs[rung].error < 1]
                points = [(work(run), max(run.error, 1e-16)) for run in runs]
                axes.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=width,
                    zorder=3 if width > 2 else 2,
                    label=SPECIAL.get(ladder.solver.name, ladder.solver.name),
                )
        axes.set(xscale="log", yscale="log", ylim=(1e-16, 1), title=f"{problem.name}, d = {len(problem.y0)}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("error at the end")
    for column in range(columns):
        [axes for axes in grid[:, column] if axes.get_visible()][-1].set_xlabel(label)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(IMAGES / name, dpi=130)
    plt.close(figure)
