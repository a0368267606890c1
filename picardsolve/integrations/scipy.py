"""`scipy.integrate.solve_ivp` in rounds: pass ``method=ParallelCollocation``."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import DenseOutput, OdeSolver

from picardsolve.collocation import Choice, Collocation
from picardsolve.collocation.check import Checked
from picardsolve.collocation.march import Stuck
from picardsolve.collocation.nodes import Kind, Nodes
from picardsolve.collocation.samples import Posed, Sample, foreseen_if_stiff
from picardsolve.problem.state import LARGEST_DENSE

_UNIT = float(np.finfo(float).eps)
_PIECES = 8  # steps that a segment is handed out in: scipy sees an event by the signs at a step's ends only


class ParallelCollocation(OdeSolver):
    """Adaptive collocation with several segments in flight (see `picardsolve.Collocation`), as a solver of scipy.

    ``solve_ivp(fun, span, y0, method=ParallelCollocation, vectorized=True, ...)``. With ``vectorized=True`` fun is
    called with **many times at once**: ``y`` of shape ``(n, k)``, and ``t`` of shape ``(k,)``, where scipy's own
    solvers have one t for all columns; elementwise code needs no change. With ``vectorized=False`` it is called for
    one state after the other, and nothing is gained by that.

    As of all of scipy's solvers the tolerance is that of every segment, and errors may grow on the way:
    `picardsolve.solve` carries them to the end and solves again where they exceed the tolerance, for which it needs
    the whole span; here a terminal event may end it anywhere. Rounds run ahead of what scipy has taken by at most
    the segments in flight. A segment is handed out in 8 equal steps, between whose ends scipy sees events.

    ``nfev`` counts calls of fun, ``njev`` and ``nlu`` segments whose Jacobians were taken, in calls that are counted.

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
        order: likewise.
        in_flight: likewise.
        iteration: "picard", "secant", "newton"; None: Newton for up to ten numbers, or where others find the equation
            stiff, else a secant.
        extraneous: ignored with a warning; ``jac`` too: differences ride along in the rounds.

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
        nodes: Kind = "radau",
        order: int | None = None,
        in_flight: int | None = None,
        iteration: Choice | None = None,
        **extraneous: Any,
    ):
        unused = [name for name, value in extraneous.items() if value is not None]
        if unused:
            warnings.warn(f"{', '.join(unused)}: without effect on ParallelCollocation.", stacklevel=3)
        if iteration not in (None, "picard", "secant", "newton"):
            raise ValueError(f'iteration: expected "picard", "secant", "newton" or None, got {iteration!r}.')
        if not (np.ndim(rtol) == 0 and rtol >= 0 and np.all(np.asarray(atol) >= 0)):
            raise ValueError(f"rtol, atol: expected a number >= 0, and numbers >= 0, got {rtol!r} and {atol!r}.")
        if rtol < 100 * _UNIT:  # scipy's rule, and its words
            warnings.warn(f"rtol: {rtol:g} is too small, setting to {100 * _UNIT:.1e}.", stacklevel=3)
            rtol = 100 * _UNIT
        super().__init__(fun, t0, y0, t_bound, vectorized, support_complex=True)
        self.rtol, self.atol = float(rtol), self._by_component(atol)
        self.method = Collocation(nodes, order, in_flight, first_step, max_step)
        self._iteration: Choice | None = iteration
        self._checked = not vectorized
        if self.n and t0 != t_bound:
            self._begin(iteration)

    def _by_component(self, atol: Any) -> np.ndarray:
        """Of every number of the state, complex ones are two."""
        if np.shape(atol) not in ((), (self.n,)):
            raise ValueError(f"atol: expected a number or shape ({self.n},), got {np.shape(atol)}.")
        of_one = 2 if np.iscomplexobj(self.y) else 1
        return np.repeat(np.broadcast_to(np.asarray(atol, float), self.n), of_one)

    def _begin(self, iteration: Choice | None) -> None:
        """March from where scipy stands."""
        self.y = np.ascontiguousarray(self.y)
        posed = Posed(
            self.y.view(float),
            np.array([self.t, self.t_bound]),
            np.full(len(self.atol), self.rtol),
            self.atol,
            _UNIT,
            second_order=False,
        )
        self._sample = Sample(posed, self.method, iteration)
        self._march = self._sample.refinement.march
        self._handed = self._rounds = 0  # steps and rounds of this march

    def _step_impl(self) -> tuple[bool, str | None]:
        march = self._march
        while self._handed == _PIECES * len(march.accepted):
            try:
                self._round()
            except Stuck as stuck:
                return False, self._failed(stuck)
            if self._stiff():
                self._begin("newton")
            march = self._march
        segment, part = march.accepted[self._handed // _PIECES], (self._handed % _PIECES + 1) / _PIECES
        self._handed += 1
        last = part == 1 and segment.end >= march.span * (1 - 1e-12)
        posed = self._sample.posed
        self._piece = segment
        self.t = self.t_bound if last else float(posed.user_clock(np.array(segment.t + part * segment.h)))
        self.y = (march.nodes.interpolate(np.array(part)) @ segment.values).view(self.y.dtype)
        return True, None

    def _dense_output_impl(self) -> DenseOutput:
        posed = self._sample.posed
        begin = float(posed.user_clock(np.array(self._piece.t)))
        return _Piece(self.t_old, self.t, begin, posed.sign, self._piece, self._march.nodes, self.y.dtype)

    def _round(self) -> None:
        march, posed = self._march, self._sample.posed
        t, states = march.ask()
        if self._sample.used == "newton":
            n = march.nodes.n
            beside = len(t) - n * len(march.queue) - (n + 1) * len(march.waiting)
            self.njev += beside // (n * len(posed.start))
            self.nlu = self.njev
        march.tell(posed.sign * self._evaluated(posed.user_clock(t), states))
        self._rounds += 1

    def _stiff(self) -> bool:
        """Whether Newton has to go on."""
        march = self._march
        if self._sample.used == "newton" or self._iteration is not None or march.done:
            return False
        if self._handed != _PIECES * len(march.accepted) or len(march.start) > LARGEST_DENSE:
            return False
        return foreseen_if_stiff(march, self._rounds) is not None

    def _failed(self, stuck: Stuck) -> str:
        march, clock = self._march, self._sample.posed.user_clock
        if march.not_finite is not None:
            return f"{self.TOO_SMALL_STEP} fun is not finite at t = {float(clock(np.array(march.not_finite))):.6g}."
        return f"{self.TOO_SMALL_STEP} At t = {float(clock(np.array(stuck.t))):.6g} y may have no limit, or fun jumps."

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

    def __init__(
        self, t_old: Any, t: float, begin: float, sign: float, segment: Checked, nodes: Nodes, dtype: np.dtype
    ):
        super().__init__(t_old, t)
        self.begin, self.h, self.values, self.nodes, self.dtype = begin, sign * segment.h, segment.values, nodes, dtype

    def _call_impl(self, t: np.ndarray) -> np.ndarray:
        states = self.nodes.interpolate((t - self.begin) / self.h) @ self.values
        return states.view(self.dtype).T
