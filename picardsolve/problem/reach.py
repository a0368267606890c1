"""The least tolerance that a dtype can reach."""

import numpy as np
import torch

_REACH = 16.0  # units of rounding


def check_reach(dtype: torch.dtype, sizes: np.ndarray, rtol: np.ndarray, atol: np.ndarray) -> None:
    """Refuse a tolerance below the rounding of a component at the start; a component of 0 tells nothing.

    Args:
        dtype: of the states.
        sizes: of the components ``(B, D)``.
        rtol: ``(B, D)``.
        atol: ``(B, D)``.

    Raises:
        ValueError: it is.
    """
    unit = torch.finfo(dtype).eps
    least = _REACH * unit * sizes
    known = (sizes > 0) | ~sizes.any(1, keepdims=True)
    beyond = np.where(known & (rtol * sizes + atol <= least), sizes, -1.0)
    worst = np.unravel_index(int(beyond.argmax()), beyond.shape)
    if beyond[worst] >= 0:
        raise ValueError(
            f"rtol, atol: got {rtol[worst]:g} and {atol[worst]:g}, less than {dtype} can reach with states of "
            f"size {sizes[worst]:.1e}; pass rtol >= {1.1 * _REACH * unit:.1e}, or atol >= "
            f"{max(1.1 * least[worst], 1e-300):.1e}."
        )
