"""Draws how a window slides over a pendulum: ``python examples/sliding_window.py --out docs/images/window.svg``.

Each frame is one round of `picardsolve.solve`: the states that its one drift call was asked about, as the drift saw
them, and the answer of the solver that goes step by step. No number is made up for the picture.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import picardsolve as ps

STEPS, WINDOW, SPAN, TOL = 80, 24, 6.0, 1e-3
WIDTH, HEIGHT, LEFT, TOP = 720, 300, 20, 64
SECONDS = 0.8  # a round
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #333; }
  .path { fill: none; stroke: #999; stroke-width: 1.5; }
  .window { fill: #0b62c4; opacity: 0.10; }
  .now { fill: #0b62c4; } .done { fill: #1a8a3a; }
  .frame { visibility: hidden; animation: show TOTALs steps(1) infinite; }
  @keyframes show { 0% { visibility: visible; } SHARE%, 100% { visibility: hidden; } }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #131416; } text { fill: #ddd; }
    .now, .window { fill: #6ab0ff; } .done { fill: #56d179; }
  }
  @media (prefers-reduced-motion: reduce) { .frame { animation: none; } .frame:last-of-type { visibility: visible; } }
"""


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    """Many states at once, ``(rows, 2)``."""
    return torch.stack([y[:, 1], -2 * torch.sin(y[:, 0])], -1)


def rounds() -> tuple[list[tuple[Tensor, Tensor]], ps.Solution, Tensor]:
    """Times and angles of every round, the solution, and the sequential one's angles."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(t: Tensor, y: Tensor) -> Tensor:
        seen.append((t[:, 0].clone(), y[:, 0].clone()))
        return pendulum(t, y)

    y0, ts = torch.tensor([1.2, 0.0]).double(), ps.grids.uniform(0, SPAN, STEPS)
    how = {"integrator": ps.Euler(), "iteration": ps.Picard(), "guess": ps.Copy(), "stop": "increment"}
    sol = ps.solve(ps.ODE(watched), y0, ts, window=WINDOW, tol=TOL, **how)
    reference = ps.sequential(ps.ODE(pendulum), y0, ts, integrator=ps.Euler()).ys[:, 0]
    return seen, sol, reference


def x_of(t: float) -> float:
    """The place of a time."""
    return LEFT + (WIDTH - 2 * LEFT) * t / SPAN


def y_of(angle: float) -> float:
    """The place of an angle."""
    return TOP + (HEIGHT - TOP - 24) * (1.8 - angle) / 3.6


def frame(number: int, t: Tensor, angle: Tensor, solution: Tensor) -> str:
    """What is known before the window, in green, and the states in the window, in blue."""
    step = SPAN / STEPS
    begin = round(float(t[0]) / step)
    done = [(n * step, float(solution[n])) for n in range(begin)]
    dots = [f'<circle class="done" cx="{x_of(s):.1f}" cy="{y_of(a):.1f}" r="3.5"/>' for s, a in done]
    pairs = zip(t.tolist(), angle.clamp(-1.9, 1.9).tolist(), strict=True)
    dots += [f'<circle class="now" cx="{x_of(s):.1f}" cy="{y_of(a):.1f}" r="3.5"/>' for s, a in pairs]
    left, right = x_of(float(t[0])) - 5, x_of(float(t[-1])) + 5
    said = f"round {number}: {len(t)} steps in one batch, {begin} of {STEPS} done"
    return (
        f'<g class="frame" style="animation-delay: {(number - 1) * SECONDS:.1f}s">'
        f'<rect class="window" x="{left:.1f}" y="{TOP - 8}" width="{right - left:.1f}" height="{HEIGHT - TOP - 8}"/>'
        f'{"".join(dots)}<text x="{LEFT}" y="46">{said}</text></g>'
    )


def picture() -> str:
    """The animation, as SVG."""
    seen, sol, reference = rounds()
    line = " ".join(f"{x_of(n * SPAN / STEPS):.1f},{y_of(float(a)):.1f}" for n, a in enumerate(reference))
    frames = [frame(number, *each, sol.ys[:, 0]) for number, each in enumerate(seen, 1)]
    total = len(frames) * SECONDS
    style = STYLE.replace("TOTAL", f"{total:.1f}").replace("SHARE", f"{100 / len(frames):.3f}")
    title = f"A pendulum: {STEPS} steps in {len(frames)} rounds. Grey: one step after the other."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"<style>{style}</style>"
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="{LEFT}" y="24">{title}</text>'
        f'<polyline class="path" points="{line}"/>{"".join(frames)}</svg>\n'
    )


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output/window.svg"))
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture())
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
