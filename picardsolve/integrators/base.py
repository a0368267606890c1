"""The two interfaces of this layer: what a user picks, and the chain of steps that it makes of a term and a grid."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from picardsolve.integrators.discretization import Discretization
from picardsolve.integrators.step_maps import Steps
from picardsolve.problem.problem import Problem
from picardsolve.problem.terms import Term

Hold = Literal["output", "sample"]
Usual = Literal["picard", "secant", "multi-secant", "newton", "exponential"]
UsualGuess = Literal["output", "sample", "copy"]
Index: TypeAlias = np.ndarray  # of int64: steps, samples and positions are host numbers


@dataclass(frozen=True)
class Rows:
    """The states of one round: row r is one sample at one step.

    Attributes:
        step: ``(R,)``.
        sample: ``(R,)``.
        state: ``(R, D)``.
        tangents: ``(P, R, D)``: directions that the outputs are to be differentiated along; None where there are none.
        after: ``(R, D)``: of an implicit chain, the states that the steps are thought to lead to. None: not known.
        noise: ``(R, noise_size)`` increments of the steps, for a chain whose outputs depend on them. None: not drawn.
    """

    step: Index
    sample: Index
    state: Tensor
    tangents: Tensor | None = None
    after: Tensor | None = None
    noise: Tensor | None = None

    @property
    def dual(self) -> Tensor:
        """The states with the tangents behind them, ``(1 + P, R, D)``; ``(R, D)`` where there are none."""
        return self.state if self.tangents is None else torch.cat([self.state[None], self.tangents])


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of every sample: at step ``(1, B)``, of ``state`` ``(B, D)``, with ``output`` ``(B, K)``."""

    step: Index
    state: Tensor
    output: Tensor


class Chain(ABC):
    """``x[n + 1] = Phi_n(x[n])`` for n = 0 ... ``length`` - 1: what the window iterates.

    Attributes:
        length: number of steps N.
        iteration: the name of the iteration that a solve takes where none is given.
        guess: what a solve continues with where no guess is given: the last output or the last predicted clean sample
            held fixed, or copies of the last state.
        rounds: drift calls that follow each other in one evaluation of a step (its stages).
        memory: how many earlier outputs a step reads (0 for one-step methods).
        noise_size: numbers of Brownian motion per sample and step (0 for ODEs).
        implicit: a step is an equation for the state that it leads to. What is evaluated is then a Newton step from
            `Rows.after`, whose image is the chain's once it does not move; without them, the step itself.
        reads_noise: outputs depend on the noise of their steps, which `Rows.noise` then brings if it has been drawn.
    """

    length: int
    iteration: Usual = "picard"
    guess: UsualGuess = "output"
    rounds: int = 1
    memory: int = 0
    noise_size: int = 0
    implicit: bool = False
    reads_noise: bool = False

    @abstractmethod
    def steps(self, n: Index, x: Tensor, outputs: Tensor, noise: Tensor | None) -> Steps:
        """The steps of a window.

        Args:
            n: ``(W, B)`` or ``(W, 1)``.
            x: ``(W, B, D)`` states.
            outputs: ``(memory + W, B, K)``: of the steps before the window, then of the window.
            noise: ``(W, B, noise_size)`` increments, or None.
        """

    @abstractmethod
    def extend(self, n: Index, hold: Hold, start: Tensor, source: "Evaluated", noise: Tensor | None) -> Tensor:
        """Go on from a state with one evaluation held fixed: the guess of the states ahead, for no drift call.

        Args:
            n: ``(L, B)`` or ``(L, 1)``, the steps to take.
            hold: "output" holds the drift or the predicted noise, "sample" the predicted clean sample.
            start: ``(B, D)`` the state that the first step leaves from.
            source: what is held.
            noise: ``(L, B, noise_size)`` or None.

        Returns:
            The states after each step, ``(L, B, D)``.
        """

    def predict(self, n: Index, start: Tensor, noise: Tensor | None) -> Tensor | None:
        """Go on from a state before anything has been evaluated; None where nothing is known of the drift.

        Arguments and result as for `extend`.
        """
        return None

    def image(self, rows: Rows, out: Tensor, past: Tensor | None = None) -> Tensor:
        """The states that the steps of rows lead to, ``(R, D)``, from their outputs; arguments as for `step`."""
        if self.memory and past is None:
            past = out.new_zeros(self.memory, *out.shape)
        outputs = out[None] if past is None else torch.cat([past, out[None]])
        noise = rows.noise
        if noise is None and self.noise_size:  # how much, the first output may tell
            noise = self.increments(rows.step, rows.sample).to(rows.state)
        steps = self.steps(rows.step[None], rows.state[None], outputs, None if noise is None else noise[None])
        return steps.images()[0]

    def differentiated(
        self, steps: Steps, n: Index, directions: Tensor, outputs: Tensor, noise: Tensor | None
    ) -> Steps:
        """The steps with their derivatives along directions.

        For given noise a step is affine in its state and its output. Its derivative is therefore the step of the
        derivatives, less the step of zeros.

        Args:
            steps: of this chain.
            n: ``(W, B)`` or ``(W, 1)``.
            directions: ``(P, D)``.
            outputs: ``(W, B, P, K)``, derivatives of the outputs along the directions.
            noise: ``(W, B, noise_size)`` or None.
        """
        width, samples, count, _ = outputs.shape
        along = directions.expand(width, samples, count, -1)
        each = np.broadcast_to(n, (width, samples)).ravel()
        noise = None if noise is None else noise.flatten(0, 1)
        many = None if noise is None else noise.repeat_interleave(count, 0)
        anyone = np.zeros(each.size * count, dtype=np.int64)
        rows = Rows(each.repeat(count), anyone, along.flatten(0, 2), noise=many)
        none = Rows(each, anyone[: each.size], torch.zeros_like(along[:, :, 0]).flatten(0, 1), noise=noise)
        images = self.image(rows, outputs.flatten(0, 2)).reshape(along.shape)
        zero = self.image(none, outputs.new_zeros(len(each), outputs.shape[-1])).reshape(width, samples, 1, -1)
        return replace(steps, directions=directions, derivatives=images - zero)

    def increments(self, n: Index, sample: Index) -> Tensor:
        """Brownian increments of steps ``n`` of samples ``sample``, both ``(R,)``: ``(R, noise_size)``."""
        return torch.zeros(len(n), 0)


