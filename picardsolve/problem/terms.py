"""What is solved: an ODE, with or without a known linear part, or an SDE; `denoiser` has the third kind."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.checks import check_callable, check_choice, check_flag
from picardsolve.problem.clock import RESOLVED
from picardsolve.problem.derivative import Corrected, WithDerivative
from picardsolve.problem.lifting import Takes
from picardsolve.problem.linear import Linear, linear_of
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Stop, Tolerance

Noise = Literal["additive", "diagonal", "scalar", "commutative", "general"]
Interpretation = Literal["ito", "stratonovich"]


class Term:
    """What is solved. `ODE`, `SecondOrderODE`, `SemilinearODE`, `SDE` and `Denoiser` are the terms of this library.

    Attributes:
        vectorized: whether the functions take many states at once.
        integrators: which integrators to pass for the term, for messages.
        takes_complex: whether states may be complex.
        second_order: whether states are (positions, velocities), with an acceleration that depends on positions only.
        by_name: whether the functions get further arguments by name (``cond``) and not by position (``args``).
        by_component: whether ``rtol`` and ``atol`` may have one value for each component of the state.
        recorded_on_grids: whether a solve on a grid records gradients.
        resolved: the number of steps of a grid within which the functions are expected to change by their own size.
    """

    vectorized: bool = True
    integrators: str = "Euler(), Heun() or RK4()"
    takes_complex: bool = False
    second_order: bool = False
    by_name: bool = False
    by_component: bool = True
    resolved: float = RESOLVED
    recorded_on_grids: bool = True

    @property
    def takes(self) -> Takes:
        """What one call of the functions is written for."""
        return "rows" if self.vectorized else "state"

    @property
    def settings(self) -> dict[str, Any]:
        """What the term is apart from its functions and tensors, by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, bool | int | float | str)}
        return {"kind": type(self).__name__, **own}

    def check_state(self, y0: Any, layout: Layout) -> None:
        """Refuse an initial state that the term cannot have.

        Raises:
            TypeError: y0 has another structure.
            ValueError: y0 has another shape.
        """

    def on_grid(self) -> "Term":
        """The term that fixed-step integrators take."""
        return self

    def tolerance(self, tol: float | Tensor, stop: Stop) -> Tolerance:
        """The tolerance that the single number ``tol`` asks for."""
        return Tolerance(atol=tol, rtol=tol)

    def usual_tol(self, stop: Stop) -> float | None:
        """The default of ``tol``; None where ``rtol`` and ``atol`` have the defaults."""
        return None

    def _check_functions(self, *names: str) -> None:
        for name in names:
            check_callable(name, getattr(self, name))
        check_flag("vectorized", self.vectorized)


@dataclass(frozen=True)
class ODE(Term):
    """An ordinary differential equation, ``dy/dt = drift(t, y)``.

        term = ps.ODE(lambda t, y: -y)

    With ``vectorized=True`` the drift gets many states at once: ``y`` of shape ``(rows, *state)`` and ``t`` of shape
    ``(rows, 1, ..., 1)``, which broadcasts against ``y`` (for a state of several tensors, against the one with the most
    dimensions). It returns the shape of ``y``. ``state`` is ``y0.shape``, without the first dimension if
    ``batch_dims=1``.

    Times are kept in float64. The drift gets them in the dtype of the state where rounding them does no harm, and in
    float64 where it does: on a fine grid, or far from t = 0. It may then return float64, too. A drift that raises an
    error for float64 times, such as a network in float32 that takes t as an input, gets times in the dtype of the state
    instead. A `ConvergenceWarning` says so where rounding moves times noticeably. A `ValueError` is raised where it
    moves them by more than a quarter of a step; then subtract a reference time first, ``(t - t0).to(y.dtype)``.

    Args:
        drift: called as ``drift(t, y, *args)``.
        vectorized: False: the drift is written for one state and a 0-d ``t``, and is lifted by ``torch.func.vmap``.

    Raises:
        TypeError: an argument has the wrong type.
    """

    drift: Callable[..., Any]
    vectorized: bool = True
    takes_complex = True

    def __post_init__(self):
        self._check_functions("drift")


@dataclass(frozen=True)
class SecondOrderODE(Term):
    """An equation of motion, ``d2q/dt2 = acceleration(t, q)``; the state is ``(q, v)``, positions and velocities.

        term = ps.SecondOrderODE(lambda t, q: -q)
        sol = ps.solve(term, (q0, v0), ts, integrator=ps.Collocation())

    `picardsolve.Collocation` iterates positions only. This takes half the rounds with Picard, and an eighth of the
    linear algebra with Newton (Bai & Junkins 2011, cascade). Integrators on a grid solve the equivalent `ODE`.

    Args:
        acceleration: called as ``acceleration(t, q, *args)``, with ``t`` and ``q`` shaped as for the drift of an `ODE`.
            It must not depend on the velocity.
        vectorized: as for `ODE`.

    Raises:
        TypeError: an argument has the wrong type.
    """

    acceleration: Callable[..., Any]
    vectorized: bool = True
    takes_complex = True
    second_order = True

    def __post_init__(self):
        self._check_functions("acceleration")

    def drift(self, t: Any, y: Any, *args: Any) -> Any:
        """The drift of the equivalent `ODE` for the state ``(q, v)``."""
        q, v = y
        return v, self.acceleration(t, q, *args)

    def on_grid(self) -> ODE:
        """The first-order equation of ``(q, v)``."""
        return ODE(self.drift, self.vectorized)

    def check_state(self, y0: Any, layout: Layout) -> None:
        """Refuse states other than two tensors of one shape."""
        halves = pytree.tree_leaves(y0)
        if not isinstance(y0, tuple | list) or len(halves) != 2 or halves[0].shape != halves[1].shape:
            raise ValueError("y0: a SecondOrderODE starts from (positions, velocities), two tensors of one shape.")


