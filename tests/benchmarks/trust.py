"""Whether a solution by collocation is right to 100 tolerances, or raises: every problem, tolerance and mode.

``python tests/benchmarks/trust.py`` prints a row for each problem and mode, ``rounds:error/estimate`` in tolerances for
each tolerance, or how it was refused. The exit status is 1 where a result was wrong. The whole takes about an hour:
``--problems lv,kepler_0.3 --modes picard --tolerances 1e-3,1e-6`` makes it a part.

``--batches`` solves the same in batches of 64: every problem at every tolerance once, in the company of others with as
many components, drawn at random (``--seed``). Each sample has its own drift, span and tolerance, and is held to its own
reference. Rounds are then those of the batch. Where a problem's samples are in several batches, so are its row's cells.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from batch_trials import attempt_batch, batches
from problems import PROBLEMS, Problem
from trials import MODES, Trial, applies, attempt

TOLERANCES = [float(f"1e-{digits}") for digits in range(3, 14)]


def cell(trial: Trial) -> str:
    if trial.result is None:
        return "refused"
    if not trial.solved:
        return f"{trial.rounds}:{trial.result.name}"
    return f"{trial.rounds}:{trial.error:.0e}/{trial.estimate:.0e}" + " WRONG" * trial.wrong


def row(problem: Problem, mode: str, trials: list[Trial]) -> list[Trial]:
    print(f"{problem.name:22} {mode:17}", *(f"{cell(trial):19}" for trial in trials), flush=True)
    return trials


def one_by_one(problems: list[Problem], modes: list[str], tolerances: list[float], max_rounds: int) -> list[Trial]:
    pairs = [(problem, mode) for problem in problems for mode in modes if applies(problem, mode)]
    rows = ((*pair, [attempt(pair[0], tol, pair[1], max_rounds) for tol in tolerances]) for pair in pairs)
    return [trial for each in rows for trial in row(*each)]


def in_batches(
    problems: list[Problem], modes: list[str], tolerances: list[float], max_rounds: int, size: int, seed: int
) -> list[Trial]:
    found: dict[tuple[str, str], dict[float, Trial]] = {}
    done: list[Trial] = []
    drawn = [(mode, draws) for mode in modes for draws in batches(problems, mode, tolerances, size, seed)]
    for mode, draws in drawn:
        began = perf_counter()
        trials = attempt_batch(draws, mode, max_rounds)
        solved, rounds = sum(trial.solved for trial in trials), max(trial.rounds for trial in trials)
        print(
            f"# {mode}: {len(draws)} samples of {len(draws[0].problem.y0)} components, {solved} solved, "
            f"{rounds} rounds, {perf_counter() - began:.1f} s",
            flush=True,
        )
        for draw, trial in zip(draws, trials, strict=True):
            own = found.setdefault((mode, draw.problem.name), {})
            own[draw.tol] = trial
            if len(own) == len(tolerances):
                done += row(draw.problem, mode, [own[tol] for tol in tolerances])
    return done


def chosen(text: str | None, every: list[str], what: str) -> list[str]:
    names = every if text is None else text.split(",")
    if unknown := set(names) - set(every):
        raise SystemExit(f"--{what}: not known: {', '.join(sorted(unknown))}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", help="names with commas between; all by default")
    parser.add_argument("--modes", help=", ".join(MODES))
    parser.add_argument("--tolerances", default=",".join(map("{:g}".format, TOLERANCES)))
    parser.add_argument("--max-rounds", type=int, default=1500)
    parser.add_argument("--batches", action="store_true", help="in random company")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the company")
    given = parser.parse_args()
    torch.set_num_threads(1)
    modes = chosen(given.modes, list(MODES), "modes")
    problems = [PROBLEMS[name] for name in chosen(given.problems, list(PROBLEMS), "problems")]
    tolerances = [float(each) for each in given.tolerances.split(",")]
    print(f"{'':40}", *(f"{tol:<19g}" for tol in tolerances))
    company = (given.batch_size, given.seed) if given.batches else ()
    sweep = in_batches if given.batches else one_by_one
    trials = sweep(problems, modes, tolerances, given.max_rounds, *company)
    raised, wrong = sum(not trial.solved for trial in trials), sum(trial.wrong for trial in trials)
    print(f"{len(trials)} solves, {raised} raised, {wrong} wrong by more than 100 tolerances")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
