"""Whether a solution by collocation is right to 100 tolerances, or raises: every problem, tolerance and mode.

``python tests/benchmarks/trust.py`` prints a row for each problem and mode, ``rounds:error/estimate`` in tolerances for
each tolerance, or how it was refused. The exit status is 1 where a result was wrong. The whole takes about an hour:
``--problems lv,kepler_0.3 --modes picard --tolerances 1e-3,1e-6`` makes it a part.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from problems import PROBLEMS, Problem
from trials import MODES, Trial, applies, attempt

TOLERANCES = [float(f"1e-{digits}") for digits in range(3, 14)]


def cell(trial: Trial) -> str:
    if trial.result is None:
        return "refused"
    if not trial.solved:
        return f"{trial.rounds}:{trial.result.name}"
    return f"{trial.rounds}:{trial.error:.0e}/{trial.estimate:.0e}" + " WRONG" * trial.wrong


def row(problem: Problem, mode: str, tolerances: list[float], max_rounds: int) -> list[Trial]:
    trials = [attempt(problem, tol, mode, max_rounds) for tol in tolerances]
    print(f"{problem.name:22} {mode:17}", *(f"{cell(trial):19}" for trial in trials), flush=True)
    return trials


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
    given = parser.parse_args()
    torch.set_num_threads(1)
    modes = chosen(given.modes, list(MODES), "modes")
    problems = [PROBLEMS[name] for name in chosen(given.problems, list(PROBLEMS), "problems")]
    tolerances = [float(each) for each in given.tolerances.split(",")]
    print(f"{'':40}", *(f"{tol:<19g}" for tol in tolerances))
    pairs = [(problem, mode) for problem in problems for mode in modes if applies(problem, mode)]
    trials = [trial for pair in pairs for trial in row(*pair, tolerances, given.max_rounds)]
    raised, wrong = sum(not trial.solved for trial in trials), sum(trial.wrong for trial in trials)
    print(f"{len(trials)} solves, {raised} raised, {wrong} wrong by more than 100 tolerances")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
