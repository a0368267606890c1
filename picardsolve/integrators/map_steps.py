"""The steps of a discrete chain: the user's map itself."""

from dataclasses import replace

import torch
from torch import Tensor

from picardsolve.integrators.base import DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable
from picardsolve.problem.clock import Clock
from picardsolve.problem.map import Map
from picardsolve.problem.problem import Problem
from picardsolve.problem.state import LARGEST_DENSE

_NUMBERS = 2**23  # in the Jacobians, or states, of a window: every window takes as many rounds, however long it is


class MapSteps(Integrator):
    """Takes the value of a `Map` for the state after the step."""

    order = 1

    def chain(self, problem: Problem) -> DriftChain:
        """The chain of a `Map`."""
        return MapChain(self, problem)


class MapChain(DriftChain):
    """``Phi_n(x) = step(n, x)``: the output of a step is the state after it."""

    guess = "copy"
    smooth = False

    def __init__(self, integrator: Integrator, problem: Problem):
        term = accepted_term(integrator, problem, Map)
        layout, self.length = problem.layout, len(problem.ts) - 1
        dense = layout.size <= LARGEST_DENSE
        self.iteration = "newton" if dense else "secant"
        numbers = layout.batch * layout.size * (layout.size + 1 if dense else 1)  # of a step
        windows = -(-self.length // max(_NUMBERS // numbers, 32))
        self.width = -(-self.length // windows)
        numbered = Clock(self.length, self.length, 1.0, (torch.int64,))
        self.function = problem.row_function("step", term.step, clock=numbered)
        self._numbers = StepTable(torch.arange(self.length), layout, torch.int64)

    def evaluate(self, rows: Rows) -> Tensor:
        """The states after the steps, ``(R, D)``, and their derivatives."""
        return self.function(self._numbers.numbers(rows.step), rows.dual, rows.sample)

    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window."""
        nothing = outputs.new_zeros(()).expand(*outputs.shape[:-1], 1)
        return AffineSteps(outputs.clone(), factor=nothing, expected_slope=nothing)

    def image(self, rows: Rows, out: Tensor, past: Tensor | None = None) -> Tensor:
        """The outputs."""
        return out.clone()

    def differentiated(
        self, steps: Steps, n: Index, directions: Tensor, outputs: Tensor, noise: Tensor | None
    ) -> Steps:
        """The step maps with the derivatives of the outputs, which may depend on the state in any way."""
        return replace(steps, directions=directions, derivatives=outputs)

    def extend(self, n: Index, hold: Hold, start: Tensor, source: Evaluated, noise: Tensor | None) -> Tensor:
        """The last output, wherever the chain goes."""
        return source.output.expand(len(n), *start.shape)

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """The Lipschitz constants of the steps, which are the user's."""
        return super().step_constants(lipschitz, one_sided) if one_sided is not None else lipschitz[:, None]