class DriftChain(Chain):
    """A chain that calls the user's drift itself.

    Attributes:
        further_rounds: how many more than ``rounds`` a step its evaluations have taken so far.
    """

    further_rounds: int = 0

    @abstractmethod
    def evaluate(self, rows: Rows) -> Tensor:
        """The drift's outputs at rows, ``(R, K)``: the only place that costs anything.

        Where the rows have tangents: ``(1 + P, R, K)``, the outputs with their derivatives behind them.
        """

    def step(self, rows: Rows, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate rows and take their steps.

        Args:
            rows: of the states that the steps leave from; where they have no noise, it is drawn.
            past: ``(memory, R, K)`` outputs of the steps before; None for zeros.

        Returns:
            The states that the steps lead to, ``(R, D)``, and the outputs, ``(R, K)``.
        """
        if rows.noise is None and self.noise_size:
            rows = replace(rows, noise=self.increments(rows.step, rows.sample).to(rows.state))
        out = self.evaluate(rows)
        return self.image(rows, out, past), out

    @property
    def deviation(self) -> Tensor | None:
        """Standard deviation of each step's noise, ``(N,)``; None where it is none, or depends on the state."""
        return None

    def step_constants(self, lipschitz: Tensor, one_sided: Tensor | None) -> Tensor:
        """By how much errors of states enter the one after a step.

        Args:
            lipschitz: ``(N,)`` constants of the drift in y; of a `Denoiser`, of its predicted sample.
            one_sided: ``(N,)`` one-sided constants in the direction of time, or None.

        Returns:
            ``(N, 1 + memory)``: of the state that the step leaves from, and of the earlier ones that it reads.

        Raises:
            TypeError: there are none for this integrator, or none that are one-sided.
        """
        raise TypeError("certified: this integrator has no Lipschitz constants for a given noise; use verify().")

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Drift calls and evaluations so far."""


class Integrator(Discretization):
    """What turns a term and a grid into a chain.

    Attributes:
        order: order of convergence on ODEs.
    """

    adaptive: ClassVar[bool] = False
    order: int

    @abstractmethod
    def chain(self, problem: Problem) -> DriftChain:
        """Build the chain.

        Raises:
            TypeError: this integrator does not take the term.
        """


def per_step(table: Tensor, n: Index, like: Tensor) -> Tensor:
    """Entries ``(*n.shape, 1)`` of a float64 table ``(N,)`` in the dtype and on the device of the states."""
    return torch.from_numpy(table.numpy()[n][..., None]).to(like.device, like.dtype)


def refuse(integrator: Integrator, term: Term, takes: str, instead: str) -> TypeError:
    """The error of an integrator that is given a term it cannot solve."""
    return TypeError(
        f"integrator: {type(integrator).__name__} takes {takes}, got {type(term).__name__}; pass {instead}."
    )
