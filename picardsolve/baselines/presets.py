"""Published methods by name: keyword arguments for `picardsolve.solve`."""

from dataclasses import replace
from typing import Any

from picardsolve.baselines.anderson import Anderson
from picardsolve.baselines.parareal import Parareal
from picardsolve.fixed_point.guesses import Copy, FrozenSample
from picardsolve.fixed_point.iterations import Newton, Picard
from picardsolve.problem.checks import check_optional_positive_integer

_CHORDS = {4: (0, 8, 16, 32), 6: (0, 3, 6, 12, 24, 36), 8: (0, 2, 4, 8, 16, 24, 32, 40)}
_PUBLISHED = 50  # number of steps of the published grid


def paradigms(tol: float = 0.1) -> dict[str, Any]:
    """ParaDiGMS: Picard iteration over a sliding window (Shih et al., NeurIPS 2023, arXiv 2305.16317, algorithm 1).

    States that enter the window are copies of the last one. A state is accepted when a round changes it by less than
    ``tol`` times the noise of its step (section 3.2). Differences: the window is an argument of `solve`, and every
    round accepts the window's first step.

    Args:
        tol: 0.1, as in the paper.
    """
    return {"iteration": Picard(), "guess": Copy(), "stop": "increment", "tol": tol}


def parasolver(tol: float = 0.1) -> dict[str, Any]:
    """ParaSolver, for denoisers with noise: ParaDiGMS with a predicted sample as guess (Lu, Zhu & Hou, ICLR 2025).

    Its Newton step has the identity as Jacobian, which is Picard iteration. Only its guesses are new. Differences from
    the paper are those of `paradigms`.

    Args:
        tol: 0.1, as in ParaDiGMS; the example of the released code has 0.55.
    """
    return {"iteration": Picard(), "guess": FrozenSample(), "stop": "increment", "tol": tol}


def parataa(order: int | None = 20) -> dict[str, Any]:
    """ParaTAA: triangular Anderson acceleration of exponential Picard (Tang et al., ICML 2024, arXiv 2402.09970).

    The base is eq. 9 of the paper. The settings are those of the released code for Stable Diffusion: equations of order
    20, one difference, and an absolute ridge of 1e-3. Pass ``window=`` the number of steps, as published. Differences:
    the stopping rule and its default tolerance are those of ParaDiGMS.

    Args:
        order: order of the equations, 20 by default; None: the width of the window.
    """
    return {
        "iteration": Anderson(1, base="exponential", ridge=0.0, order=order, absolute_ridge=1e-3),
        "guess": Copy(),
        "stop": "increment",
    }


def deq() -> dict[str, Any]:
    """DEQ-DDIM: Anderson acceleration over all steps (Pokle, Geng & Kolter, NeurIPS 2022, arXiv 2210.12867).

    Five differences, and an absolute ridge of 1e-3. Pass ``window=`` the number of steps, as published. Difference: the
    stopping rule is that of ParaDiGMS.
    """
    return {
        "iteration": Anderson(5, triangular=False, base="exponential", ridge=0.0, absolute_ridge=1e-3),
        "guess": Copy(),
        "stop": "increment",
    }


def deer() -> dict[str, Any]:
    """DEER: Newton's method with the whole Jacobian of every step (Lim et al., ICLR 2024, arXiv 2309.12252).

    Difference: it runs in a sliding window. Pass ``window=`` the number of steps, as published.
    """
    return {"iteration": Newton("dense"), "guess": Copy(), "stop": "increment"}


def quasi_deer() -> dict[str, Any]:
    """Quasi-DEER: Newton's method with diagonals of Jacobians (Gonzalez et al., NeurIPS 2024, arXiv 2407.19115).

    Differences: it runs in a sliding window, and diagonals are clipped to [-2, 2].
    """
    return {"iteration": Newton("diagonal"), "guess": Copy(), "stop": "increment"}


def srds(blocks: int | None = None, iterations: int | None = None) -> dict[str, Any]:
    """SRDS, pipelined: parareal for samplers (Selvam, Merchant & Ermon, NeurIPS 2024, arXiv 2412.08292).

    The coarse solver takes one DDIM step over a block. Difference: with N steps in B blocks, iteration K ends after
    ``K N / B + B - K`` rounds. The published count, ``K N / B + B - 1``, repeats the block that is already exact.

    Args:
        blocks: number of blocks; the square root of the number of steps by default, as published.
        iterations: stop after this many iterations. None, the default: stop by tolerance.
    """
    return {"iteration": Parareal(blocks, iterations=iterations)}


def chords(steps: int | None = None, cores: int = 8, iterations: int | None = None) -> dict[str, Any]:
    """CHORDS: parareal with cores from slow to fast (Han et al., ICCV 2025, arXiv 2507.15260).

    Core c is corrected by ``F - G_old + G_new`` when the core before it reaches the step of its last correction. The
    starts are those of the released code, for 50 steps: the fastest of 8 cores ends after 17 rounds, the next one after
    24; the fastest of 4 ends after 21. Differences: G is one step of the integrator instead of Euler's. On other grids
    the starts are scaled, and those closer than two steps to the one before are dropped.

    Args:
        steps: number of steps of the grid, to show where cores start; None, the default: the grid of the solve.
        cores: 4, 6 or 8; 8 by default.
        iterations: 1: stop when the fastest core ends, 2: when the one before it ends, and so on. The released code
            recommends 1 or 2. None, the default: stop by tolerance.

    Raises:
        TypeError: ``steps`` is not an integer.
        ValueError: ``steps`` is below 1, or there are no published starts for this number of cores.
    """
    check_optional_positive_integer("steps", steps)
    if cores not in _CHORDS:
        raise ValueError(f"cores: expected one of {', '.join(map(str, _CHORDS))}, got {cores!r}.")
    published = Parareal(starts=_CHORDS[cores], iterations=iterations, grid=_PUBLISHED)
    if steps is None:
        return {"iteration": published}
    return {"iteration": replace(published, starts=published.cores(steps, cores), grid=steps)}
