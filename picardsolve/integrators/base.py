"""Integrators, and the chains of steps that they make from a term and a grid."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.discretization import Discretization
from picardsolve.integrators.step_maps import Steps
from picardsolve.problem.index import DeviceIndex, in_front, send
from picardsolve.problem.problem import Problem
from picardsolve.problem.row_function import RowFunction
from picardsolve.problem.terms import Term

Hold = Literal["output", "sample"]
Usual = Literal["picard", "secant", "multi-secant", "newton", "exponential"]
UsualGuess = Literal["output", "sample", "copy"]
Index: TypeAlias = np.ndarray  # of int64: steps, samples and positions are numbers on the CPU
T = TypeVar("T", bound=Term)


@dataclass(frozen=True)
class Rows:
    """The states of one round; row r is one sample at one step.

    Attributes:
        step: ``(R,)``.
        sample: ``(R,)``.
        state: ``(R, D)``.
        tangents: ``(P, R, D)``, directions along which the outputs are differentiated; None for no derivatives.
        after: ``(R, D)``, for an implicit chain, the current estimates of the states after the steps; None if unknown.
        noise: ``(R, noise_size)``, increments of the steps, for a chain that reads them; None if not drawn.
    """

    step: Index
    sample: Index
    state: Tensor
    tangents: Tensor | None = None
    after: Tensor | None = None
    noise: Tensor | None = None

    @property
    def dual(self) -> Tensor:
        """The states with the tangents behind them, ``(1 + P, R, D)``; without tangents the states, ``(R, D)``."""
        return self.state if self.tangents is None else torch.cat([self.state[None], self.tangents])


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of every sample: at step ``(1, B)``, of ``state`` ``(B, D)``, with ``output`` ``(B, K)``."""

    step: Index
    state: Tensor
    output: Tensor


class Chain(ABC):
    """The sequence of states ``x[n + 1] = Phi_n(x[n])``, n = 0 ... ``length`` - 1, that the window iterates.

    Attributes:
        length: number of steps N.
        iteration: name of the default iteration.
        guess: default guess of the states that enter the window: the last output held fixed ("output"), the last
            predicted clean sample held fixed ("sample"), or copies of the last state ("copy").
        rounds: drift calls that follow each other in one evaluation of a step (its stages).
        memory: how many earlier outputs a step reads (0 for one-step methods).
        noise_size: numbers of Brownian motion for each sample and step (0 for ODEs).
        implicit: whether a step is an equation for the state after it. An evaluation is then one Newton step from
            `Rows.after`; its value is the chain's once it no longer moves. Without `Rows.after` the equation is solved.
        trusts_slopes: whether slopes along successive changes tell how errors are carried on, as for a denoiser, whose
            steps contract towards the data.
        reads_noise: whether outputs depend on the noise of their steps, see `Rows.noise`.
        width: steps that a window holds by default.
        smooth: whether Jacobians of a few steps represent those of the steps between them, as for a differential
            equation.
    """

    length: int
    iteration: Usual = "picard"
    guess: UsualGuess = "output"
    rounds: int = 1
    memory: int = 0
    noise_size: int = 0
    implicit: bool = False
    trusts_slopes: bool = False
    reads_noise: bool = False
    width: int = 32
    smooth: bool = True

    @abstractmethod
    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The step maps of a window.

        Args:
            n: ``(W, B)``, or ``(W, 1)`` where all samples are at the same steps.
            x: ``(W, B, D)`` states.
            outputs: ``(memory + W, B, K)``, those of the steps before the window, then those of the window.
            noise: ``(W, B, noise_size)`` increments, or None.
        """

    @abstractmethod
    def extend(self, n: Index, hold: Hold, start: Tensor, source: "Evaluated", noise: Tensor | None) -> Tensor:
        """Extrapolate with one evaluation held fixed: a guess of the states ahead without a drift call.

        Args:
            n: ``(L, B)`` or ``(L, 1)``, the steps to take.
            hold: "output" holds the drift or the predicted noise fixed, "sample" the predicted clean sample.
            start: ``(B, D)``, the state that the first step leaves from.
            source: the evaluation.
            noise: ``(L, B, noise_size)`` or None.

        Returns:
            The states after each step, ``(L, B, D)``.
        """

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Extrapolate before anything has been evaluated; arguments and result as for `extend`.

        The default is None: nothing is known about the drift.
        """
        return None

    def increments(self, n: Index, sample: Index) -> Tensor:
        """Brownian increments of steps ``(R,)`` of samples ``(R,)``, shape ``(R, noise_size)``; the default is none."""
        return torch.zeros(len(n), 0)

    def image(self, rows: Rows, out: Tensor, past: Tensor | None = None) -> Tensor:
        """The states after the steps of rows, ``(R, D)``, from the rows' outputs.

        Args:
            rows: the states that the steps leave from. Noise that they do not have is drawn.
            out: ``(R, K)``.
            past: ``(memory, R, K)``, outputs of the steps before; None for zeros.
        """
        if self.memory and past is None:
            past = out.new_zeros(self.memory, *out.shape)
        outputs = out.unsqueeze(0) if past is None else torch.cat([past, out.unsqueeze(0)])
        noise = self.with_noise(rows).noise
        noise = None if noise is None else noise.unsqueeze(0)
        return self.steps(in_front(rows.step), rows.state.unsqueeze(0), outputs, noise).images().squeeze(0)

    def with_noise(self, rows: Rows) -> Rows:
        """The rows with the noise of their steps, which is drawn where they have none."""
        if rows.noise is not None or not self.noise_size:  # how large, the first output may show
            return rows
        return replace(rows, noise=self.increments(rows.step, rows.sample).to(rows.state))

    def differentiated(
        self, steps: Steps, n: Index, directions: Tensor, outputs: Tensor, noise: Tensor | None
    ) -> Steps:
        """The step maps with their derivatives along directions.

        For given noise a step is affine in its state and its output. Its derivative is therefore the step of the
        derivatives, minus the step of zeros.

        Args:
            steps: of this chain.
            n: ``(W, B)`` or ``(W, 1)``.
            directions: ``(P, D)``.
            outputs: ``(W, B, P, K)``, derivatives of the outputs along the directions.
            noise: ``(W, B, noise_size)`` or None.
        """
        width, samples, count, _ = outputs.shape
        along = directions.expand(width, samples, count, -1)
        each = np.broadcast_to(n, (width, samples)).flatten().view(DeviceIndex)
        many_each = each.repeat(count).view(DeviceIndex)
        send(outputs.device, each, many_each)
        noise = None if noise is None else noise.flatten(0, 1)
        many = None if noise is None else noise.repeat_interleave(count, 0)
        anyone = np.zeros(each.size * count, dtype=np.int64)
        rows = Rows(many_each, anyone, along.flatten(0, 2), noise=many)
        none = Rows(each, anyone[: each.size], torch.zeros_like(along[:, :, 0]).flatten(0, 1), noise=noise)
        images = self.image(rows, outputs.flatten(0, 2)).reshape(along.shape)
        zero = self.image(none, outputs.new_zeros(len(each), outputs.shape[-1])).reshape(width, samples, 1, -1)
        return replace(steps, directions=directions, derivatives=images - zero)


