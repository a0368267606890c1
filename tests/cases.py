"""Random problems for property tests. Tensors are built from drawn seeds and shapes, never element by element."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import picardsolve as ps

HALF = (torch.float16, torch.bfloat16)
SINGLE_OR_DOUBLE = (torch.float32, torch.float64)
NOISES = ("additive", "diagonal", "scalar", "commutative", "general")
WIDEST = 24  # of the windows that are drawn
SDE_METHODS = (ps.EulerMaruyama(), ps.Milstein(), ps.StochasticHeun(), ps.StochasticMidpoint(), ps.SRA1(), ps.SRID2())
STAGES = {ps.Euler: 1, ps.Midpoint: 2, ps.Heun: 2, ps.RK4: 4} | {
    ps.StochasticHeun: 2,
    ps.StochasticMidpoint: 2,
    ps.SRA1: 2,
    ps.SRID2: 3,
}

seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Case:
    """A problem, and how far rounding may carry two correct solvers of it apart.

    ``growth`` bounds what the chain makes of a perturbation on its way to the end. ``weight`` bounds the sum over the
    steps of what a relative error of the drift adds to the state: the time span for an ODE of Lipschitz constant 1.
    """

    name: str
    term: Any = field(repr=False)
    y0: Any = field(repr=False)
    ts: Tensor = field(repr=False)
    integrator: ps.Integrator
    growth: float
    weight: float
    seed: int | list[int] = 0
    batch_dims: int = 0
    given: dict[str, Any] = field(default_factory=dict, repr=False)  # more arguments of a solve

    @property
    def steps(self) -> int:
        return len(self.ts) - 1

    @property
    def stages(self) -> int:
        """Of additive noise `SRID2` is `SRA1`."""
        if isinstance(self.integrator, ps.SRID2) and self.term.noise == "additive":
            return 2
        if isinstance(self.integrator, ps.StochasticEDM):
            return self.integrator.order
        return STAGES.get(type(self.integrator), 1)

    def _arguments(self, more: dict[str, Any]) -> dict[str, Any]:
        brownian = ps.BrownianPath(self.seed)
        return {
            "integrator": self.integrator,
            "brownian": brownian,
            "batch_dims": self.batch_dims,
            **self.given,
            **more,
        }

    def solve(self, **more) -> ps.Solution:
        return ps.solve(self.term, self.y0, self.ts, **self._arguments(more))

    def sequential(self, **more) -> ps.Solution:
        return ps.sequential(self.term, self.y0, self.ts, **self._arguments(more))

    def rounding(self, ys: Tensor) -> float:
        """How far two solvers may differ that evaluate the same steps in batches of different sizes.

        Both satisfy ``x[n + 1] = Phi_n(x[n])`` up to the rounding of one step: about four operations on the state, in
        at least float32, and one drift. A drift of rows of at most 8 elements through two matrix products has a
        relative error of at most 2 * (8 + 2) units in the last place, in either solver; half precision accumulates in
        float32 and rounds each of four intermediate results. A step's error reaches the end multiplied by at most
        ``growth``; |drift| <= 1 + |y|.
        """
        dtype = ys.dtype
        state = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        drift = (8 if dtype in HALF else 40) * torch.finfo(dtype).eps
        scale = 1 + float(ys.abs().max())
        return self.growth * scale * (4 * self.steps * state + self.weight * drift)


@dataclass(frozen=True)
class Constant:
    """A path whose increments and areas are all the same: it shows what a step makes of each."""

    increment: float
    area: float

    def increments(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> Tensor:
        return torch.full((len(t0), size), self.increment, dtype=torch.float64)

    def areas(self, t0: Tensor, t1: Tensor, sample: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return self.increments(t0, t1, sample, size), torch.full((len(t0), size), self.area, dtype=torch.float64)

    def check(self, t0: Tensor, t1: Tensor, samples: int) -> None: ...


def linear_variance(term: ps.SDE, ts: Tensor, integrator: ps.Integrator, variance: float) -> float:
    """The variance at the end of a chain that is linear in a single number, W and H: ``x' = a x + b W + c H``."""
    paths = {(1.0, 0.0, 0.0): None, (0.0, 1.0, 0.0): None, (0.0, 0.0, 1.0): None}
    for start, w, h in paths:
        y0, path = torch.tensor([start], dtype=torch.float64), Constant(w, h)
        paths[start, w, h] = ps.sequential(term, y0, ts, integrator=integrator, brownian=path).ys[:, 0]
    carried, by_w, by_h = paths.values()
    a = carried[1:] / carried[:-1]
    b, c = (ys[1:] - a * ys[:-1] for ys in (by_w, by_h))
    for step in torch.stack([a**2, (b**2 + c**2 / 12) * ts.diff()], 1).tolist():
        variance = step[0] * variance + step[1]
    return variance


