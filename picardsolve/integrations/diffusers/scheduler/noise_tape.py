"""The random generators' states before each step, so that the same step always draws the same noise."""

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

    At the first visit of a step the generators are in the state that the sequential loop would leave them in. Every
    later visit starts from the same state.
    """

    generators: Sequence[torch.Generator]
    before: dict[int, State] = field(default_factory=dict)

    @staticmethod
    def of(given: Any, device: torch.device) -> "NoiseTape":
        """The tape of a pipeline's ``generator``: one, a list, or None for the device's own."""
        if given is None:
            cuda = device.type == "cuda"
            return NoiseTape([torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator])
        return NoiseTape(list(given) if isinstance(given, list | tuple) else [given])

    def states(self) -> State:
        """The generators' present states."""
        return [generator.get_state() for generator in self.generators]

    def wind(self, states: State) -> None:
        """Set the states of the generators."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Draw ahead within this context; at its end the generators are as before."""
        present = self.states()
        try:
            yield
        finally:
            self.wind(present)

    def start(self, step: int) -> None:
        """Set the states at the start of ``step``; at the first visit they are the present ones."""
        if step in self.before:
            self.wind(self.before[step])
        else:
            self.before[step] = self.states()

    def end(self, step: int) -> None:
        """Note the states at the end of ``step``, where the next step starts."""
        if step + 1 not in self.before:
            self.before[step + 1] = self.states()

    def found(self, step: int, states: State) -> bool:
        """Whether ``step``, reached for real in ``states``, is as predicted; if not, drop all predictions."""
        predicted = self.before.get(step)
        self.before[step] = states
        if predicted is None or same(predicted, states):
            return predicted is not None
        self.before = {step: states}
        return False

    def drop_before(self, step: int) -> None:
        """Drop the states of steps before ``step``."""
        for old in [n for n in self.before if n < step]:
            del self.before[old]


def same(a: State, b: State) -> bool:
    """Whether nothing was drawn between two states."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