class DriftChain(Chain):
    """A chain that calls the user's drift.

    A subclass sets `length` and `function`, or sets `length` and overrides `counts`:

        class MyChain(DriftChain):
            def __init__(self, problem):
                self.length = len(problem.ts) - 1
                self.function = problem.row_function("drift", problem.term.drift)

    Attributes:
        function: the user's drift at rows; its calls are counted.
        further_rounds: rounds that evaluations have taken beyond ``rounds`` for each.
    """

    function: RowFunction
    further_rounds: int = 0

    @abstractmethod
    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at rows, ``(R, K)``. Only this method calls the user's functions.

        For rows with tangents: ``(1 + P, R, K)``, the outputs with their derivatives behind them.
        """

    def step(self, rows: Rows, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate rows and take their steps.

        Args:
            rows: the states that the steps leave from. Noise that they do not have is drawn.
            past: ``(memory, R, K)``, outputs of the steps before; None for zeros.

        Returns:
            The states after the steps, ``(R, D)``, and the outputs, ``(R, K)``.
        """
        rows = self.with_noise(rows)
        out = self.evaluate(rows)
        return self.image(rows, out, past), out

    @property
    def deviation(self) -> Tensor | None:
        """Standard deviation of each step's noise, ``(N,)``; None without noise, or where it depends on the state."""
        return None

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """Factors by which errors of the states before a step enter the error of the state after it.

        Args:
            lipschitz: ``(N,)``, Lipschitz constants of the drift with respect to y; for a `Denoiser`, of the predicted
                sample.
            one_sided: ``(N,)``, one-sided constants in the direction of time, or None.

        Returns:
            ``(N, 1 + memory)``: the factor for the state that the step leaves from, then for the earlier ones.

        Raises:
            TypeError: this integrator has no such factors, or none with one-sided constants.
        """
        raise TypeError("certified: this integrator has no Lipschitz constants for a given noise; use verify().")

    def counts(self) -> tuple[int, int]:
        """Drift calls and evaluations so far."""
        return self.function.calls, self.function.evaluations


class Integrator(Discretization):
    """A method that turns a term and a grid into a chain.

    Attributes:
        order: order of convergence on ODEs.
    """

    adaptive: ClassVar[bool] = False
    order: int

    @abstractmethod
    def chain(self, problem: Problem) -> DriftChain:
        """The chain of steps of a problem.

        Raises:
            TypeError: this integrator does not take the term.
        """


def accepted_term(integrator: Integrator, problem: Problem, *kinds: type[T], instead: str = "") -> T:
    """The problem's term, if it is one of the kinds that an integrator takes.

    Raises:
        TypeError: the term is of another kind. The message names ``instead``, or the integrators for this term.
    """
    term, name = problem.term, type(integrator).__name__
    if isinstance(term, kinds):
        return term
    takes = " or ".join(f"{'an' if kind.__name__[:2] in ('OD', 'SD') else 'a'} {kind.__name__}" for kind in kinds)
    instead = instead or term.integrators
    raise TypeError(f"integrator: {name} takes {takes}, got {type(term).__name__}; pass {instead}.")
