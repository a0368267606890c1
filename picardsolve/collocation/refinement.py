"""How errors are propagated to the ends, and which samples march again because they exceed the tolerance there."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from picardsolve.collocation.accepted import Segments
from picardsolve.collocation.arrays import Array, Arrays
from picardsolve.collocation.chains import Chains
from picardsolve.collocation.failures import Failure, Unreachable
from picardsolve.collocation.initial_value import Limits
from picardsolve.collocation.march import March
from picardsolve.collocation.path import Path, counted
from picardsolve.integrators.adaptive import ENOUGH, exceeds

_AIM = 0.2  # tolerances that another march aims at
_UNSURE = 0.3  # part of a segment's estimated error that the estimate itself is off by, often
_FINEST = 16.0  # units of rounding
_HOPELESS = 10.0  # tolerances: rounding alone
_ROWS = 20_000  # of a round of Newton's method that is guided


@dataclass(frozen=True)
class PropagatedError:
    """Errors of segments, propagated by their flows: estimates at the ends of S segments of A samples.

    Attributes:
        chains: the order of the segments.
        error: ``(S, d)`` the size of what is to be added to the states there, and the standard deviation of that.
        floor: ``(S, d)`` standard deviation from rounding.
        allowed: ``(S, d)`` error that the user's tolerance allows.
        largest: ``(A, d)`` largest values of the components.
        growth: ``(A,)`` largest factor by which an error, in tolerances, grew on its way to the end; NaN where flows
            are not known.
    """

    chains: Chains
    error: Array
    floor: Array
    allowed: Array
    largest: Array
    growth: np.ndarray

    @staticmethod
    def of(segments: Segments, limits: Limits) -> "PropagatedError":
        """``e[s + 1] = flow[s] e[s] + error[s]``; where flows are not known, sizes of errors are added up.

        Errors of segments may cancel each other. What their estimates are off by does not.
        """
        chains = Chains(segments.sample)
        with np.errstate(all="ignore"):
            found = _summed(segments, chains, limits) if segments.flow is None else _flown(segments, chains, limits)
            allowed = limits.of_user(segments.scale, segments.sample)
        error, floor, largest, growth = found
        return PropagatedError(chains, error, floor, allowed, largest, growth)

    def before(self, ratios: np.ndarray) -> np.ndarray:
        """``(S, ...)``: what is at the end of the segment before; 0 at the first of a sample."""
        out = np.concatenate([ratios[:1], ratios[:-1]])
        out[self.chains.begins] = 0
        return out


def _summed(segments: Segments, chains: Chains, limits: Limits) -> tuple[Array, Array, Array, np.ndarray]:
    """Error, rounding, largest values and growth without flows."""
    arrays = limits.problem.arrays
    sizes = arrays.size(segments.error)
    error, floor = (chains.carried(arrays, part) + part for part in (sizes, segments.noise))
    return error, floor, _largest(arrays, chains, segments.scale), np.full(len(chains.counts), np.nan)


def _largest(arrays: Arrays, chains: Chains, values: Array) -> Array:
    """The largest values of each sample, ``(A, d)``."""
    order, _, sizes = chains.by_level
    values = arrays.take(values, order)
    out, first = values[: sizes[0]], sizes[0]
    for size in sizes[1:]:
        out = arrays.concat([arrays.larger(out[:size], values[first : first + size]), out[size:]])
        first += size
    return arrays.take(out, np.argsort(chains.chain[order[: sizes[0]]]))


def _flown(segments: Segments, chains: Chains, limits: Limits) -> tuple[Array, Array, Array, np.ndarray]:
    """The same, carried by the flows."""
    arrays, (order, back, sizes) = limits.problem.arrays, chains.by_level
    flows, added, noise = (arrays.take(part, order) for part in (segments.flow, segments.error, segments.noise))
    identity, first, errors, spreads = arrays.constant(_identity(noise.shape[1])), 0, [], []
    flown = identity + arrays.zeros(sizes[0], 1, 1)
    error, covariance, unsure = 0 * added[: sizes[0]], 0 * flown, 0 * flown
    for size in sizes:
        now = slice(first, first + size)
        flow = flows[now]
        across = flow.swapaxes(1, 2)
        error = (flow @ error[:size, :, None])[..., 0] + added[now]
        own = (noise[now] ** 2)[:, None] * identity  # roundings are independent
        covariance = flow @ covariance[:size] @ across + own
        doubt = _UNSURE * added[now]
        unsure = flow @ unsure[:size] @ across + doubt[:, :, None] * doubt[:, None]
        flown = arrays.concat([flow @ flown[:size], flown[size:]])
        errors.append(arrays.size(error) + arrays.root(arrays.larger((unsure * identity).sum(2), 0.0)))
        spreads.append(arrays.larger((covariance * identity).sum(2), 0.0))
        first += size
    largest = _largest(arrays, chains, segments.scale)
    allowed = limits.allowed(largest, segments.sample[chains.begins])
    flown = arrays.take(flown, np.argsort(chains.chain[order[: sizes[0]]]))
    error, spread = (arrays.take(arrays.concat(part), back) for part in (errors, spreads))
    return error, arrays.root(spread), largest, _growth(*arrays.fetch(flown, allowed))


@lru_cache
def _identity(d: int) -> np.ndarray:
    return np.eye(d)[None]


def _growth(flown: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Largest factor by which an error, in tolerances, grew."""
    flown = flown * (allowed[:, None] / allowed[:, :, None])
    finite = np.asarray(np.isfinite(flown).all((1, 2)))
    return np.where(finite, np.linalg.norm(np.where(finite[:, None, None], flown, 0), 2, (1, 2)), np.inf)


