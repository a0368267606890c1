"""What a device was asked for, and by which function.

The kinds of events:

* "operation": everything that acts on a device tensor, views and allocations included.
* "kernel": operations without views, allocations and transfers. An operation that takes several launches on a GPU, as
  `sort` or `cumsum` may, counts once.
* "copy to the device": explicit, or of an index that lies on the host. "blocking copy": those of them that are not
  ``non_blocking``: torch waits for the stream after them.
* "copy to the host": explicit, or the read of a number.
* "wait": where the host cannot go on before the device has answered: copies to the host, reads of a number, and
  operations whose result has a shape that depends on values (`nonzero`, an index of booleans), or that raise by values.
"""

import sys
from collections import Counter
from functools import cache
from pathlib import Path

KINDS = ("operation", "kernel", "copy to the device", "blocking copy", "copy to the host", "wait")
SOURCES = ("picardsolve", "integrations")  # the packages whose functions are named


class Tally(Counter[tuple[str, str]]):
    """How often each kind of event was asked for by each function: ``tally["kernel", "picardsolve/x.py sweep"]``."""

    def of(self, kind: str) -> int:
        """Events of a kind."""
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}.")
        return sum(number for (each, _), number in self.items() if each == kind)

    def since(self, earlier: "Tally") -> "Tally":
        """What was counted after a copy of this tally was taken."""
        return Tally({key: number - earlier[key] for key, number in self.items() if number != earlier[key]})

    def outside(self, folder: str) -> "Tally":
        """What was not asked for by the functions of a folder, such as "picardsolve/brownian"."""
        return Tally({key: number for key, number in self.items() if not key[1].startswith(folder)})

    def table(self, kind: str) -> str:
        """The places of a kind, the busiest first."""
        places = [(number, place) for (each, place), number in self.items() if each == kind]
        return "\n".join(f"{number:8d}  {place}" for number, place in sorted(places, reverse=True))


def place_of_call() -> str:
    """The innermost function of `SOURCES` that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        file = _within_sources(frame.f_code.co_filename)
        if file:
            return f"{file} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _within_sources(file: str) -> str:
    """The path of a file from `SOURCES` on; empty for others."""
    parts = Path(file).parts
    return next(("/".join(parts[parts.index(source) :]) for source in SOURCES if source in parts), "")
