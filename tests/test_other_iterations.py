"""Iterations, guesses and starts of a user's own: what keeps the contract is solved, what breaks it is refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import picardsolve as ps
from picardsolve.fixed_point.iterations.base import Iteration
from picardsolve.fixed_point.sweep import Swept

Y = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
TS = ps.grids.uniform(0.0, 3.0, 120)


def rotation(t, y):
    return torch.stack([-y[..., 1], y[..., 0], -0.5 * y[..., 2]], -1)


def growth(t, y):
    return 1.5 * y


def eps(x, t):
    alpha, sigma = SCHEDULE.alpha(t.double())[:, None], SCHEDULE.sigma(t.double())[:, None]
    return x * sigma / (0.25 * alpha**2 + sigma**2)


SCHEDULE = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))
PROBLEMS = {
    "a rotation": lambda **how: ps.solve(ps.ODE(rotation), Y, TS, integrator=ps.Euler(), **how),
    "a rotation, Runge-Kutta": lambda **how: ps.solve(ps.ODE(rotation), Y, TS, integrator=ps.RK4(), **how),
    "a rotation in float32": lambda **how: ps.solve(ps.ODE(rotation), Y.float(), TS, integrator=ps.Euler(), **how),
    "growth": lambda **how: ps.solve(ps.ODE(growth), Y, TS, integrator=ps.Euler(), **how),
    "a batch of SDEs": lambda **how: ps.solve(
        ps.SDE(lambda t, y: -y, lambda t, y: 0.3 * y),
        Y.repeat(3, 1) * torch.tensor([[1.0], [2.0], [3.0]]),
        TS,
        integrator=ps.EulerMaruyama(),
        batch_dims=1,
        **how,
    ),
    "a denoiser": lambda **how: ps.solve(
        ps.Denoiser(eps, SCHEDULE),
        torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        ps.grids.uniform(999, -1, 60),
        integrator=ps.DDIM(),
        **how,
    ),
}
OURS = (
    ps.Picard(),
    ps.Jacobi(),
    ps.Exponential(),
    ps.Secant(),
    ps.MultiSecant(),
    ps.Anderson(),
    ps.Anderson(3, triangular=False, base="exponential"),
    ps.Newton(),
    ps.Newton("diagonal"),
)


@dataclass(frozen=True)
class Around(Iteration):
    """One of the library's in the clothes of a user's, with something changed in what it returns."""

    inner: Iteration

    def directions(self, size, rounds):
        return self.inner.directions(size, rounds)

    def sweep(self, steps, x, scratch, memory):
        return self.changed(self.inner.sweep(steps, x, scratch, memory), x)

    def changed(self, swept, x):
        return swept


@dataclass(frozen=True)
class Constant(Iteration):
    """``delta = c (y - x)``, which is said or not."""

    c: float
    said: float | None = None
    residual: bool = True

    def sweep(self, steps, x, scratch, memory):
        images = steps.images()
        residual = images - x[1:]
        change = residual.clone()
        for n in range(1, len(change)):
            change[n] += self.c * change[n - 1]
        slope = None if self.said is None else torch.full_like(residual[..., 0], self.said)
        return Swept(x[1:] + change, change, residual.square().mean(-1).sqrt() if self.residual else None, slope)


class Damped(Iteration):
    """``X + w (P(X) - X)``: damping as one knows it from other fixed points."""

    def __init__(self, weight):
        self.weight = weight

    def __repr__(self):
        return f"Damped({self.weight})"

    def sweep(self, steps, x, scratch, memory):
        swept = ps.Picard().sweep(steps, x, scratch, memory)
        change = self.weight * (swept.y - x[1:])
        return replace(swept, y=x[1:] + change, change=change)


class Doubled(Damped):
    """Damped behind the first step alone."""

    def sweep(self, steps, x, scratch, memory):
        swept = ps.Picard().sweep(steps, x, scratch, memory)
        change = swept.y - x[1:]
        change[1:] *= self.weight
        return replace(swept, y=x[1:] + change, change=change, slope=None)


def in_tolerances(solution, reference, tol):
    allowed = tol * (1 + reference.ys.abs())
    return float(((solution.ys - reference.ys) / allowed).square().mean(-1).sqrt().max())


def stepwise(problem):
    return problem(window=1, tol=0.0)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("inner", OURS, ids=repr)
@pytest.mark.parametrize("tol", [0.0, 1e-5])
def test_what_keeps_the_contract_is_solved(name, inner, tol):
    """The library's own iterations do; watched they find what they find by themselves, in about as many rounds."""
    problem = PROBLEMS[name]
    alone, watched = problem(iteration=inner, tol=tol), problem(iteration=Around(inner), tol=tol)
    assert watched.result is ps.Result.converged
    assert watched.stats.rounds <= 1.3 * alone.stats.rounds + 4
    rounding = 1e3 * torch.finfo(alone.ys.dtype).eps
    off = [in_tolerances(solution, stepwise(problem), max(tol, rounding)) for solution in (alone, watched)]
    assert off[1] < max(3 * off[0], 10)  # of growth, Anderson with one gamma is off by 6 by itself


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("stop", ["error", "residual", "increment"])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9, 1.5])
def test_a_damped_step_is_refused(name, stop, weight):
    with pytest.raises(ValueError, match=rf"^iteration: Damped\({weight}\) breaks a rule .*: y must be F where no"):
        PROBLEMS[name](iteration=Damped(weight), tol=1e-3 if stop == "increment" else 1e-5, stop=stop)


