"""`scipy.integrate.solve_ivp` in rounds: pass ``method=ParallelCollocation``."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.integrate import DenseOutput, OdeSolver

from picardsolve import Collocation
from picardsolve.extend import (
    CheckedSegment,
    InitialValueProblem,
    Machine,
    March,
    NumpyArrays,
    Stuck,
    drive,
    rounds_if_stiff,
)

__all__ = ["ParallelCollocation"]

Nodes: TypeAlias = Literal["radau", "lobatto", "chebyshev"]
Iteration: TypeAlias = Literal["picard", "secant", "newton"]

_UNIT = float(np.finfo(float).eps)
_ONE = np.zeros(1, int)  # the sample of a march
_PIECES = 8  # steps that a segment is cut into: scipy finds an event from the signs at the ends of a step only


@dataclass
class _Ahead(Machine):
    """A march, until it has accepted a segment that scipy has not taken.

    Attributes:
        march: under way.
        function: the drift at the user's times ``(k,)`` and real states ``(k, d)``.
        taken: steps that scipy has taken of this march.
        accepted: the segments of those steps, and the next ones.
    """

    march: March
    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    taken: int = 0
    accepted: list[CheckedSegment] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the next step is known."""
        return self.taken < _PIECES * len(self.accepted)

    def ask(self) -> tuple[np.ndarray, np.ndarray]:
        """Elapsed times and states of the next round."""
        elapsed, states, _ = self.march.ask()
        return elapsed, states

    def evaluate(self, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The drift there, in the direction of time."""
        problem, (elapsed, states) = self.march.problem, rows
        return problem.sign * self.function(problem.time(elapsed, 0), states)

    def tell(self, outputs: np.ndarray) -> None:
        """Take the drifts.

        Raises:
            Stuck: even the shortest segment fails.
        """
        self.march.tell(outputs)
        if self.march.failures:
            raise self.march.failures[0]
        self.accepted += self.march.accepted.unread(self.march.nodes)

    def take(self) -> tuple[CheckedSegment, float]:
        """The next step: its segment, and the place in it where the step ends."""
        segment, part = divmod(self.taken, _PIECES)
        self.taken += 1
        return self.accepted[segment], (part + 1) / _PIECES


class ParallelCollocation(OdeSolver):
    """Adaptive collocation with several segments in flight (see `picardsolve.Collocation`), as a solver of scipy.

    ``solve_ivp(fun, span, y0, method=ParallelCollocation, vectorized=True, ...)``. With ``vectorized=True`` fun is
    called with **many times at once**: ``y`` has shape ``(n, k)`` and ``t`` has shape ``(k,)``. Scipy's own solvers
    pass one t for all columns; elementwise code needs no change. With ``vectorized=False`` fun is called for one state
    after the other, and nothing is gained.

    As for all solvers of scipy, the tolerance is that of every segment, and errors may grow along the solution.
    `picardsolve.solve` propagates them to the end, and solves again where they exceed the tolerance. It needs the whole
    span for that, and here a terminal event may end the span anywhere. Rounds run ahead of what scipy has taken by at
    most the segments in flight. A segment is cut into 8 equal steps; scipy finds events between their ends.

    ``nfev`` counts calls of fun. ``njev`` and ``nlu`` count the segments whose Jacobians were taken; the calls for that
    are in ``nfev``.

    Args:
        fun: ``fun(t, y)``, see above.
        t0: initial time.
        y0: ``(n,)``, real or complex.
        t_bound: where to end.
        max_step: most time in a segment.
        rtol: relative tolerance, to the largest value of a component on a segment.
        atol: absolute tolerance, a number or ``(n,)``.
        vectorized: see above.
        first_step: length of the first segment; None: chosen.
        nodes: of `picardsolve.Collocation`, as are ``order`` and ``in_flight``.
        order: see ``nodes``.
        in_flight: see ``nodes``.
        iteration: "picard", "secant" or "newton"; None: Newton's method for up to 64 numbers, else a secant.
        extraneous: ignored with a warning, ``jac`` too: Jacobians are taken by finite differences in the same rounds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value, or fun does not keep its contract.
    """

    def __init__(
        self,
        fun: Callable[[Any, np.ndarray], Any],
        t0: float,
        y0: Any,
        t_bound: float,
        max_step: float = np.inf,
        rtol: float = 1e-3,
        atol: Any = 1e-6,
        vectorized: bool = False,
        first_step: float | None = None,
        nodes: Nodes = "radau",
        order: int | None = None,
        in_flight: int | None = None,
        iteration: Iteration | None = None,
        **extraneous: Any,
    ):
        unused = [name for name, value in extraneous.items() if value is not None]
        if unused:
            warnings.warn(f"{', '.join(unused)}: without effect on ParallelCollocation.", stacklevel=3)
        if iteration not in (None, "picard", "secant", "newton"):
            raise ValueError(f'iteration: expected "picard", "secant", "newton" or None, got {iteration!r}.')
        if not (np.ndim(rtol) == 0 and rtol >= 0 and np.all(np.asarray(atol) >= 0)):
            raise ValueError(f"rtol, atol: expected a number >= 0, and numbers >= 0, got {rtol!r} and {atol!r}.")
        if rtol < 100 * _UNIT:  # as scipy does
            warnings.warn(f"rtol: {rtol:g} is too small, setting to {100 * _UNIT:.1e}.", stacklevel=3)
            rtol = 100 * _UNIT
        super().__init__(fun, t0, y0, t_bound, vectorized, support_complex=True)
        self.rtol, self.atol = float(rtol), self._by_component(atol)
        self.method = Collocation(nodes, order, in_flight, first_step, max_step)
        self._iteration = iteration
        self._checked = not vectorized
        if self.n and t0 != t_bound:
            self._ahead = _Ahead(self._march(iteration), self._evaluated)
            self._jacobians = 0  # of earlier marches

    def _by_component(self, atol: Any) -> np.ndarray:
        """For every real number of the state; a complex number is two."""
        if np.shape(atol) not in ((), (self.n,)):
            raise ValueError(f"atol: expected a number or shape ({self.n},), got {np.shape(atol)}.")
        of_one = 2 if np.iscomplexobj(self.y) else 1
        return np.repeat(np.broadcast_to(np.asarray(atol, float), self.n), of_one)

    def _march(self, iteration: Iteration | None) -> March:
        """A march from where scipy stands."""
        self.y = np.ascontiguousarray(self.y)
        span, rtol = np.array([self.t, self.t_bound]), np.full(len(self.atol), self.rtol)
        arrays = NumpyArrays()
        problem = InitialValueProblem(self.y.view(float)[None], span, rtol[None], self.atol[None], _UNIT, arrays)
        choice, orders = self.method.plan(problem, iteration)
        march = self.method.march(problem, choice, int(orders[0]))
        march.begin(_ONE)
        return march

    def _step_impl(self) -> tuple[bool, str | None]:
        try:
            drive(self._ahead, after=self._reconsider)
        except Stuck as stuck:
            return False, self._failed(stuck)
        finally:
            self.njev = self.nlu = self._jacobians + self._ahead.march.sweep.linearizations
        self._segment, part = self._ahead.take()
        march, segment = self._ahead.march, self._segment
        last = part == 1 and segment.end >= march.span[0] * (1 - 1e-12)
        self.t = self.t_bound if last else float(march.problem.time(np.array(segment.t + part * segment.h), 0))
        self.y = segment(np.array(part)).view(self.y.dtype)
        return True, None

    def _reconsider(self, rounds: int) -> None:
        """Go on with Newton's method where another iteration finds the equation stiff."""
        march = self._ahead.march
        done = not march.under_way or self._ahead.done
        if self._iteration is not None or done or not march.problem.takes_jacobians:
            return
        if not np.isnan(rounds_if_stiff(march, _ONE)[0]):
            self._jacobians += march.sweep.linearizations
            self._ahead = _Ahead(self._march("newton"), self._evaluated)

    def _dense_output_impl(self) -> DenseOutput:
        return _Piece(self.t_old, self.t, self._ahead.march.problem, self._segment, self.y.dtype)

    def _failed(self, stuck: Stuck) -> str:
        time = self._ahead.march.problem.time
        if stuck.not_finite is not None:
            return f"{self.TOO_SMALL_STEP} fun is not finite at t = {float(time(np.array(stuck.not_finite), 0)):.6g}."
        return (
            f"{self.TOO_SMALL_STEP} At t = {float(time(np.array(stuck.t), 0)):.6g} y may have no limit, or fun jumps."
        )

    def _evaluated(self, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The drift at times ``(k,)`` and real states ``(k, d)``."""
        y = np.array(np.ascontiguousarray(states).view(self.y.dtype).T, order="C")
        if self.vectorized:
            self.nfev += 1
            out = self._called(t, y)
        else:
            self.nfev += len(t)
            out = np.stack([self.fun_single(at, column) for at, column in zip(t.tolist(), y.T, strict=True)], 1)
        if not self._checked and len(t) > 1:
            self._check(t, y, out)
        return np.ascontiguousarray(out.T).view(float)

    def _called(self, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        said = f"fun: with vectorized=True it is called with t of shape {t.shape} and y of shape {y.shape}"
        try:
            out = self.fun_vectorized(t, y)
        except Exception as error:
            raise ValueError(
                f"{said}, and raised {type(error).__name__}: {error}; or pass vectorized=False."
            ) from error
        if out.shape != y.shape:
            raise ValueError(f"{said}, and must return the shape of y, got {out.shape}; or pass vectorized=False.")
        return out

    def _check(self, t: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
        """Once, ask for a column alone: it shows where t or y are taken for something else."""
        self._checked = True
        self.nfev += 1
        alone = self._called(t[-1:], y[:, -1:])[:, 0]
        scale = np.abs(alone).max(initial=0)
        if not np.allclose(out[:, -1], alone, rtol=1e-6, atol=1e-8 * scale, equal_nan=True):
            raise ValueError(
                "fun: the value of a column changes with the others; t has shape (k,), one time for each column of y; "
                "or pass vectorized=False."
            )


class _Piece(DenseOutput):
    """The polynomial of a segment, over the step that is a part of it."""

    def __init__(self, t_old: Any, t: float, problem: InitialValueProblem, segment: CheckedSegment, dtype: np.dtype):
        super().__init__(t_old, t)
        self.begin, self.h = float(problem.time(np.array(segment.t), 0)), float(problem.sign[0]) * segment.h
        self.segment, self.dtype = segment, dtype

    def _call_impl(self, t: np.ndarray) -> np.ndarray:
        return self.segment((t - self.begin) / self.h).view(self.dtype).T