@dataclass(frozen=True)
class SemilinearODE(Term):
    """An ODE with a known linear part, ``dy/dt = L y + nonlinear(t, y)``, where L does not depend on t or y.

    `ETD1`, `ETDRK2` and `ETDRK4` solve the linear part exactly, however stiff it is. Other integrators for an `ODE`
    solve the sum. Allen-Cahn's equation on 64 points of a periodic grid of length 2 pi:

        k = 64 * torch.fft.fftfreq(64, dtype=torch.float64)
        term = ps.SemilinearODE(ps.Fourier(-0.01 * k**2), lambda t, u: u - u**3)

    Args:
        linear: L: `Fourier` on periodic grids; a square matrix for a state of one dimension; otherwise a tensor of the
            state's shape with one value for each number (`Diagonal`).
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
    recorded_on_grids = False

    def __post_init__(self):
        self._check_functions("nonlinear")
        object.__setattr__(self, "operator", linear_of(self.linear))

    def drift(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        """The sum of both parts, called as the drift of an `ODE`."""
        return self.operator.apply(y) + self.nonlinear(t, y, *args)

    def check_state(self, y0: Any, layout: Layout) -> None:
        """Refuse states of several tensors, and shapes that the linear part does not fit."""
        if not layout.structure.is_leaf():
            raise TypeError("y0: expected a single tensor for a SemilinearODE, got several; join them into one.")
        self.operator.check(tuple(layout.shapes[0]))


@dataclass(frozen=True)
class SDE(Term):
    """A stochastic differential equation, ``dY = drift(t, Y) dt + diffusion(t, Y) dW``.

        term = ps.SDE(lambda t, y: -y, lambda t, y: 0.1 * y, noise="diagonal")

    Args:
        drift: as for `ODE`.
        diffusion: called as the drift; ``noise`` says what it returns.
        noise: "diagonal": the shape of ``y``; each element has its own Brownian motion. "scalar": the shape of ``y``;
            one Brownian motion for the whole state. "general": ``(rows, *state, m)`` for m Brownian motions.
            "commutative": as "general", where ``(dg_k / dy) g_j = (dg_j / dy) g_k`` for all columns, which `Milstein`
            needs. "additive": as "diagonal" or as "general"; the diffusion must not depend on the state.
        interpretation: "ito" or "stratonovich"; for additive noise both are the same.
        vectorized: as for `ODE`, for both functions.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``noise`` or ``interpretation`` is none of these.
    """

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    noise: Noise = "diagonal"
    interpretation: Interpretation = "ito"
    vectorized: bool = True
    integrators = "EulerMaruyama() or StochasticHeun()"

    def __post_init__(self):
        check_choice("noise", self.noise, get_args(Noise))
        check_choice("interpretation", self.interpretation, get_args(Interpretation))
        self._check_functions("drift", "diffusion")

    def tolerance(self, tol: float | Tensor, stop: Stop) -> Tolerance:
        """Relative to the noise of a step for ``stop="increment"``, otherwise as for an `ODE`."""
        return Tolerance(noise=tol) if stop == "increment" else super().tolerance(tol, stop)

    @property
    def derivative(self) -> WithDerivative:
        """The diffusion with its derivatives along its own columns."""
        return WithDerivative(self.diffusion, self.noise in ("commutative", "general"))

    def to_ito(self) -> "SDE":
        """The same process in Ito's form: the drift plus ``1/2 sum_j (dg_j / dy) g_j`` (Kloeden & Platen 1992, 4.9).

        The derivatives are taken by `torch.func.jvp` in each evaluation of the drift: one for diagonal and scalar
        noise, m for m columns. For diagonal noise, element i of the diffusion must depend on element i of the state
        only; a solve refuses other diffusions.
        """
        return self._interpreted("ito", 0.5)

    def to_stratonovich(self) -> "SDE":
        """The same process in Stratonovich's form: the drift minus the correction of `to_ito`."""
        return self._interpreted("stratonovich", -0.5)

    def _interpreted(self, interpretation: Interpretation, factor: float) -> "SDE":
        if self.interpretation == interpretation:
            return self
        additive = self.noise == "additive"
        drift = self.drift if additive else Corrected(self.drift, self.derivative, factor)
        return replace(self, drift=drift, interpretation=interpretation)


@dataclass(frozen=True)
class BatchSDE(SDE):
    """An `SDE` with functions that take all samples at one time: ``y`` of shape ``(batch, *state)`` and a 0-d ``t``.

    All samples then take the same steps. They may depend on each other.
    """

    @property
    def takes(self) -> Takes:
        """A batch."""
        return "batch"
