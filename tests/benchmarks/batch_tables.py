"""Tables of batches, from the records of `batches.py`: summaries, and a line for each batch and tolerance."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "odes_benchmarks.md"
BEGIN, END = "<!-- batches: begin -->", "<!-- batches: end -->"
REGRET = 1.2  # times as long as torchdiffeq's best
RIVAL = "torchdiffeq"
Record = dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The fastest of some peers.

    Attributes:
        name: which.
        seconds: it takes.
        reached: whether it got to the error; less is known if not.
    """

    name: str
    seconds: float
    reached: bool = True


def at_error(record: Record, family: str = RIVAL) -> Best:
    """At the error of ours: of those that get there, or else of all."""
    found = [
        Best(name, peer["seconds"], peer["reached"])
        for name, peer in record["peers"].items()
        if name.startswith(family) and isfinite(peer["seconds"])
    ]
    there = [best for best in found if best.reached]
    return min(there or found, key=lambda best: best.seconds, default=Best("", nan, False))


def at_tolerance(record: Record, family: str = RIVAL) -> Best:
    """At the tolerance of ours, whatever the errors."""
    found = [
        Best(name, peer["same"]["seconds"])
        for name, peer in record["peers"].items()
        if name.startswith(family) and peer["same"] and not peer["same"]["failure"]
    ]
    return min(found, key=lambda best: best.seconds, default=Best("", nan))


def ratio(record: Record, of: Callable[..., Best] = at_error, family: str = RIVAL) -> float:
    """Times that ours is faster; NaN where one of the two failed."""
    return nan if record["failure"] else of(record, family).seconds / record["seconds"]


def off(record: Record) -> float:
    return max(record["error"], record["gradient_error"]) / record["tolerance"]


def where(record: Record) -> str:
    what = f"LV {record['batch']}" if record["drift"] == "lotka_volterra" else f"{record['batch']} x {record['size']}"
    return what + (" f32" if record["dtype"] == "float32" else "")


