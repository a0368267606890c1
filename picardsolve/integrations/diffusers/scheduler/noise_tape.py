"""The random generators' states before each step, so that a step draws the same noise at every visit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = list[Tensor]


@dataclass
class NoiseTape:
    """Generator states by step: every visit of a step starts from the state that the sequential loop would give."""

    generators: Sequence[torch.Generator]
    before: dict[int, State] = field(default_factory=dict)

    @staticmethod
    def of(given: Any, device: torch.device) -> "NoiseTape":
        """The tape of a pipeline's ``generator``: one, a list, or None for the device's default."""
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
        """Draw ahead within this context; at its end the generators' states are restored."""
        present = self.states()
        try:
            yield
        finally:
            self.wind(present)

    def start(self, step: int) -> None:
        """Restore the states at the start of ``step``; at the first visit, store the present states."""
        if step in self.before:
            self.wind(self.before[step])
        else:
            self.before[step] = self.states()

    def end(self, step: int) -> None:
        """Store the states at the end of ``step``, where the next step starts."""
        if step + 1 not in self.before:
            self.before[step + 1] = self.states()

    def found(self, step: int, states: State) -> bool:
        """Whether the real ``step`` starts in the predicted states; if not, drop all predictions."""
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
    """Whether two states are equal, so that nothing was drawn between them."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
