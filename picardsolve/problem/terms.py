"""What is solved: an ODE, with a known linear part or not, an SDE, or a denoiser (a network with its schedule)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from picardsolve.problem.checks import check_callable, check_choice
from picardsolve.problem.derivative import Corrected, WithDerivative
from picardsolve.problem.lifting import Takes
from picardsolve.problem.linear import Linear, linear_of
from picardsolve.problem.schedules import Schedule

Noise = Literal["additive", "diagonal", "scalar", "commutative", "general"]
Interpretation = Literal["ito", "stratonovich"]
Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]


@dataclass(frozen=True)
class ODE:
    """``dy/dt = drift(t, y)``.

    Args:
        drift: called as ``drift(t, y, *args)``. With ``vectorized`` it gets many states at once: ``y`` of shape
            ``(rows, *state)``, ``t`` of shape ``(rows, 1, ..., 1)`` ready to broadcast against it (of several tensors,
            against the one with most dimensions), and returns the shape of ``y``. ``state`` is ``y0.shape``, without
            its first dimension when ``batch_dims=1``. Times are kept in float64. ``t`` is float64, too, unless the
            grid is so near to zero, and so coarse, that in the dtype of the state it is no further off than a state
            is. What is float64 for that reason only may be returned. A drift that raises with float64 times, such as a
            network of single precision that takes them beside the state, is called with the state's dtype instead;
            where that moves times by more than rounding a `ConvergenceWarning` says so, and where by more than a
            quarter of a step it is refused: subtract a time of reference first, ``(t - t0).to(y.dtype)``.
        vectorized: False lifts a plain ``drift(t, y)`` of one state and a 0-d ``t`` by ``torch.func.vmap``.
    """

    drift: Callable[..., Any]
    vectorized: bool = True

    def __post_init__(self):
        check_callable("drift", self.drift)
        _check_flag("vectorized", self.vectorized)

    @property
    def takes(self) -> Takes:
        """What the drift is written for."""
        return "rows" if self.vectorized else "state"


@dataclass(frozen=True)
class SecondOrderODE:
    """``d2q/dt2 = acceleration(t, q)``; the state is ``(q, v)``, positions and velocities.

    `picardsolve.Collocation` iterates positions only: half the rounds with Picard, an eighth of the algebra with Newton
    (Bai & Junkins 2011, cascade). Fixed-step integrators take it as the `ODE` that it is.

    Args:
        acceleration: called as ``acceleration(t, q, *args)``, with ``t`` and ``q`` as the drift of an `ODE`; must not
            depend on the velocity.
        vectorized: as for `ODE`.
    """

    acceleration: Callable[..., Any]
    vectorized: bool = True

    def __post_init__(self):
        check_callable("acceleration", self.acceleration)
        _check_flag("vectorized", self.vectorized)

    @property
    def takes(self) -> Takes:
        """What the acceleration is written for."""
        return "rows" if self.vectorized else "state"

    def drift(self, t: Any, y: Any, *args: Any) -> Any:
        """Of the state ``(q, v)``."""
        q, v = y
        return v, self.acceleration(t, q, *args)


@dataclass(frozen=True)
class SemilinearODE:
    """``dy/dt = L y + nonlinear(t, y)``, for integrators that take the stiff linear part exactly: `ETD1` and its kin.

    Allen-Cahn on 64 points of a periodic grid of length 2 pi:

        k = 64 * torch.fft.fftfreq(64, dtype=torch.float64)
        term = ps.SemilinearODE(ps.Fourier(-0.01 * k**2), lambda t, u: u - u**3)

    Others that take an `ODE` take the sum.

    Args:
        linear: L, that does not depend on t or y: `Fourier` on periodic grids; a square matrix for a state of one
            dimension; otherwise a tensor of the state's shape, one value for each number (`Diagonal`).
        nonlinear: called as the drift of an `ODE`.
        vectorized: as for `ODE`, for ``nonlinear``.

    Raises:
        TypeError: an argument has the wrong type; in a solve, the state is not a single tensor.
        ValueError: ``linear`` is not finite; in a solve, it does not fit the state.
    """

    linear: Linear | Tensor
    nonlinear: Callable[..., Any]
    vectorized: bool = True
    operator: Linear = field(init=False, repr=False)

    def __post_init__(self):
        check_callable("nonlinear", self.nonlinear)
        _check_flag("vectorized", self.vectorized)
        object.__setattr__(self, "operator", linear_of(self.linear))

    @property
    def takes(self) -> Takes:
        """What the nonlinear part is written for."""
        return "rows" if self.vectorized else "state"

    def drift(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        """The sum of both parts, called as the drift of an `ODE`."""
        return self.operator.apply(y) + self.nonlinear(t, y, *args)


@dataclass(frozen=True)
class SDE:
    """``dY = drift(t, Y) dt + diffusion(t, Y) dW``.

    Args:
        drift: as for `ODE`.
        diffusion: called like ``drift``; returns what ``noise`` says.
        noise: "diagonal": the shape of ``y``, each element with its own Brownian motion. "scalar": the shape of ``y``,
            one Brownian motion for the state. "general": ``(rows, *state, m)``, m Brownian motions. "commutative": the
            same, where ``(dg_k / dy) g_j = (dg_j / dy) g_k`` for all columns, which `Milstein` needs. "additive": the
            shape of ``y``, as "diagonal", or ``(rows, *state, m)``; it must not depend on the state.
        interpretation: "ito" or "stratonovich"; the same for additive noise.
        vectorized: as for `ODE`, for both functions.
    """

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    noise: Noise = "diagonal"
    interpretation: Interpretation = "ito"
    vectorized: bool = True

    def __post_init__(self):
        check_callable("drift", self.drift)
        check_callable("diffusion", self.diffusion)
        check_choice("noise", self.noise, get_args(Noise))
        check_choice("interpretation", self.interpretation, get_args(Interpretation))
        _check_flag("vectorized", self.vectorized)

    @property
    def takes(self) -> Takes:
        """What both functions are written for."""
        return "rows" if self.vectorized else "state"

    @property
    def derivative(self) -> WithDerivative:
        """The diffusion with its derivatives along its own columns."""
        return WithDerivative(self.diffusion, self.noise in ("commutative", "general"))

    def to_ito(self) -> "SDE":
        """The same process in Ito's form, whose drift has ``1/2 sum_j (dg_j / dy) g_j`` more (Kloeden & Platen, 4.9).

        By `torch.func.jvp`: one for diagonal and scalar noise, m for m columns, in each evaluation of the drift. Of
        diagonal noise element i of the diffusion must depend on element i of the state alone; solves refuse others.
        """
        return self._interpreted("ito", 0.5)

    def to_stratonovich(self) -> "SDE":
        """The same process in Stratonovich's form, whose drift has as much less; see `to_ito`."""
        return self._interpreted("stratonovich", -0.5)

    def _interpreted(self, interpretation: Interpretation, factor: float) -> "SDE":
        if self.interpretation == interpretation:
            return self
        additive = self.noise == "additive"
        drift = self.drift if additive else Corrected(self.drift, self.derivative, factor)
        return replace(self, drift=drift, interpretation=interpretation)


