"""How long steps are: decided on the host, in float64, for every sample by itself."""

from dataclasses import dataclass

import numpy as np

_PROPORTIONAL, _INTEGRAL = 0.7, 0.4  # of a PI controller, over the order (Gustafsson 1991)


@dataclass(frozen=True)
class Control:
    """How the next length follows from the error of a step.

    Attributes:
        order: the error grows as the length to this power.
        safety: part of the length that the error would allow.
        shrinks: least factor from one length to the next.
        grows: largest factor.
    """

    order: int
    safety: float = 0.9
    shrinks: float = 0.2
    grows: float = 10.0

    def factor(self, error: np.ndarray, before: np.ndarray, again: np.ndarray) -> np.ndarray:
        """Factors ``(R,)`` to the next lengths.

        Args:
            error: of the steps, in what is allowed; not finite where a step could not be taken.
            before: of the steps accepted before them.
            again: whether the step was tried before with another length.
        """
        accepted = error <= 1  # not where it is not finite
        size = np.maximum(error, 1e-10)
        factor = self.safety * size ** (-_PROPORTIONAL / self.order) * before ** (_INTEGRAL / self.order)
        if accepted.all() and not again.any():
            return factor.clip(self.shrinks, self.grows)
        alone = self.safety * size ** (-1 / self.order)
        factor = np.where(accepted, factor, alone).clip(self.shrinks, self.grows)
        factor = np.where(accepted & again, np.minimum(factor, 1.0), factor)
        return np.where(np.isfinite(error), factor, self.shrinks)


def first_length(size: np.ndarray, speed: np.ndarray, bend: np.ndarray, trial: np.ndarray, order: int) -> np.ndarray:
    """The first lengths ``(R,)`` (Hairer, Norsett & Wanner 1993, II.4).

    Args:
        size: of the states, in what is allowed.
        speed: of the slopes.
        bend: of the changes of the slopes over a trial step, divided by its length.
        trial: its lengths.
        order: of the method.
    """
    most = np.maximum(speed, bend)
    with np.errstate(all="ignore"):
        found = np.where(most > 1e-15, (0.01 / most) ** (1 / (order + 1)), np.maximum(1e-6, trial * 1e-3))
    found = np.where(np.isfinite(found), found, trial)
    return np.minimum(100 * trial, found)


def trial_length(size: np.ndarray, speed: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Lengths of an explicit Euler step that tells how slopes change."""
    with np.errstate(all="ignore"):
        found = np.where((size > 1e-5) & (speed > 1e-5), 0.01 * size / speed, 1e-6)
    return np.minimum(np.where(np.isfinite(found), found, 1e-6), span)