def assert_close(actual: Tensor, expected: Tensor, bound: float) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    distance = float((actual.double() - expected.double()).abs().max())
    assert distance <= bound, f"distance {distance:.3g} > {bound:.3g}"  # NaN is not close to anything


def randn(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- grids and numerics


def random_grid(seed: int, steps: int, start: float, end: float, shortest: float = 0.2) -> Tensor:
    """A non-uniform grid; the longest step is at most ``1 + 1 / shortest`` times the shortest."""
    gaps = torch.rand(steps, generator=generator(seed), dtype=torch.float64) + shortest
    positions = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)]) / gaps.sum()
    grid = start + (end - start) * positions
    grid[-1] = end
    return grid


@st.composite
def grids(draw, max_span: float = 2.0, increasing: bool = False, min_steps: int = 1, max_steps: int = 20) -> Tensor:
    start, span = draw(st.sampled_from([-1.0, 0.0, 0.3])), draw(st.sampled_from([0.1, 0.5, 1.0])) * max_span
    sign = 1 if increasing or draw(st.booleans()) else -1
    return random_grid(draw(seeds), draw(st.integers(min_steps, max_steps)), start, start + sign * span)


iterations = st.sampled_from(
    [
        *(ps.Picard(), ps.Jacobi(), ps.Exponential(), ps.Secant(), ps.MultiSecant()),
        *(
            ps.Anderson(),
            ps.Anderson(1, triangular=False, base="exponential"),
            ps.Anderson(order=3, base="exponential"),
        ),
        *(ps.Newton(), ps.Newton("diagonal"), ps.Newton("hutchinson", damping=0.3, seed=3)),
    ]
)


def defect(iteration: ps.Iteration) -> int:
    """By how many times its last change a step may be off, beyond Picard's ``h (f(X) - f(Y))``.

    Jacobi's ``Y[n+1] = Phi(X[n])`` leaves out the change of ``X[n]``. Anderson's correction is at most the base's
    change and its own, both within tolerance, in this state and the one before. With an order k the base leaves out
    the residual k steps ago; sums of k residuals are within tolerance, so the residuals of the first k are within
    twice that, and those of every k more within two more. Newton's ``delta`` is at most twice the change (diagonals are
    clipped to that) where ``Phi`` makes of it ``1 + hL`` times the change; dense, both are ``1 + hL`` times it, apart
    from the damping, and a step's ``hL`` is below 3.
    """
    if isinstance(iteration, ps.Newton):
        return 4
    if isinstance(iteration, ps.Anderson):
        return 4 + (2 * math.ceil(WIDEST / iteration.order) if iteration.order else 0)
    return int(isinstance(iteration, ps.Jacobi))


windows = st.integers(1, WIDEST)


def wild(ts: Tensor, y: Any) -> Any:
    """A guess far off, not finite for some times, and in proportion to the last state (of any structure)."""
    row = torch.arange(len(ts), dtype=torch.float64)
    factor = (1 + torch.sin(7 * row)).masked_fill(row % 5 == 3, torch.inf)
    return pytree.tree_map(lambda leaf: factor.to(leaf.dtype).reshape(-1, *[1] * leaf.dim()) * leaf, y)