@dataclass(frozen=True)
class BatchSDE(SDE):
    """An `SDE` whose functions take all samples at one time, ``y`` of shape ``(batch, *state)`` and a 0-d ``t``.

    Samples then keep to common steps, and may depend on each other.
    """

    @property
    def takes(self) -> Takes:
        """A batch."""
        return "batch"


@dataclass(frozen=True)
class Denoiser:
    """A diffusion or flow model: a network that predicts noise, sample or velocity from a noisy sample.

    Args:
        model: called the way samplers call theirs, ``model(x, t, **cond)``: ``x`` is ``(rows, ...)``, ``t`` is
            ``(rows,)``; returns the shape of ``x``.
        schedule: what ``t`` means.
        prediction: what the network returns: "epsilon" (the noise), "sample" (x_0), "v_prediction"
            (``alpha noise - sigma x_0``, Salimans & Ho 2022) or "flow" (``noise - x_0``).
        sigma_data: standard deviation of the clean data (Karras et al. 2022, table 1), roughly. It says what to expect
            of steps that have not been evaluated yet: it changes how many rounds are needed, never the answer.
    """

    model: Callable[..., Any]
    schedule: Schedule
    prediction: Prediction = "epsilon"
    sigma_data: float = 0.5

    def __post_init__(self):
        check_callable("model", self.model)
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"schedule: expected a picardsolve.schedules.Schedule such as VP(alpha_bar), got {self.schedule!r}."
            )
        check_choice("prediction", self.prediction, get_args(Prediction))
        if not isinstance(self.sigma_data, int | float) or not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data: expected a number > 0, got {self.sigma_data!r}; leave it out if unknown.")

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The gradient of the log density of noisy samples, ``(alpha x_0 - x) / sigma^2`` (Vincent 2011).

        Args:
            x: ``(rows, ...)``.
            t: ``(rows,)`` times of positive noise level.
            **cond: passed on to the model.
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
    """Coefficients ``(c, d)`` with ``x_0 = c x + d output``, of what a model predicts at level ``(alpha, sigma)``."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "sample":
        return alpha * 0, alpha * 0 + 1
    if prediction == "v_prediction":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


Term: TypeAlias = ODE | SecondOrderODE | SemilinearODE | SDE | Denoiser


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}.")
