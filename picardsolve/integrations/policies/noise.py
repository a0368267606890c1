"""The noise of plans: which robot draws from which random generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

Drawn = tuple[Tensor, Tensor | None]  # the first states (B, D), and the noise of all steps (N, B, D) if any is drawn


@dataclass
class _Stream:
    """A generator, and the robots that draw from it together; None: all robots."""

    robots: list[int] | None
    generator: torch.Generator | None
    seed: int = 0

    def begun(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        return self.generator


class Noise:
    """The random numbers of all plans, one after the other.

    All robots of a batch draw together from one generator, as in the scheduler's own loop. Some robots may begin again
    with a seed of their own. From then on these draw together, the numbers that a batch of these robots alone would
    draw; the numbers of the other robots do not change.

    Args:
        shape: shape of a plan.
        dtype: dtype of the first states.
        noisy: ``(N,)`` whether a step draws noise.
        noise_dtype: dtype that the noise of steps is drawn in; None for ``dtype``.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, noisy: np.ndarray, noise_dtype: torch.dtype | None):
        self._shape, self._dtype, self._noisy, self._noise_dtype = shape, dtype, noisy, noise_dtype or dtype
        self._streams: list[_Stream] = []

    def begin(self, given: int | torch.Generator, robots: list[int] | None = None) -> None:
        """From now on, let some robots, or all, draw from a seed or a generator."""
        stream = _Stream(robots, None, given) if isinstance(given, int) else _Stream(robots, given)
        kept = [] if robots is None else self._streams
        own = set(robots or ())
        # robots that drew together still do, so that the others draw the same; numbers of those that left are not used
        self._streams = [old for old in kept if old.robots is None or not own >= set(old.robots)] + [stream]

    def follow(self, generator: torch.Generator) -> None:
        """From now on, let the robots that have no noise of their own draw from a generator."""
        self._streams[0] = _Stream(None, generator)  # the first stream is always that of all robots

    def check(self, batch: int) -> None:
        """Refuse a batch that lacks robots with a seed of their own.

        Raises:
            ValueError: the batch is too small.
        """
        last = max((robot for stream in self._streams for robot in stream.robots or ()), default=-1)
        if last >= batch:
            raise ValueError(
                f"observation: expected at least {last + 1} robots, for robot {last} was reset with noise of its own, "
                f"got {batch}; pass all of them, or call reset(seed) first."
            )

    def draw(self, batch: int, device: torch.device, start: Tensor | None = None) -> Drawn:
        """The noise of one plan of ``batch`` robots, in the order in which the sequential loop draws.

        Args:
            batch: B.
            device: where plans are made.
            start: ``(B, *shape)`` first states, which are not drawn then.
        """
        first, *others = self._streams
        x, noise = self._drawn(first.begun(device), batch, device, start)
        for stream in others:
            robots: Sequence[int] = stream.robots or ()
            given = None if start is None else start[list(robots)]
            own, own_noise = self._drawn(stream.begun(device), len(robots), device, given)
            x[robots] = own
            if noise is not None and own_noise is not None:
                noise[:, robots] = own_noise
        return x, noise

    def state(self) -> list[tuple[_Stream, Tensor | None]]:
        """The states of all generators."""
        return [(s, None if s.generator is None else s.generator.get_state()) for s in self._streams]

    def wind(self, state: list[tuple[_Stream, Tensor | None]]) -> None:
        """Put the states of all generators back."""
        for stream, at in state:
            if at is None:
                stream.generator = None
            elif stream.generator is not None:
                stream.generator.set_state(at)

    def _drawn(self, generator: torch.Generator, batch: int, device: torch.device, start: Tensor | None) -> Drawn:
        shape, at = (batch, *self._shape), generator.device
        x = torch.randn(shape, generator=generator, device=at, dtype=self._dtype) if start is None else start.clone()
        x = x.flatten(1).to(device, self._dtype)
        if not self._noisy.any():
            return x, None
        noise = torch.zeros(len(self._noisy), *shape, dtype=self._noise_dtype, device=at)
        drawn = np.flatnonzero(self._noisy)
        first, count = int(drawn[0]), len(drawn)
        if drawn[-1] - first == count - 1 and _drawn_alike_together(shape, count, self._noise_dtype, at):
            torch.randn((count, *shape), generator=generator, out=noise[first : first + count])
        else:
            for n in drawn:
                torch.randn(shape, generator=generator, out=noise[n])
        return x, noise.flatten(2).to(x)


@cache
def _drawn_alike_together(shape: tuple[int, ...], count: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether one draw gives the numbers of many: tried, for torch does not say so.

    It does on a CPU where a plan has a multiple of 16 numbers, in a third of the time.
    """
    together, apart = (torch.Generator(device).manual_seed(0) for _ in range(2))
    drawn = torch.randn((count, *shape), generator=together, dtype=dtype, device=device)
    alike = all(torch.equal(x, torch.randn(shape, generator=apart, dtype=dtype, device=device)) for x in drawn)
    return alike and torch.equal(together.get_state(), apart.get_state())
