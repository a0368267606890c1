# %% [markdown]
"""A recurrent network over 4000 steps: all of them at once by Newton's method, beside the loop.

The network is a GRU of 32 numbers with random weights that reads a noisy signal. The loop calls it 4000 times, one
state at a time. `picardsolve.solve_chain` calls it a few times, for all steps at once, and finds the same states. It
takes far more arithmetic: on a CPU, where a row costs as much as it computes, the loop is faster; it pays where the
calls themselves cost time, as on a GPU. See docs/chains.md.

    python examples/gru.py --out figures
"""

# %%
import argparse
from pathlib import Path
from time import perf_counter

import torch
from matplotlib.figure import Figure
from torch import Tensor

import picardsolve as ps

HIDDEN, INPUTS = 32, 8


def network(steps: int) -> tuple[torch.nn.GRUCell, Tensor]:
    """The cell, and its inputs ``(steps, INPUTS)``."""
    torch.manual_seed(0)
    waves = torch.sin(torch.arange(steps)[:, None] / torch.logspace(0.5, 2.5, INPUTS))
    return torch.nn.GRUCell(INPUTS, HIDDEN), waves + 0.3 * torch.randn(steps, INPUTS)


@torch.no_grad()
def looped(cell: torch.nn.GRUCell, inputs: Tensor) -> Tensor:
    """The states after each step, ``(steps + 1, HIDDEN)``."""
    path = [torch.zeros(1, HIDDEN)]
    for each in inputs:
        path.append(cell(each[None], path[-1]))
    return torch.cat(path)


# %%
def picture(states: Tensor, solution: ps.Solution) -> Figure:
    """Some of the states, and how far each round reached."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(states[:400, :4].numpy(), color="0.7", linewidth=3)
    left.plot(solution.ys[:400, :4].numpy(), color="C0", linewidth=1)
    left.set(xlabel="step", title="four of 32 numbers: the loop (grey), all steps at once (blue)")
    for number, each in enumerate(solution.history, 1):
        right.semilogy(each.increments[:, 0].clamp(min=1e-9).numpy(), linewidth=0.8, label=f"round {number}")
    right.set(xlabel="step", title="change of each state by each round")
    right.legend()
    return figure


# %%
def main() -> None:
    """Solve both ways, print what it took, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, help="folder for the picture")
    given = parser.parse_args()
    cell, inputs = network(given.steps)
    seconds = {}
    for _ in range(2):  # what is loaded at a first call is nobody's
        begin = perf_counter()
        states = looped(cell, inputs)
        seconds["loop"] = perf_counter() - begin
        begin = perf_counter()
        with torch.no_grad():
            solution = ps.solve_chain(lambda n, h: cell(inputs[n], h), torch.zeros(HIDDEN), given.steps)
        seconds["chain"] = perf_counter() - begin
    print(f"loop: {given.steps} calls of the network, one after the other, {seconds['loop']:.2f} s")
    stats = solution.stats
    print(f"solve_chain: {stats.rounds} rounds, {stats.evaluations} evaluations, {seconds['chain']:.2f} s")
    print(f"largest difference {float((solution.ys - states).abs().max()):.1e}")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        picture(states, solution).savefig(given.out / "gru.png", dpi=110)


if __name__ == "__main__":
    main()
