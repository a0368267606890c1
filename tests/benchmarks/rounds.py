"""What a round costs beside the drift, by integrator and iteration: operations, copies, waits and milliseconds.

``python tests/benchmarks/rounds.py`` prints the table of ``docs/devices.md``; with the name of a path, such as "Euler,
Picard", it prints which functions of the library ask for what in its last round. Numbers are the most of any round of a
window of 32 steps whose four samples part ways, on the simulated device of ``tests/simulated_device.py``. Milliseconds
are the least of any round on the CPU with one thread, for 16 states of 1024 numbers and for 2 of 64.
"""

import sys
from pathlib import Path as File

import torch

sys.path.insert(0, str(File(__file__).parents[1]))

from round_costs import PATHS, Path, rounds_of, seconds_of

WIDTH, BATCH = 32, 4
STATES = ((16, 1024), (2, 64))
REPEATS = 3
NOISE = "picardsolve/brownian"
COUNTED = ("operation", "kernel", "copy to the device", "blocking copy", "wait")
HEADINGS = ("operations", "kernels", "of the noise", "copies to the device", "blocking", "waits")


def counts(path: Path) -> list[int]:
    """Of the busiest round: the kinds of events, with the kernels of the noise apart."""
    rounds = rounds_of(path, WIDTH, BATCH)
    most = {}
    for kind in COUNTED:
        most[kind] = max((x.outside(NOISE) if kind in ("operation", "kernel") else x).of(kind) for x in rounds)
    noise = max(x.of("kernel") - x.outside(NOISE).of("kernel") for x in rounds)
    return [most["operation"], most["kernel"], noise, *(most[kind] for kind in COUNTED[2:])]


def milliseconds(path: Path, batch: int, size: int) -> str:
    """Of the shortest round."""
    if path.name.endswith("Newton") and size > 64:
        return "-"
    return f"{1e3 * min(min(seconds_of(path, WIDTH, batch, size)) for _ in range(REPEATS)):.2f}"


def places(path: Path) -> None:
    """What each function asks for in the last of the rounds."""
    last = rounds_of(path, WIDTH, BATCH)[-1]
    for kind in COUNTED:
        print(f"\n{last.of(kind):8d}  of kind {kind}\n{last.table(kind)}")


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        places(PATHS[sys.argv[1]])
        return
    sizes = [f"ms, {batch} x {size}" for batch, size in STATES]
    print("| integrator, iteration | " + " | ".join((*HEADINGS, *sizes)) + " |")
    print("|---|" + "---|" * (len(HEADINGS) + len(sizes)))
    for name, path in PATHS.items():
        cells = [*map(str, counts(path)), *(milliseconds(path, *state) for state in STATES)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