def _worst(march: March, segments: Segments, found: PropagatedError, also: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The largest errors and roundings, in tolerances, at the ends of the segments that hold wanted times: ``(2, A)``.

    Args:
        march: of the samples.
        segments: of the samples.
        found: their errors.
        also: ``(E,)`` elapsed times that are wanted beside the problem's.
        of: ``(E,)`` their samples.
    """
    arrays, chains = march.arrays, found.chains
    sample = segments.sample[chains.begins]
    ratios = [arrays.largest(part / found.allowed) for part in (found.error, found.floor)]
    asked = march.problem.elapsed[1:, sample]
    t = np.concatenate([asked.T.ravel(), also])
    whose = np.concatenate([np.repeat(np.arange(len(sample)), len(asked)), np.searchsorted(sample, of)])
    place = counted(segments.end, segments.sample, t, sample[whose], before=True)
    holds = chains.begins[whose] + np.minimum(place, chains.counts[whose] - 1)
    out = np.zeros((2, len(sample)))
    for row, ratio in zip(out, arrays.fetch(*ratios), strict=True):
        either = np.maximum(ratio, found.before(ratio))
        np.maximum.at(row, whose, either[holds])
    return np.where(np.isfinite(out), out, np.inf)


def refine(
    march: March, sample: np.ndarray, again: np.ndarray, also: np.ndarray, of: np.ndarray
) -> tuple[np.ndarray, dict[int, Failure], np.ndarray]:
    """Let samples that are done march again to a sharper tolerance, guided by their paths, where errors are too large.

    Args:
        march: of the samples.
        sample: ``(A,)`` that are done, in order.
        again: ``(A,)`` whether another march may be begun.
        also: ``(E,)`` elapsed times of events.
        of: ``(E,)`` their samples.

    Returns:
        the samples that march again, the failures of those whose error stays far above the tolerance, and the samples
        whose error, or twice the deviation by rounding, stays a little above it.
    """
    arrays, limits, n = march.arrays, march.limits, march.nodes.n
    segments = march.accepted.of_samples(sample)
    assert segments is not None
    with np.errstate(all="ignore"):
        found = PropagatedError.of(segments, limits)
        error, floor = _worst(march, segments, found, also, of)
        rounding = _FINEST * limits.problem.unit * found.largest / limits.allowed(found.largest, sample)
        (finest,) = arrays.fetch(arrays.largest(rounding))  # beyond, all is rounding
        factor = np.maximum(np.maximum(_AIM / error, 1e-4), finest)
    sharper = (error > ENOUGH) & (floor <= _HOPELESS)
    goes_on = sharper & again & (factor < 1)
    beyond = np.where(floor > _HOPELESS, floor, error)
    hopeless = (floor > _HOPELESS) | (sharper & ~goes_on & (error > _HOPELESS))
    refused = zip(sample[hopeless].tolist(), beyond[hopeless].tolist(), strict=True)
    failures: dict[int, Failure] = {i: Unreachable(by) for i, by in refused}
    more = sample[goes_on]
    if len(more):
        limits.scale[more] *= factor[goes_on]
        if march.sweep.quadratic:
            most = max(_ROWS // (n * (1 + march.problem.unknowns)), 1)
            limits.in_flight[more] = np.maximum(limits.in_flight[more], most)
        own = march.accepted.of_samples(more)
        assert own is not None
        march.guide.add(more, Path(arrays, march.nodes, own), factor[goes_on] ** (1 / n))
        march.begin(more)
    late = exceeds(error, floor) & ~goes_on & ~hopeless
    return more, failures, sample[late]
