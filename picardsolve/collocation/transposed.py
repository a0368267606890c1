"""The transposed equations of the segments: they carry cotangents of the solution back to the drift and the start."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.collocation.adaptive_solve import AdaptiveSolve
from picardsolve.collocation.nodes import Nodes

_RESTARTS = 20


@dataclass(frozen=True)
class Stack:
    """The segments of samples, in the order of samples, then of time.

    Attributes:
        nodes: of every segment.
        sample: ``(S,)`` the sample of each.
        h: ``(S,)`` lengths, negative where time runs backward.
        times: ``(S, n)`` of the nodes.
        states: ``(S, n, d)`` at the nodes.
        cotangent: ``(S, n, d)`` of those states.
        starts: ``(S, d)`` cotangents of the states that segments start from.
        units: ``(S, d)`` powers of two near the tolerances of the components: cotangents times units are compared.
    """

    nodes: Nodes
    sample: np.ndarray
    h: np.ndarray
    times: np.ndarray
    states: np.ndarray
    cotangent: np.ndarray
    starts: np.ndarray
    units: np.ndarray

    @staticmethod
    def several(solve: AdaptiveSolve, elapsed: np.ndarray, cotangent: np.ndarray) -> "list[Stack]":
        """One stack for each path.

        Args:
            solve: that is over.
            elapsed: ``(T, B)`` elapsed times of states; NaN: unknown.
            cotangent: ``(T, B, d)`` of those states.
        """
        states, problem = solve.states, solve.problem
        t, flat = elapsed.ravel(), cotangent.reshape(-1, cotangent.shape[-1])
        sample = np.tile(np.arange(elapsed.shape[1]), len(elapsed))
        found = dict(zip(map(id, states.paths), solve.limits, strict=True))
        asked = {id(path): own for path, own in states.queries(elapsed)}
        stacks = []
        for path in states.paths:
            own, nodes, at = path.segments, path.nodes, asked.get(id(path), np.zeros(0, int))
            (values,) = problem.arrays.fetch(own.values)
            pulled = np.zeros_like(values)
            place, weights = path.weights(t[at], sample[at])
            np.add.at(pulled, place, weights[:, :, None] * flat[at, None])
            extra = len(nodes.points) - nodes.n  # the start is no node of "radau"
            starts = pulled[:, 0] if extra else np.zeros_like(pulled[:, 0])
            sign = problem.sign[own.sample]
            times = problem.origin[own.sample, None] + sign[:, None] * (own.t[:, None] + own.h[:, None] * nodes.c)
            largest = problem.arrays.peak(own.values)
            (allowed,) = problem.arrays.fetch(found[id(path)].allowed(largest, own.sample))
            units = np.exp2(np.round(np.log2(allowed)))
            parts = values[:, extra:], pulled[:, extra:], starts, units
            stacks.append(Stack(nodes, own.sample, sign * own.h, times, *parts))
        return stacks

    def windows(self, longest: int, most: int) -> "Iterator[TransposedWindow]":
        """Windows of at most ``most`` segments, at most ``longest`` of one sample; the last segments come first."""
        _, counts = np.unique(self.sample, return_counts=True)
        begins = np.concatenate([[0], counts.cumsum()])
        behind = np.repeat(begins[1:], counts) - 1 - np.arange(len(self.sample))  # segments that follow
        together = np.minimum(counts, longest).cumsum()
        first = 0
        while first < len(counts):
            room = (together[first - 1] if first else 0) + most
            last = max(int(np.searchsorted(together, room, side="right")), first + 1)
            deepest = int(counts[first:last].max())
            for level in range(0, deepest, longest):
                beyond = min(level + longest, deepest)
                at = np.arange(begins[first], begins[last])
                at = at[(behind[at] >= level) & (behind[at] < beyond)]
                yield TransposedWindow(self, at, [np.flatnonzero(behind[at] == k) for k in range(level, beyond)])
            first = last


@dataclass(frozen=True)
class TransposedWindow:
    """Consecutive segments of some samples, solved together.

    The multipliers ``mu`` of the equations ``Y = start + h A F(Y)`` satisfy ``mu = g + J' h A' mu``, with g the
    cotangent of Y. To g at the last node, the sum of the next segment's ``mu`` is added, because the next segment
    starts there; so the last segment comes first.

    Attributes:
        stack: of all segments.
        at: ``(m,)`` the window's segments in the stack.
        levels: positions in ``at``: of the last segment of each sample, of the one before, and so on.
    """

    stack: Stack
    at: np.ndarray
    levels: Sequence[np.ndarray]

    def onto_drift(self, mu: np.ndarray) -> np.ndarray:
        """``h A' mu``: the cotangent of the drift at the nodes, ``(m, n, d)``."""
        return self.stack.h[self.at, None, None] * (self.stack.nodes.integrate.T @ mu)

    def factorized(self, jacobian: np.ndarray, following: np.ndarray) -> np.ndarray:
        """The multipliers by factorisation.

        Args:
            jacobian: ``(m, n, d, d)`` of the drift.
            following: ``(B, d)`` cotangents of the ends, by sample; becomes that of the starts.

        Returns:
            ``mu``, ``(m, n, d)``.
        """
        (m, n, d, _), units = jacobian.shape, self.stack.units[self.at, None]
        jacobian = jacobian * (units[:, :, None] / units[..., None])
        integrate = -self.stack.h[self.at, None, None] * self.stack.nodes.integrate.T
        matrix = integrate[:, :, None, :, None] * jacobian.swapaxes(-1, -2)[:, :, :, None, :]
        matrix = matrix.reshape(m, n * d, n * d)
        matrix[:, np.arange(n * d), np.arange(n * d)] += 1
        right = np.zeros((m, n * d, 1 + d))
        right[:, :, 0] = (units * self.stack.cotangent[self.at]).reshape(m, -1)
        right[:, -d:, 1:] = units * np.eye(d)
        answer = np.linalg.solve(matrix, right).reshape(m, n, d, 1 + d) / units[..., None]
        return self._carried(answer[..., 0], self.stack.starts[self.at], following, answer[..., 1:])

    def iterated(
        self, pull: Callable[[np.ndarray], np.ndarray], following: np.ndarray, tolerance: float, directions: int
    ) -> np.ndarray | None:
        """The multipliers by GMRES on ``mu - P J' h A' mu = P g``, where P carries cotangents to earlier segments.

        Args:
            pull: ``J'`` times cotangents of the drift ``(m, n, d)``.
            following: as in `factorized`.
            tolerance: of the residual relative to the right side.
            directions: that GMRES keeps.

        Returns:
            ``mu``; None, and ``following`` as it was, where it does not converge.
        """
        given, units = self.stack.cotangent[self.at], self.stack.units[self.at, None]
        starts, nothing = self.stack.starts[self.at], np.zeros_like(self.stack.starts[self.at])

        def residual(flat: np.ndarray) -> np.ndarray:
            mu = flat.reshape(given.shape) / units
            mu -= self._carried(pull(self.onto_drift(mu)), nothing, np.zeros_like(following))
            mu *= units
            return mu.ravel()

        from scipy.sparse.linalg import LinearOperator, gmres  # a quarter of a second, which only gradients need

        right = (units * self._carried(given, starts, following.copy())).ravel()
        operator = LinearOperator((right.size, right.size), residual, dtype=right.dtype)  # pyright: ignore
        mu, left = gmres(operator, right, rtol=tolerance, restart=min(directions, right.size), maxiter=_RESTARTS)
        if left or not np.isfinite(mu).all():
            return None
        mu = mu.reshape(given.shape) / units
        for at in self.levels:
            following[self.stack.sample[self.at[at]]] = starts[at] + mu[at].sum(1)
        return mu

    def _carried(
        self, free: np.ndarray, starts: np.ndarray, following: np.ndarray, response: np.ndarray | None = None
    ) -> np.ndarray:
        """From the last segments to the first: add to each the cotangent of its end from the next segment."""
        mu = free.copy()
        for at in self.levels:
            sample = self.stack.sample[self.at[at]]
            if response is None:
                mu[at, -1] += following[sample]
            else:
                mu[at] += (response[at] @ following[sample, None, :, None])[..., 0]
            following[sample] = starts[at] + mu[at].sum(1)
        return mu