def times(value: float) -> str:
    return "-" if not isfinite(value) else f"{value:.0f}x" if value >= 10 else f"{value:.2f}x"


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def summary(records: Sequence[Record]) -> list[str]:
    """A line for each mode, solver of ours and tolerance."""
    heads = (
        *("", "ours", "tolerance", "torchdiffeq's best / ours, at the same error: median, worst", "below 1 / 1.2"),
        *("at the same tolerance: median", "torchode's best / ours, at the same error: median", "solved"),
        "error in tolerances: median, worst",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for mode in unique(record["mode"] for record in records):
        for solver in unique(record["solver"] for record in records):
            for tol in unique(record["tolerance"] for record in records if record["mode"] == mode):
                some = [r for r in records if (r["mode"], r["solver"], r["tolerance"]) == (mode, solver, tol)]
                if some:
                    lines.append(f"| {mode} | {solver} | {tol:.0e} | {figures(some)} |")
    return lines


def figures(records: Sequence[Record]) -> str:
    known = [(ratio(record), where(record)) for record in records if isfinite(ratio(record))]
    solved = [record for record in records if not record["failure"]]
    if not known:
        return f"- | - | - | - | {len(solved)} of {len(records)} | -"
    worst, place = min(known)
    below = sum(value < 1 / REGRET for value, _ in known)
    same, third = (
        median([value for value in values if isfinite(value)] or [nan])
        for values in (
            [ratio(record, at_tolerance) for record in solved],
            [ratio(record, family="torchode") for record in solved],
        )
    )
    errors = [off(record) for record in solved]
    return (
        f"{times(median(value for value, _ in known))}, {times(worst)} ({place}) | {below} of {len(known)} | "
        f"{times(same)} | {times(third)} | {len(solved)} of {len(records)} | {median(errors):.1g}, "
        f"{max(errors):.1g}"
    )


def details(records: Sequence[Record]) -> list[str]:
    """A line for each of our solvers, batch and tolerance: ours, and peers at the same error."""
    lines = []
    for mode in unique(record["mode"] for record in records):
        some = [record for record in records if record["mode"] == mode]
        rivals = unique(name for record in some for name in record["peers"])
        lines += ["", mode, f"{'':57}" + " " * 62 + "ms at that error"]
        lines.append(
            f"{'batch x d (hidden)':20} {'tol':>5} {'':20} {'ms':>8} {'error':>7} {'rms':>7} {'grads':>7} {'calls':>6} "
            f"{'rows':>9} {'ratio':>7} {'at tol':>7} " + " ".join(f"{short(name):>13}" for name in rivals) + "  notes"
        )
        lines += [detail(record, rivals) for record in some]
    return lines


def short(name: str) -> str:
    return name.replace("torchdiffeq", "tde").replace("torchode", "tode").replace("adjoint", "adj")


def detail(record: Record, rivals: Sequence[str]) -> str:
    hidden = f" ({record['hidden']})" if record["hidden"] else ""
    head = f"{where(record) + hidden:20} {record['tolerance']:5.0e} {record['solver']:20} "
    if record["failure"]:
        return head + record["failure"]
    tol = record["tolerance"]
    scaled = [f"{value / tol:7.1g}" for value in (record["error"], record["rms"], record["gradient_error"])]
    columns = " ".join(f"{beside(record['peers'].get(name)):>13}" for name in rivals)
    return (
        f"{head}{record['seconds'] * 1e3:8.1f} {' '.join(scaled)} {record['calls']:6d} {record['rows']:9d} "
        f"{times(ratio(record)):>7} {times(ratio(record, at_tolerance)):>7} {columns}  {record['note']}"
    )


def beside(peer: dict[str, Any] | None) -> str:
    if peer is None or not isfinite(peer["seconds"]):
        return "-"
    return f"{'' if peer['reached'] else '> '}{peer['seconds'] * 1e3:.1f}"


def failures(records: Sequence[Record]) -> list[str]:
    """What was not solved, the same reasons together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        if record["failure"]:
            key = record["mode"], record["solver"], record["failure"].split(" with ")[0][:110]
            found.setdefault(key, []).append(f"{where(record)} at {record['tolerance']:.0e}")
    return [f"* {mode}, {solver}: {why}: {', '.join(places)}" for (mode, solver, why), places in found.items()]


def peers_alone(records: Sequence[Record]) -> list[str]:
    """Runs of peers at our tolerances: ms, error in tolerances, calls."""
    lines, seen = ["", "peers at the same tolerance: ms, error in tolerances, calls"], set()
    for record in records:
        key = record["mode"], where(record), record["tolerance"]
        if key in seen:
            continue
        seen.add(key)
        cells = []
        for name, peer in record["peers"].items():
            same = peer["same"]
            if same and not same["failure"]:
                away = max(same["error"], same["gradient_error"]) / record["tolerance"]
                cells.append(f"{short(name)} {same['seconds'] * 1e3:.1f}, {away:.1g}, {same['calls']}")
        lines.append(f"{record['mode'][:10]:10} {where(record):12} {record['tolerance']:5.0e} | " + " | ".join(cells))
    return lines


def print_all(kept: dict[str, Any], summary_too: bool = True, details_too: bool = True) -> None:
    """To the terminal."""
    records = kept["records"]
    parts = [[kept["about"]]] if kept["about"] else []
    if details_too:
        parts += [details(records), peers_alone(records)]
    if summary_too:
        parts += ["", *summary(records)], ["", "Not solved:", *(failures(records) or ["* nothing"])]
    for part in parts:
        print("\n".join(part), flush=True)


def write(kept: dict[str, Any]) -> None:
    """Into the page, between its marks; and its picture."""
    from batch_pictures import draw  # needs matplotlib, which a run does not

    records, text = kept["records"], PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    picture = draw(records)
    parts = [
        BEGIN,
        f"Measured on: {kept['about']}.",
        f"![Times that ours is faster than torchdiffeq's best at the same error](images/{picture.name})",
        "\n".join(summary(records)),
        "Not solved:\n\n" + "\n".join(failures(records) or ["* nothing"]),
        "```\n" + "\n".join(details(records)).strip("\n") + "\n```",
        "```\n" + "\n".join(peers_alone(records)).strip("\n") + "\n```",
        END,
    ]
    PAGE.write_text(before + "\n\n".join(parts) + after)
    print(f"written: {PAGE}, {picture}")
