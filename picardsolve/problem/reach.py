"""The least tolerance that a dtype can reach."""

import numpy as np
import torch

_REACH = 16.0  # units of rounding


def check_reach(dtype: torch.dtype, sizes: np.ndarray, rtol: np.ndarray, atol: np.ndarray) -> None:
    """Refuse a tolerance below the rounding of a component at the start; a component of 0 tells nothing.

    Args:
        dtype: of the states.
        sizes: of the components ``(B, D)``.
        rtol: broadcasts to ``(B, D)``.
        atol: the same.

    Raises:
        ValueError: it is; the message is about the first such sample.
    """
    unit = torch.finfo(dtype).eps
    least = _REACH * unit * sizes
    known = (sizes > 0) | ~sizes.any(1, keepdims=True)
    rtol, atol = (np.broadcast_to(part, sizes.shape) for part in (rtol, atol))
    beyond = np.where(known & (rtol * sizes + atol <= least), sizes, -1.0)
    sample = int((beyond.max(1) >= 0).argmax())
    at = sample, int(beyond[sample].argmax())
    if beyond[at] >= 0:
        raise ValueError(
            f"rtol, atol: got {rtol[at]:g} and {atol[at]:g}, less than {dtype} can reach with states of size "
            f"{sizes[at]:.1e}; pass rtol >= {1.1 * _REACH * unit:.1e}, or atol >= {max(1.1 * least[at], 1e-300):.1e}."
        )
