"""Events on the path of a sample: where functions of the solution change sign between places of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picardsolve.embedded.dense import DenseSteps, between
from picardsolve.problem.events import EventFunction, root


@dataclass(frozen=True)
class Occurred:
    """The events of one sample.

    Attributes:
        times: of every event, ``(k,)`` each.
        end: the time of the one that ends the solve; None where none does.
    """

    times: tuple[np.ndarray, ...]
    end: float | None


def occurred(dense: DenseSteps, sample: int, functions: Sequence[EventFunction]) -> Occurred:
    """All events of a sample up to a terminal one.

    Signs are compared at ``k + 1`` places of every step, for polynomials through k nodes.
    """
    steps = dense.steps
    first, count = steps.first[sample], steps.count[sample]
    t = steps.t[first : first + count]
    inside = np.linspace(0, 1, dense.k + 1)[:-1]
    places = np.append((t[:-1, None] + inside * np.diff(t)[:, None]).ravel(), t[-1:])
    places = places[np.append(np.diff(places) != 0, True)]

    def states(at: np.ndarray) -> np.ndarray:
        node = first + np.clip(
            np.searchsorted(dense.sign[sample] * t, dense.sign[sample] * at) - 1, 0, max(count - 2, 0)
        )
        return between(steps, at, node, dense.k).detach().cpu().numpy().astype(float)

    path = states(places)
    found = sorted(
        (float(dense.sign[sample] * at), e)
        for e, function in enumerate(functions)
        for at in _crossings(function, places, path, states)
    )
    times: list[list[float]] = [[] for _ in functions]
    for at, e in found:
        times[e].append(float(dense.sign[sample] * at))
        if len(times[e]) == functions[e].event.count:
            return Occurred(tuple(map(np.array, times)), times[e][-1])
    return Occurred(tuple(map(np.array, times)), None)


def _crossings(function: EventFunction, places: np.ndarray, path: np.ndarray, states) -> list[float]:
    """The times at which an event happens."""
    values = function(places, path)
    new = values[:-1] != 0  # a zero was seen when it was reached
    new[:1] = True  # as in scipy, leaving zero at the start is an event
    out = []
    for k in np.flatnonzero(function.event.happens(values[:-1], values[1:]) & new):
        a, b = places[k : k + 2]
        known = {0.0: float(values[k]), 1.0: float(values[k + 1])}

        def value(x: float, a=a, b=b, known=known) -> float:
            if x in known:
                return known[x]
            at = np.array([a + x * (b - a)])
            return float(function(at, states(at))[0])

        out.append(float(a + root(value, 0.0, 1.0) * (b - a)))
    return out