def guesses(term: Any) -> st.SearchStrategy:
    choices = [ps.FrozenOutput(), ps.Copy(), wild]
    if isinstance(term, ps.Denoiser):
        choices.append(ps.FrozenSample())
    if isinstance(term, ps.ODE):
        choices += [ps.Polynomial(), ps.Polynomial(1), ps.Polynomial(4)]
    return st.sampled_from(choices)


@st.composite
def trajectories(draw, case: "Case") -> ps.FromTrajectory:
    """The sequential states, as they are or far from it, of a sample with states that are not finite."""
    noise = "same" if isinstance(case.term, ps.SDE) else draw(st.sampled_from(["same", "new"]))
    ys, size = case.sequential().ys, draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    states = (ys.double() + size * randn(generator(draw(seeds)), *ys.shape)).to(ys.dtype)
    if case.batch_dims and draw(st.booleans()):
        states[len(states) // 2 :, 0] = torch.nan
    return ps.FromTrajectory(states, noise)


@st.composite
def numerics(draw, term: Any) -> dict[str, Any]:
    """Whatever may not change the answer."""
    return {
        "window": draw(windows),
        "stop": draw(st.sampled_from(["increment", "residual", "error"])),
        "iteration": draw(iterations),
        "guess": draw(guesses(term)),
        "max_batch": draw(st.sampled_from([None, None, 1, 3, 7])),
    }


# ---- ODEs and SDEs: functions of the last dimension, so that they take one state or many


def _matrix(gen: torch.Generator, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    matrix = randn(gen, rows, columns)
    return (matrix / torch.linalg.matrix_norm(matrix, 2)).to(dtype)


def random_drift(kind: str, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable:
    """``f(t, y)`` with Lipschitz constant 1 in y and ``|f| <= 1 + |y|``, for one state or many."""
    gen, size = generator(seed), shape[-1] if shape else 1
    inner, outer = _matrix(gen, size, 8, dtype), _matrix(gen, 8, size, dtype)
    square = _matrix(gen, size, size, dtype)
    bias, hidden, forcing = randn(gen, size) / (1 + size), randn(gen, 8), randn(gen, size) / (1 + size)
    bias, hidden, forcing = bias.to(dtype), hidden.to(dtype), forcing.to(dtype)

    def f(t, y, pace=None):
        scale = 1 if pace is None else pace.reshape(t.shape)
        t = (t if shape else t[..., None]).to(dtype)
        y = y if shape else y[..., None]
        if kind == "affine":
            out = y @ square + bias
        elif kind == "mlp":
            out = torch.tanh(y @ inner + hidden) @ outer
        elif kind == "nonautonomous":
            out = torch.tanh(y @ inner + t * hidden) @ outer * torch.cos(2 * t) + torch.sin(3 * t) * forcing
        else:  # contracting: the one-sided constant is at most -1/2
            out = 0.5 * torch.sin(y * hidden[0].cos()) * torch.cos(t) - y + bias
        return scale * (out if shape else out[..., 0])

    return f


def random_diffusion(noise: str, seed: int, shape: tuple[int, ...], dtype: torch.dtype, motions: int = 2) -> Callable:
    """``g(t, y)`` with Lipschitz constant 0.3 in y and values up to 0.6; of additive noise sometimes columns."""
    gen = generator(seed)
    frequency, phase = torch.rand(2, motions, generator=gen, dtype=torch.float64).to(dtype)

    def g(t, y, pace=None):
        if noise == "additive":
            alike = 0.3 * torch.cos(t) + 0.3 + torch.zeros_like(y)
            return alike if seed % 2 else alike[..., None] * phase / motions
        columns = 0.3 * torch.sin(y[..., None] * frequency + phase + t[..., None]) + 0.3
        if noise == "commutative":  # multiples of each other
            return columns[..., :1] * phase / motions
        return columns / motions if noise == "general" else columns[..., 0]

    return g


shapes = st.sampled_from([(), (1,), (3,), (2, 4), (5,), (2, 1, 3)])
drift_kinds = st.sampled_from(["affine", "mlp", "nonautonomous", "contracting"])


@st.composite
def layouts(draw, batches=(0, 0, 1, 2, 4)) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """A state's shape, the shape of y0 and batch_dims; a batch of 0 is one system."""
    shape, batch = draw(shapes), draw(st.sampled_from(batches))
    return shape, (batch, *shape) if batch else shape, int(batch > 0)


@st.composite
def ode_cases(
    draw, dtypes=SINGLE_OR_DOUBLE, batches=(0, 0, 1, 2, 4), max_span: float = 2.0, min_steps: int = 1
) -> Case:
    dtype, (shape, full, batch_dims), seed = draw(st.sampled_from(dtypes)), draw(layouts(batches)), draw(seeds)
    ts = draw(grids(max_span=0.4 if dtype in HALF else max_span, min_steps=min_steps))
    kind, integrator = (
        draw(drift_kinds),
        draw(st.sampled_from([ps.Euler(), ps.Midpoint(), ps.Heun(), ps.RK4(), ps.RK4("3/8")])),
    )
    span = float((ts[-1] - ts[0]).abs())
    return Case(
        name=f"ODE {kind} {dtype} y0 {full} seed {seed} steps {len(ts) - 1} span {span:.2g}",
        term=ps.ODE(random_drift(kind, seed, shape, dtype)),
        y0=randn(generator(seed + 1), *full, dtype=dtype),
        ts=ts,
        integrator=integrator,
        growth=math.exp(1.5 * span),  # "contracting" has constant 1.5
        weight=span,
        batch_dims=batch_dims,
    )


@st.composite
def logistic_cases(draw) -> Case:
    """Only sums and products of elements, which are the same in any batch, bit for bit."""
    steps, full = draw(st.integers(1, 24)), draw(st.sampled_from([(3,), (2, 4), (64,)]))
    return Case(
        "logistic",
        ps.ODE(lambda t, y: y * (1 - y) + t),
        torch.rand(full, generator=generator(draw(seeds)), dtype=torch.float64),
        torch.linspace(0, 2, steps + 1),
        draw(st.sampled_from([ps.Euler(), ps.Heun(), ps.RK4()])),
        growth=1,
        weight=1,
        batch_dims=draw(st.sampled_from([0, 1])),
    )


@st.composite
def sde_cases(draw, noises=NOISES, dtypes=SINGLE_OR_DOUBLE, batches=(0, 0, 1, 2, 4), integrators=SDE_METHODS) -> Case:
    dtype, (shape, full, batch_dims), seed = draw(st.sampled_from(dtypes)), draw(layouts(batches)), draw(seeds)
    ts, kind, noise = (
        draw(grids(max_span=1.0, increasing=True, max_steps=10)),
        draw(drift_kinds),
        draw(st.sampled_from(noises)),
    )
    integrator = draw(st.sampled_from([method for method in integrators if noise in method.strong_order]))
    other = isinstance(integrator, ps.Milstein | ps.StochasticHeun | ps.StochasticMidpoint) or noise == "additive"
    interpretation = draw(st.sampled_from(["ito", "stratonovich"])) if other else "ito"
    drift, diffusion = random_drift(kind, seed, shape, dtype), random_diffusion(noise, seed, shape, dtype)
    # prod(1 + 1.5 h + 0.3 |dW|) with sum |dW| <= sqrt(steps * sum dW^2), and 2 sqrt(span) for a large |W|
    growth = math.exp(1.5 + 0.3 * 2 * math.sqrt(len(ts) - 1))
    return Case(
        name=f"SDE {integrator} {interpretation} {kind} {noise} {dtype} y0 {full} seed {seed} steps {len(ts) - 1}",
        term=ps.SDE(drift, diffusion, noise, interpretation),
        y0=randn(generator(seed + 1), *full, dtype=dtype),
        ts=ts,
        integrator=integrator,
        growth=growth if isinstance(integrator, ps.EulerMaruyama) else 10 * growth,  # stages; derivatives; an allowance
        weight=1 + 2 * math.sqrt(len(ts) - 1),
        seed=draw(seeds),
        batch_dims=batch_dims,
    )


# ---- denoisers


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture, and the exact clean sample expected of a noisy one."""

    means: Tensor  # (K, D)
    deviation: float

    def clean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``E[x_0 | x]`` for x ``(R, D)`` and levels ``(R, 1)``."""
        spread = (alpha * self.deviation) ** 2 + sigma**2
        means = self.means.to(x.dtype)
        distance = ((x[:, None] - alpha[..., None] * means) ** 2).sum(-1)
        weight = torch.softmax(-distance / (2 * spread), -1)
        centre = weight @ means
        return centre + alpha * self.deviation**2 / spread * (x - alpha * centre)


def predicted(prediction: str, x: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of this prediction type says where the clean sample is known."""
    noise = torch.where(sigma > 0, (x - alpha * clean) / sigma, 0)
    outputs = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: alpha * noise - sigma * clean,
        "flow": lambda: noise - clean,
    }
    return outputs[prediction]()


def mixture_denoiser(mixture: Mixture, schedule: ps.schedules.Schedule, prediction: str) -> ps.Denoiser:
    def model(x, t, shift=None):
        wide = torch.promote_types(x.dtype, torch.float32)
        flat = x.flatten(1).to(wide)
        alpha, sigma = (level(t.double())[:, None].to(wide) for level in (schedule.alpha, schedule.sigma))
        offset = 0 if shift is None else shift.to(wide)[:, None]
        clean = mixture.clean(flat - alpha * offset, alpha, sigma) + offset  # a mixture moved by the offset
        return predicted(prediction, flat, clean, alpha, sigma).to(x.dtype).reshape(x.shape)

    return ps.Denoiser(model, schedule, prediction)


PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")
SAMPLERS = (
    *(ps.DDIM(), ps.DDIM(0.4), ps.DDIM(1.0), ps.DDPM()),
    *(ps.DPMSolver(1), ps.DPMSolver(2), ps.DPMSolver(3), ps.DPMSolver(1, sde=True), ps.DPMSolver(2, sde=True)),
    *(ps.Euler(), ps.Midpoint(), ps.Heun(), ps.RK4()),
    *(ps.StochasticEDM(2.0), ps.StochasticEDM(40.0, 0.3, 2.0, 1.01), ps.StochasticEDM(2.0, order=1, step_scale=1.2)),
)


def noise_schedules(seed: int, steps: int, clean_end: bool) -> dict[str, tuple[ps.schedules.Schedule, Tensor]]:
    """Every schedule with a grid of moderately unequal steps; signal levels from 0.1 to 1."""

    def grid(start: float, end: float) -> Tensor:
        return random_grid(seed, steps, start, end, shortest=1.0)

    betas = torch.linspace(1e-4, 0.04, 200, dtype=torch.float64)
    return {
        "from_betas": (ps.schedules.from_betas(betas), grid(199.0, -1.0 if clean_end else 3.0)),
        "VP": (ps.schedules.VP(lambda t: torch.exp(-t)), grid(3.0, 0.0 if clean_end else 0.02)),
        "VE": (ps.schedules.VE(lambda t: t**1.5), grid(3.0, 0.0 if clean_end else 0.1)),
        "EDM": (ps.schedules.EDM(), ps.grids.karras(4.0, 0.05, steps) if clean_end else grid(4.0, 0.1)),
        "Flow": (ps.schedules.Flow(), grid(0.9, 0.0 if clean_end else 0.05)),
        "Flow from pure noise": (ps.schedules.Flow(), grid(1.0, 0.0 if clean_end else 0.05)),
    }


@st.composite
def denoiser_cases(draw, integrators=SAMPLERS, dtypes=SINGLE_OR_DOUBLE, batches=(1, 2, 4)) -> Case:
    dtype, seed, steps = draw(st.sampled_from(dtypes)), draw(seeds), draw(st.integers(1, 12))
    shape, batch = draw(st.sampled_from([(2,), (4,), (2, 3)])), draw(st.sampled_from(batches))
    known = noise_schedules(seed, steps, draw(st.booleans()))
    integrator = draw(st.sampled_from(integrators))
    names = ["EDM"] if isinstance(integrator, ps.StochasticEDM) else sorted(known)
    name = draw(st.sampled_from(names))
    schedule, ts = known[name]
    # without signal the noise says nothing of the sample; in half precision the noise says too little of it
    predictions = PREDICTIONS[1:] if name == "Flow from pure noise" else PREDICTIONS
    prediction = "sample" if dtype in HALF else draw(st.sampled_from(predictions))
    mixture = Mixture(0.7 * randn(generator(seed), 3, math.prod(shape)), 0.8)
    return Case(
        name=f"{name} {prediction} {dtype} y0 {(batch, *shape)} seed {seed} steps {steps} to {float(ts[-1])}",
        term=mixture_denoiser(mixture, schedule, prediction),
        y0=(randn(generator(seed + 1), batch, *shape) * float(schedule.sigma(ts[0]))).to(dtype),
        ts=ts,
        integrator=integrator,
        # An allowance, not a derived bound: e for the flow, whose means lie within about two deviations, times five
        # for the weights of a multistep method. Distances found are bitwise zero for nearly all cases.
        growth=math.e * (1 if dtype in HALF else 5),
        weight=1 if dtype in HALF else steps,  # the weights of the clean samples add up to the last signal level
        seed=draw(seeds),
        batch_dims=1,
    )


def any_case(dtypes=SINGLE_OR_DOUBLE) -> st.SearchStrategy:
    return st.one_of(ode_cases(dtypes), sde_cases(dtypes=dtypes), denoiser_cases(dtypes=dtypes))


@st.composite
def company(draw) -> tuple[Case, list[Case]]:
    """A batch of samples that differ in seed and in what is passed on to the drift, and each of them by itself.

    ``pace`` (B,) multiplies a drift: 1 for sample 0, up to 8 for others, which take more rounds. ``shift`` (B,) moves
    the mixture of a denoiser. Float64, so that no sample stops a round earlier because of its batch's size.
    """
    double, batches = (torch.float64,), (2, 3, 4)
    case = draw(
        st.one_of(
            ode_cases(double, batches),
            sde_cases(dtypes=double, batches=batches),
            denoiser_cases(SAMPLERS, double, batches),
        )
    )
    gen, samples = generator(draw(seeds)), len(case.y0)
    each = torch.randint(2**31, (samples,), generator=gen).tolist()
    if isinstance(case.term, ps.Denoiser):
        given = {"cond": {"shift": randn(gen, samples)}}
    else:
        pace = 1 + 7 * torch.rand(samples, generator=gen, dtype=torch.float64)
        pace[0] = 1
        given = {"args": (pace,)}
    case = replace(case, seed=each, given=given)
    return case, [_alone(case, sample) for sample in range(samples)]


def _alone(case: Case, sample: int) -> Case:
    def own(value: Tensor) -> Tensor:
        return value[sample : sample + 1]

    given = {"cond": {k: own(v) for k, v in case.given["cond"].items()}} if "cond" in case.given else {}
    given |= {"args": tuple(own(v) for v in case.given["args"])} if "args" in case.given else {}
    return replace(case, y0=own(case.y0), seed=[case.seed[sample]], given=given)