@pytest.mark.parametrize("weight", [0.5, 0.9])
@pytest.mark.parametrize("name", ["a rotation", "growth"])
def test_a_sweep_damped_behind_its_first_step_is_solved(name, weight):
    solution = PROBLEMS[name](iteration=Doubled(weight), tol=1e-5)
    assert in_tolerances(solution, stepwise(PROBLEMS[name]), 1e-5) < 5


@pytest.mark.parametrize("weight", [0.5, 0.9])
def test_it_is_refused_where_a_state_comes_to_rest(weight):
    with pytest.raises(ValueError, match="y must be F where no state before has changed"):
        PROBLEMS["a batch of SDEs"](iteration=Doubled(weight), tol=1e-5)


def lie(**change):
    """Around Picard, with fields of what is swept replaced by functions of it."""

    class Lying(Around):
        def changed(self, swept, x):
            return replace(swept, **{name: made(swept, x) for name, made in change.items()})

    return Lying(ps.Picard())


def in_place(swept, x):
    x[-1] += 1
    return swept.memory


LIES = {
    "a change half as large": (lie(change=lambda s, x: s.change / 2), "change must be"),
    "a change of nothing": (lie(change=lambda s, x: 0 * s.change), "change must be"),
    "a change twice as large": (lie(change=lambda s, x: 2 * s.change), "change must be"),
    "a change the other way": (lie(change=lambda s, x: -s.change), "change must be"),
    "the new states for a change": (lie(change=lambda s, x: s.y), "change must be"),
    "states of another shape": (lie(y=lambda s, x: s.y[:-1]), "y must be a tensor"),
    "states of another dtype": (lie(y=lambda s, x: s.y.half()), "y must be a tensor"),
    "a sum for the residual": (lie(residual=lambda s, x: s.residual * x.shape[-1] ** 0.5), "residual must be"),
    "no residual at all": (lie(residual=lambda s, x: 0 * s.residual), "residual must be"),
    "a residual of each number": (lie(residual=lambda s, x: s.change), "residual must be"),
    "one residual": (lie(residual=lambda s, x: s.residual[0]), "residual must be"),
    "a slope of each number": (lie(slope=lambda s, x: s.change), "slope must be"),
    "a slope that forgets": (lie(slope=lambda s, x: 0 * s.slope), "slope must be"),
    "a slope of a tenth": (lie(slope=lambda s, x: 0 * s.slope + 0.1), "slope must be"),
    "a slope of five": (lie(slope=lambda s, x: 0 * s.slope + 5.0), "slope must be"),
    "memory that is no tuple": (lie(memory=lambda s, x: s.y), "memory must be a tuple"),
    "memory of another length": (lie(memory=lambda s, x: (x,)), "memory must be tensors"),
    "memory without samples": (lie(memory=lambda s, x: (s.y[:, :0],)), "memory must be tensors"),
    "old states overwritten": (lie(memory=in_place), "x must not be written to"),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("problem", ["a rotation", "growth", "a batch of SDEs"])
def test_a_lie_is_refused_by_its_rule(name, problem):
    iteration, rule = LIES[name]
    with pytest.raises(ValueError, match=rf"^iteration: .*Lying.* breaks a rule of picardsolve\.Iteration: {rule}"):
        PROBLEMS[problem](iteration=iteration, tol=1e-6)


@pytest.mark.parametrize("problem", ["a rotation", "growth", "a batch of SDEs", "a denoiser"])
@pytest.mark.parametrize("c", [0.0, 0.5, 0.95, 1.0, 1.05])
@pytest.mark.parametrize("residual", [True, False])
def test_a_slope_that_is_used_and_not_reported_does_no_harm(problem, c, residual):
    """Nor does a residual that is not: the claims are those of what was seen."""
    problem = PROBLEMS[problem]
    solution = problem(iteration=Constant(c, residual=residual), tol=1e-5)
    reference = stepwise(problem)
    assert in_tolerances(solution, reference, 1e-5) < 10
    found = solution.certificate.verify()
    assert bool((found.error <= 3 * solution.certificate.bound + found.rounding).all())
    if residual:
        said = problem(iteration=Constant(c, c), tol=1e-5)
        assert in_tolerances(said, reference, 1e-5) < 10


def test_what_returns_no_sweep_is_refused():
    class Nothing(Iteration):
        def sweep(self, steps, x, scratch, memory):
            return None

    with pytest.raises(TypeError, match=r"^iteration: .*Nothing.* must return a Swept from sweep, got NoneType"):
        PROBLEMS["a rotation"](iteration=Nothing())


def test_directions_of_another_size_are_refused():
    class Across(Around):
        def directions(self, size, rounds):
            return torch.eye(size + 1)

    with pytest.raises(ValueError, match=r"directions must be a tensor \(P, 3\) or None, got \(4, 4\)"):
        PROBLEMS["a rotation"](iteration=Across(ps.Picard()))


def test_memory_may_be_any_of_the_tensors_at_hand():
    """They are copied: scratch and states are written to in the next round."""

    class Remembers(Iteration):
        def sweep(self, steps, x, scratch, memory):
            images = steps.images()
            torch.sub(images, x[1:], out=scratch)
            if memory:
                seen.append((memory[0], memory[1]))
            change = scratch.cumsum(0)
            scratch.copy_(change)
            y = x[1:] + scratch
            kept.append((scratch.clone(), y.clone()))
            return Swept(y, scratch, None, None, (scratch, y))

    kept, seen = [], []
    solution = PROBLEMS["a rotation"](iteration=Remembers(), tol=1e-5)
    assert solution.stats.rounds > 8
    for record, before, after in zip(solution.history, kept, seen, strict=False):
        stride = int(record.stride)
        for old, new in zip(before, after, strict=True):
            moved = old[stride:]
            assert torch.equal(new[: len(moved)], moved[: len(new)])


# ---- guesses


class Guessed(ps.Guess):
    """Any function of what is entering."""

    def __init__(self, function):
        self.function = function

    def ahead(self, entering):
        return self.function(entering)


def copies(entering):
    return entering.start.expand(len(entering.n), *entering.start.shape).clone()


def spoiled(entering):
    states = copies(entering)
    entering.start.mul_(2)
    entering.trail.y.mul_(2)
    entering.source.output.zero_()
    return states


HARMLESS = {
    "copies": copies,
    "not a number": lambda entering: copies(entering) * torch.nan,
    "infinite": lambda entering: copies(entering) / 0,
    "far away": lambda entering: copies(entering) + 1e6,
    "another dtype": lambda entering: copies(entering).half(),
    "one that writes into what it is given": spoiled,
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("problem", ["a rotation", "a batch of SDEs"])
def test_the_answer_does_not_depend_on_a_guess(name, problem):
    solution = PROBLEMS[problem](guess=Guessed(HARMLESS[name]), tol=1e-6)
    assert in_tolerances(solution, stepwise(PROBLEMS[problem]), 1e-6) < 5


@pytest.mark.parametrize("problem", ["a rotation", "a batch of SDEs"])
def test_a_function_may_write_into_the_state_that_it_is_given(problem):
    def guess(ts, y):
        y.mul_(3)
        return y.expand(len(ts), *y.shape)

    solution = PROBLEMS[problem](guess=guess, tol=1e-6)
    assert in_tolerances(solution, stepwise(PROBLEMS[problem]), 1e-6) < 5


@pytest.mark.parametrize(
    "bad",
    [
        lambda entering: copies(entering)[:-1],
        lambda entering: torch.cat([copies(entering), copies(entering)]),
        lambda entering: copies(entering)[..., :1],
        lambda entering: entering.start,
        lambda entering: None,
        lambda entering: np.zeros((len(entering.n), *entering.start.shape)),
    ],
)
def test_a_guess_of_another_shape_is_refused(bad):
    with pytest.raises(ValueError, match=r"^guess: .*Guessed.* must return states \(\d+, 1, 3\), got "):
        PROBLEMS["a rotation"](guess=Guessed(bad))


# ---- starts of Parareal


@pytest.mark.parametrize("starts", [(), (1, 10), (0, 10, 5), (0, 0, 5), (0, 5, 500), tuple(range(0, 120, 2)), (0, 2.5)])
def test_cores_that_cannot_start_are_refused(starts):
    class Anywhere(ps.Parareal):
        def cores(self, steps, most):
            return starts

    with pytest.raises(ValueError, match=r"^iteration: .*Anywhere.*cores must give at most 32 steps, 0 first"):
        PROBLEMS["a rotation"](iteration=Anywhere(), window=32)
