"""Published methods by name: keyword arguments for `picardsolve.solve`."""

from dataclasses import replace
from typing import Any

from picardsolve.baselines.anderson import Anderson
from picardsolve.baselines.parareal import Parareal
from picardsolve.fixed_point.guesses import Copy, FrozenSample
from picardsolve.fixed_point.iterations import Newton, Picard
from picardsolve.problem.checks import check_optional_positive_integer

_CHORDS = {4: (0, 8, 16, 32), 6: (0, 3, 6, 12, 24, 36), 8: (0, 2, 4, 8, 16, 24, 32, 40)}
_PUBLISHED = 50  # steps of the grid that they are for


def paradigms(tol: float = 0.1) -> dict[str, Any]:
    """ParaDiGMS (Shih et al., NeurIPS 2023, arXiv 2305.16317): Picard iteration over a sliding window.

    States that enter are copies of the last one; a state is left when a round changes it by less than ``tol`` times
    the noise of its step, which is 0.1 in the paper (section 3.2). The window is an argument of `solve`.

    Args:
        tol: the published tolerance.
    """
    return {"iteration": Picard(), "guess": Copy(), "stop": "increment", "tol": tol}


def parasolver(tol: float = 0.1) -> dict[str, Any]:
    """ParaSolver (Lu, Zhu & Hou, ICLR 2025), for denoisers with noise: ParaDiGMS that starts from a predicted sample.

    Its Newton step has the identity for a Jacobian, which is Picard iteration; what it adds are the guesses.

    Args:
        tol: 0.55 in the example of the released code.
    """
    return {"iteration": Picard(), "guess": FrozenSample(), "stop": "increment", "tol": tol}


def parataa(order: int | None = 20) -> dict[str, Any]:
    """ParaTAA (Tang et al., ICML 2024, arXiv 2402.09970): triangular Anderson acceleration of exponential Picard.

    With the settings of the released code for Stable Diffusion: equations of order 20, one difference, a ridge of 1e-3
    as it is. Pass ``window=`` the number of steps, as published.

    Args:
        order: None: the order of the window.
    """
    return {
        "iteration": Anderson(1, base="exponential", ridge=0.0, order=order, absolute_ridge=1e-3),
        "guess": Copy(),
        "stop": "increment",
    }


def deq() -> dict[str, Any]:
    """DEQ-DDIM (Pokle, Geng & Kolter, NeurIPS 2022): Anderson acceleration with five differences over all steps."""
    return {
        "iteration": Anderson(5, triangular=False, base="exponential", ridge=0.0, absolute_ridge=1e-3),
        "guess": Copy(),
        "stop": "increment",
    }


def deer() -> dict[str, Any]:
    """DEER (Lim et al., ICLR 2024, arXiv 2309.12252): Newton's method with all of every step's Jacobian."""
    return {"iteration": Newton("dense"), "guess": Copy(), "stop": "increment"}


def quasi_deer() -> dict[str, Any]:
    """Quasi-DEER (Gonzalez et al., NeurIPS 2024, arXiv 2407.19115): Newton's method with the Jacobians' diagonals."""
    return {"iteration": Newton("diagonal"), "guess": Copy(), "stop": "increment"}


def srds(blocks: int | None = None, iterations: int | None = None) -> dict[str, Any]:
    """SRDS, self-refining diffusion samplers (Selvam, Merchant & Ermon, NeurIPS 2024, arXiv 2412.08292), pipelined.

    Parareal with the square root of N blocks, and one DDIM step over a block as the coarse solver. With N steps in B
    blocks, iteration K ends after ``K N / B + B - K`` rounds; the published count ``K N / B + B - 1`` runs the block
    again that is exact already.

    Args:
        blocks: the square root of the number of steps by default, as published.
        iterations: stop after so many. None: stop by tolerance.
    """
    return {"iteration": Parareal(blocks, iterations=iterations)}


def chords(steps: int | None = None, cores: int = 8, iterations: int | None = None) -> dict[str, Any]:
    """CHORDS, cores from slow to fast (Han et al., ICCV 2025, arXiv 2507.15260, with the starts of its released code).

    Core c is corrected by ``F - G_old + G_new``, G one Euler (here: the integrator's own) step, whenever the core
    before it reaches its last correction. With 50 steps the fastest of 8 cores ends after 17 rounds, the next after
    24; the fastest of 4 after 21. On other grids the published starts, which are for 50 steps, are scaled to the grid,
    those that come closer than two steps to the one before left out.

    Args:
        steps: of the grid, to see where cores start; None: of whatever grid is solved on.
        cores: 4, 6 or 8.
        iterations: 1: stop when the fastest core ends, 2: the one before, and so on; the released code recommends 1 or
            2. None: stop by tolerance.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: ``steps`` is below 1, or there are no published starts for so many cores.
    """
    check_optional_positive_integer("steps", steps)
    if cores not in _CHORDS:
        raise ValueError(f"cores: expected one of {', '.join(map(str, _CHORDS))}, got {cores!r}.")
    published = Parareal(starts=_CHORDS[cores], iterations=iterations, grid=_PUBLISHED)
    if steps is None:
        return {"iteration": published}
    return {"iteration": replace(published, starts=published.cores(steps, cores), grid=steps)}
