"""Spans of a device's time that nobody waits for until they are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Span:
    """Seconds from one moment to another, on the device that works then.

    A CPU is done when a call returns. A GPU works on: events tell when it began and ended, and reading them waits.

    Attributes:
        host: seconds that have passed on the host.
        events: at the beginning and at the end of the work of a GPU; None elsewhere.
        before: seconds on the host from the beginning of the span to that of the work.
    """

    host: float = 0.0
    events: tuple[Any, Any] | None = None
    before: float = 0.0

    @property
    def seconds(self) -> float:
        """The seconds; waits until the device has finished."""
        if self.events is not None:
            first, last = self.events
            last.synchronize()
            worked = self.before + first.elapsed_time(last) / 1e3
            self.host, self.events = max(self.host, worked), None
        return self.host

    def __getstate__(self) -> dict[str, Any]:
        return {"host": self.seconds, "events": None, "before": 0.0}


def event_on(device: torch.device | None) -> Any:
    """An event that the device reaches when it has done all that it was given; None for a device without events."""
    return _MAKE[device.type](device) if device is not None and device.type in _MAKE else None


def _cuda(device: torch.device) -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


_MAKE: dict[str, Callable[[torch.device], Any]] = {"cuda": _cuda}
