"""The random generators' states before each step: what makes a step's noise a function of the step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = list[Tensor]


@dataclass
class NoiseTape:
    """Generator states by step.

    The first visit of a step finds the generators where the sequential loop would have left them; every later visit
    is given the same state again.
    """

    generators: Sequence[torch.Generator]
    before: dict[int, State] = field(default_factory=dict)

    @staticmethod
    def of(given: Any, device: torch.device) -> "NoiseTape":
        """Of what a pipeline passes as ``generator``: one, a list, or None for the device's own."""
        if given is None:
            cuda = device.type == "cuda"
            return NoiseTape([torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator])
        return NoiseTape(list(given) if isinstance(given, list | tuple) else [given])

    def states(self) -> State:
        """The generators' present states."""
        return [generator.get_state() for generator in self.generators]

    def wind(self, states: State) -> None:
        """Put the generators into given states."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Visit steps ahead, and leave the generators as they were."""
        present = self.states()
        try:
            yield
        finally:
            self.wind(present)

    def start(self, step: int) -> None:
        """Wind to where ``step`` starts; at its first visit that is where the generators are."""
        if step in self.before:
            self.wind(self.before[step])
        else:
            self.before[step] = self.states()

    def end(self, step: int) -> None:
        """Note where ``step`` ended: the next one starts there."""
        if step + 1 not in self.before:
            self.before[step + 1] = self.states()

    def found(self, step: int, states: State) -> bool:
        """Whether ``step``, reached for real in ``states``, was foreseen so; if not, forget what was foreseen."""
        foreseen = self.before.get(step)
        self.before[step] = states
        if foreseen is None or same(foreseen, states):
            return foreseen is not None
        self.before = {step: states}
        return False

    def forget(self, step: int) -> None:
        """Drop the states of the steps before ``step``."""
        for old in [n for n in self.before if n < step]:
            del self.before[old]


def same(a: State, b: State) -> bool:
    """Whether nothing was drawn between two states."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
