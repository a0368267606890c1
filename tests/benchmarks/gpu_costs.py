"""The constants of the cost model on this device, and the launches and waits that torch.profiler sees."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tally import Tally
from torch.profiler import ProfilerActivity, profile

Act = Callable[[], object]
_REPEATS = 5


@dataclass(frozen=True)
class Constants:
    """Microseconds: what the host spends on a launch, a read of a number, and a small copy to the device."""

    launch: float
    wait: float
    copy: float
    copy_without_wait: float

    def round(self, counted: Tally) -> float:
        """Milliseconds beside the drift that the model expects of a round."""
        copies, blocking = counted.of("copy to the device"), counted.of("blocking copy")
        copying = blocking * self.copy + (copies - blocking) * self.copy_without_wait
        return (counted.of("operation") * self.launch + copying + counted.of("wait") * self.wait) / 1e3


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def microseconds(act: Act, device: torch.device, count: int) -> float:
    """Of one act, in the best of a few series; the device has nothing else to do."""
    best = float("inf")
    for _ in range(_REPEATS):
        finish(device)
        start = time.perf_counter()
        for _ in range(count):
            act()
        finish(device)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / count


def constants(device: torch.device, count: int) -> Constants:
    """Measured with states of 1024 numbers, which take a device next to no time."""
    x, number, host = torch.zeros(1024, device=device), torch.ones((), device=device), torch.zeros(64)
    act: Act = lambda: x.add_(1.0)  # noqa: E731
    act()
    return Constants(
        launch=microseconds(act, device, count),
        wait=microseconds(number.item, device, count),
        copy=microseconds(lambda: host.to(device, copy=True), device, count),
        copy_without_wait=microseconds(lambda: host.to(device, non_blocking=True, copy=True), device, count),
    )


def traced(act: Act, device: torch.device) -> Counter[str]:
    """Launches, copies and waits of an act, as torch.profiler names the calls of CUDA's runtime; none on the CPU."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        act()
        return found
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        act()
        finish(device)
    for event in profiler.events() or ():
        if "LaunchKernel" in event.name:
            found["launch"] += 1
        elif event.name.startswith(("cudaMemcpy", "cuMemcpy")):
            found["copy"] += 1
        elif event.name.startswith(("cudaStreamSynchronize", "cudaEventSynchronize")):
            found["wait"] += 1
    return found
