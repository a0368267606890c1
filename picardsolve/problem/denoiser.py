"""A diffusion or flow model as a term: a network and its noise schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from picardsolve.problem.checks import check_callable, check_choice
from picardsolve.problem.lifting import Takes
from picardsolve.problem.schedules import Schedule
from picardsolve.problem.terms import Term
from picardsolve.problem.tolerances import Stop, Tolerance

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]


@dataclass(frozen=True)
class Denoiser(Term):
    """A diffusion or flow model: a network that predicts noise, sample or velocity from a noisy sample.

        model = ps.Denoiser(network, ps.schedules.from_betas(betas), prediction="epsilon")
        sol = ps.solve(model, noise, ts, integrator=ps.DDIM(), cond={"labels": labels})

    Args:
        model: called in the order of samplers, ``model(x, t, **cond)``: ``x`` is ``(rows, ...)``, ``t`` is ``(rows,)``.
            It returns the shape of ``x``, or an object with such a tensor as its attribute ``sample``.
        schedule: the signal and noise levels at time ``t``.
        prediction: what the network returns: "epsilon" (the noise), "sample" (x_0), "v_prediction"
            (``alpha noise - sigma x_0``, Salimans & Ho 2022) or "flow" (``noise - x_0``).
        sigma_data: approximate standard deviation of the clean data (Karras et al. 2022, table 1). It is used to
            predict states that have not been evaluated yet. It changes the number of rounds, never the answer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

    model: Callable[..., Any]
    schedule: Schedule
    prediction: Prediction = "epsilon"
    sigma_data: float = 0.5
    integrators = "Euler(), Heun(), StochasticEDM(40), DDIM(), DDPM() or DPMSolver()"
    by_name = True
    recorded_on_grids = False
    by_component = False
    resolved = math.inf  # times stand for noise levels, not for moments of an equation

    def __post_init__(self):
        check_callable("model", self.model)
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"schedule: expected a picardsolve.schedules.Schedule such as VP(alpha_bar), got {self.schedule!r}."
            )
        check_choice("prediction", self.prediction, get_args(Prediction))
        if not isinstance(self.sigma_data, int | float) or not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data: expected a number > 0, got {self.sigma_data!r}; leave it out if unknown.")

    @property
    def takes(self) -> Takes:
        """Rows in the order of samplers."""
        return "model"

    def tolerance(self, tol: float | Tensor, stop: Stop) -> Tolerance:
        """Relative to the noise of a step for ``stop="increment"``, otherwise to the size of the state."""
        return Tolerance(noise=tol) if stop == "increment" else Tolerance(state=tol)

    def usual_tol(self, stop: Stop) -> float | None:
        """A twentieth of a step's noise for ``stop="increment"``, otherwise a thousandth of the state."""
        return 0.05 if stop == "increment" else 1e-3

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The score of noisy samples, the gradient of their log density: ``(alpha x_0 - x) / sigma^2`` (Vincent 2011).

        Args:
            x: ``(rows, ...)``.
            t: ``(rows,)`` times with a noise level above 0.
            **cond: passed on to the model.

        Returns:
            The shape of ``x``.
        """
        out = self.model(x, t, **cond)
        out = getattr(out, "sample", out)
        shape = -1, *[1] * (x.dim() - 1)
        alpha, sigma = (level(t.double()).reshape(shape).to(x) for level in (self.schedule.alpha, self.schedule.sigma))
        c, d = self.sample_map(alpha, sigma)
        return (alpha * (c * x + d * out) - x) / sigma**2

    def sample_map(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``(c, d)`` with ``x_0 = c x + d output`` at noise level ``(alpha, sigma)``."""
        return sample_map(self.prediction, alpha, sigma)


def sample_map(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(c, d)`` with ``x_0 = c x + d output``, for a kind of prediction at level ``(alpha, sigma)``."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "sample":
        return alpha * 0, alpha * 0 + 1
    if prediction == "v_prediction":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


def noise_map(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(c, d)`` with ``epsilon = c x + d output``, as for `sample_map`."""
    if prediction == "epsilon":
        return alpha * 0, alpha * 0 + 1
    if prediction == "sample":
        return 1 / sigma, -alpha / sigma
    if prediction == "v_prediction":
        norm = alpha**2 + sigma**2
        return sigma / norm, alpha / norm
    return 1 / (alpha + sigma), alpha / (alpha + sigma)
