"""What some objects remember, as it is at one moment; compared to what it is later, and put back."""

import random
import types
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch

from picardsolve.integrations.diffusers.mutable_state.kinds import Place
from picardsolve.integrations.diffusers.mutable_state.reachable import Holder, Reachable, identity, immutable
from picardsolve.integrations.diffusers.mutable_state.tensors import TENSOR, Tensors
from picardsolve.integrations.diffusers.mutable_state.values import same_value


class Snapshot:
    """Everything in reach of some roots that can change, as it is now.

    A look (`unchanged`) compares by identity first, and searches nothing. Tensors are compared by version, by address,
    and by value: all values of small ones, a sample of large ones, since writes through ``.data`` or a numpy array
    leave the version as it is.

    Args:
        roots: objects, by the names that messages give them.
        ignored: what is not looked at.

    Attributes:
        reach: the places.
    """

    def __init__(self, roots: Mapping[str, Any], ignored: frozenset[Holder] = frozenset()):
        self._roots, self._ignored = roots, ignored
        self.reach = Reachable(roots, ignored)
        self._tensors = Tensors([place.held for place in self.reach.places.values() if place.kind is TENSOR])
        skipped: dict[Any, set[Any]] = {}
        for ident, key in ignored:
            skipped.setdefault(ident, set()).add(key)
        mark = (object(),)  # behind every place: an element that moves from one to the next does not go unseen
        live = [
            (_Without(place, skipped[ident]),) if ident in skipped else place.live()
            for ident, place in self.reach.places.items()
        ]
        self._live = list(chain.from_iterable((*parts, mark) for parts in live if parts))
        self._then = list(chain.from_iterable(self._live))

    def retaken(self, ignored: frozenset[Holder] = frozenset()) -> "Snapshot":
        """The same roots as they are now."""
        return Snapshot(self._roots, ignored)

    def current(self, ignored: frozenset[Holder] = frozenset()) -> "Snapshot":
        """The same roots as they are now: this snapshot if nothing has changed."""
        return self if self.unchanged else self.retaken(ignored)

    @property
    def unchanged(self) -> bool:
        """Whether all is as it was. A quick look: it may be False of what is equal, but another object."""
        try:
            return (
                not any(self.reach.empty)
                and list(chain.from_iterable(self._live)) == self._then
                and self._tensors.unchanged
            )
        except (RuntimeError, ValueError, TypeError):  # two tensors or arrays that are not the same object
            return False

    def changes(self, now: "Snapshot") -> list[Holder]:
        """Where a later snapshot differs."""
        return list(_Comparison(self.reach, now.reach, self._ignored).changes(self._roots))

    def restore(self) -> bool:
        """Put everything back as it was; whether all of it could be."""
        for obj in self.reach.empty:
            if obj:
                obj.clear()
        return all([place.restore() for place in self.reach.places.values()])


class _Without:
    """The content of a place but for some keys."""

    def __init__(self, place: Place, keys: set[Any]):
        self._place, self._keys = place, keys

    def __iter__(self) -> Iterator[Any]:
        return iter([held for held in self._place.kind.read(self._place.obj).items() if held[0] not in self._keys])


class _Comparison:
    """Of what was in reach with what is."""

    def __init__(self, then: Reachable, now: Reachable, ignored: frozenset[Holder]):
        self._then, self._now, self._ignored = then.places, now.places, ignored
        self._holders = then.holders
        self._compared: set[tuple[Any, Any]] = set()

    def changes(self, roots: Mapping[str, Any]) -> Iterator[Holder]:
        """Where the two differ."""
        for name, root in roots.items():
            yield from self._objects(root, root, (None, name))
        for ident in self._then.keys() & self._now.keys():
            yield from self._places(ident, ident, self._holders[ident][0])

    def _objects(self, then: Any, now: Any, at: Holder) -> Iterator[Holder]:
        a, b = identity(then), identity(now)
        if a in self._then and b in self._now:
            if a != b:
                yield from self._places(a, b, at)
        elif a in self._then or b in self._now or not _same_object(then, now):
            yield at

    def _places(self, a: Any, b: Any, at: Holder) -> Iterator[Holder]:
        if (a, b) in self._compared:
            return
        self._compared.add((a, b))
        then, now = self._then[a], self._now[b]
        if then.kind is not now.kind or not then.same_as(now):
            yield at
        elif then.kind.same is None:
            for key in {**then.held, **now.held}:
                if (a, key) in self._ignored:
                    continue
                if key in then.held and key in now.held:
                    yield from self._objects(then.held[key], now.held[key], (a, key))
                else:
                    yield a, key


def _same_object(then: Any, now: Any) -> bool:
    """Whether two objects that are no places are the same, or do the same."""
    if then is now or (immutable(then) and same_value(then, now)):
        return True
    if isinstance(then, types.MethodType) and isinstance(now, types.MethodType):  # made anew at every access
        return then.__func__ is now.__func__ and then.__self__ is now.__self__
    return False


def random_generators() -> dict[str, Any]:
    """The random generators of the process, by name."""
    found: dict[str, Any] = {"torch's random numbers": torch.default_generator}
    if torch.cuda.is_initialized():
        found |= {f"random numbers of cuda:{k}": g for k, g in enumerate(torch.cuda.default_generators)}
    found["numpy's random numbers"] = np.random.mtrand._rand
    found["python's random numbers"] = random._inst  # pyright: ignore
    return found
