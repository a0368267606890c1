"""Every argument of every public call does something, or is refused.

A row is a call, one of its parameters, and two values of it that must make a difference to what comes back, costs or
is raised. A parameter without a row fails: whoever adds one says here what it does.
"""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import picardsolve as ps

pytestmark = pytest.mark.usefixtures("nothing_is_decided_by_the_clock")

Y = torch.tensor([[1.0, 0.5], [0.3, 2.0]], dtype=torch.float64)
TS = ps.grids.uniform(0.0, 2.0, 64)
BETAS = torch.linspace(1e-4, 0.02, 1000)
SCHEDULE = ps.schedules.from_betas(BETAS)


def drift(t, y, k=1.0):
    return torch.sin(3 * y) - k * y


def recurrent(n, x, k=1.0):
    return 0.7 * torch.sin(k * x) + 0.1 * torch.cos(n.reshape(-1, *[1] * (x.dim() - 1)) * 1.0) * x.flip(-1)


def spread(t, y, k=1.0):
    return 0.3 * k * torch.cos(y)


def drawn_there(path):
    """The dtype and the device of what a path draws."""
    one = torch.ones(1, dtype=torch.float64)
    w = path.increments(0 * one, one, torch.zeros(1, dtype=torch.int64), 2)
    return str(w.dtype), str(w.device)


def eps(x, t, k=None):
    return 0.5 * x if k is None else x * k[:, None]


class Equation:
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.3 * y

    def h(self, t, y):
        return -2 * y


@dataclass
class Call:
    """A public call.

    Attributes:
        function: the call.
        given: arguments by name, where every row starts from.
        rows: by parameter, arguments that are changed on either side; a string is a refusal that the second meets.
        seen: what is observed of the result.
        without: parameters that this is no place for, and whose is.
    """

    function: Any
    given: dict[str, Any]
    rows: dict[str, Any]
    seen: Any = None
    without: tuple[str, ...] = ()
    names: list[str] = field(init=False)

    def __post_init__(self):
        parameters = inspect.signature(self.function).parameters
        self.names = [name for name in parameters if name not in self.without and name != "self"]

    def observed(self, change):
        given = {**self.given, **change}
        if "self" in given:
            given = dict(given)
            owner = given.pop("self")
            result = getattr(owner, self.function.__name__)(**given)
        else:
            result = self.function(**given)
        return flat(result if self.seen is None else self.seen(result))


def flat(value):
    """Tensors and other leaves of nested containers."""
    if isinstance(value, ps.Solution):
        value = (value.ys, value.ts, value.stats, len(value.history), value.notes, value.events, value.result.name)
    if hasattr(value, "__dataclass_fields__"):
        shown = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        value = (type(value).__name__, shown)
    leaves = pytree.tree_leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return [value]
    return [part for leaf in leaves for part in flat(leaf)]


def same(one, other):
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                return False
        elif type(a) is not type(b) or (not callable(a) and a != b) or (callable(a) and a is not b):
            return False
    return True


TRUNCATED = {"max_rounds": 3, "throw": False}
SOLVE = {"term": ps.ODE(drift), "y0": Y, "ts": TS, "integrator": ps.Euler(), "tol": 1e-4}
GRID = {
    "term": ({}, {"term": ps.ODE(lambda t, y: -y)}),
    "y0": ({}, {"y0": 2 * Y}),
    "ts": ({}, {"ts": 2 * TS}),
    "integrator": ({}, {"integrator": ps.Heun()}),
    "brownian": (
        {"term": ps.SDE(drift, spread), "integrator": ps.EulerMaruyama()},
        {"term": ps.SDE(drift, spread), "integrator": ps.EulerMaruyama(), "brownian": ps.BrownianPath(7)},
    ),
    "args": ({}, {"args": (2.0,)}),
    "cond": ({}, {"cond": {"k": torch.ones(2)}}, "cond: only a Denoiser"),
    "batch_dims": ({}, {"batch_dims": 2}, "batch_dims: expected 0"),
    "max_batch": ({}, {"max_batch": 1}),
    "save": ({}, {"save": "last"}),
    "throw": ({"y0": Y * math.inf}, {"y0": Y, "ts": TS, "term": ps.ODE(lambda t, y: y / 0)}, "not finite"),
}
SPREAD = {
    "mesh": ({}, {"mesh": 2}, "mesh: expected DeviceMesh"),
    "devices": ({}, {"devices": ["cpu", "cpu"]}),
}
WINDOW = {
    "iteration": ({}, {"iteration": ps.Secant()}),
    "guess": ({}, {"guess": ps.Copy()}),
    "window": ({}, {"window": 4}),
    "tol": ({}, {"tol": 1e-8}),
    "rtol": ({"tol": None}, {"tol": None, "rtol": 1e-9}),
    "atol": ({"tol": None}, {"tol": None, "atol": 1e-12, "rtol": 1e-9}),
    "stop": ({}, {"stop": "increment"}),
    "certify": ({}, {"certify": True}),
    "max_rounds": (TRUNCATED, {**TRUNCATED, "max_rounds": 5}),
    "events": ({}, {"events": lambda t, y: y[0]}, "events: found between steps"),
    "throw": ({**TRUNCATED}, {**TRUNCATED, "throw": True}, "limit of rounds"),
    "batch_dims": ({}, {"batch_dims": 1}),
    "max_batch": ({}, {"max_batch": 5}),
    **SPREAD,
}
CHAIN = {"step": recurrent, "x0": Y, "n_steps": 64}
DENOISES = {
    "term": ps.Denoiser(eps, SCHEDULE),
    "y0": torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),
    "ts": ps.grids.uniform(999, -1, 30),
    "integrator": ps.DDPM(),
}
NOISY = ps.Denoiser(eps, ps.schedules.EDM(), "sample")
ODEINT = {"func": drift, "y0": Y[0], "t": TS[::16], "options": {"full_output": True}}
OPTIONS = {
    "vectorized": (False, True),
    "max_batch": (None, 30),
    "max_rounds": (1000, 1, "limit of rounds"),
    "full_output": (True, False),
    "first_step": (None, 1e-3),
    "max_step": (None, 0.1),
    "nodes": ("radau", "lobatto"),
    "order": (None, 8),
    "in_flight": (None, 1),
    "step_size": (None, 0.01, "no effect"),
    "unheard_of": (None, 1, "options: got unknown 'unheard_of'"),
    "window": (None, 4, "options: got unknown 'window'"),
}
FIXED_OPTIONS = {
    "step_size": (0.5, 0.01),
    "window": (32, 2),
    "iteration": (None, ps.Secant()),
    "guess": (None, ps.Copy()),
    "max_batch": (None, 2),
    "max_rounds": (None, 4, "limit of rounds"),
    "unheard_of": (None, 1, "options: got unknown 'unheard_of'"),
    "order": (None, 8, "options: got unknown 'order'"),
}
SDEINT = {"sde": Equation(), "y0": Y, "ts": [0.0, 0.5, 1.0], "dt": 0.05}

CALLS = {
    "solve": Call(ps.solve, SOLVE, GRID | WINDOW, without=("progress",)),
    "solve by Parareal": Call(
        ps.solve,
        SOLVE | {"iteration": ps.Parareal()},
        {
            "window": ({}, {"window": 3}),
            "iteration": ({}, {"iteration": ps.Parareal(3)}),
            "tol": ({"tol": 1e-2}, {"tol": 1e-9}),
            "stop": ({}, {"stop": "nothing"}, "stop: expected one of"),
        },
        without=tuple(set(inspect.signature(ps.solve).parameters) - {"window", "iteration", "tol", "stop"}),
    ),
    "solve a denoiser": Call(
        ps.solve,
        DENOISES,
        {
            "cond": ({}, {"cond": {"k": torch.tensor([0.2, 0.9])}}),
            "tol": ({}, {"tol": 1e-6}),
            "stop": ({}, {"stop": "residual"}),
            "brownian": ({}, {"brownian": ps.BrownianPath(seed=3)}),
            "args": ({}, {"args": (1.0,)}, "args: a Denoiser's model takes arguments by name"),
            "batch_dims": ({}, {"batch_dims": 0}, "batch_dims: the y0 of a Denoiser is always a batch"),
        },
        without=tuple(
            set(inspect.signature(ps.solve).parameters) - {"cond", "tol", "stop", "brownian", "args", "batch_dims"}
        ),
    ),
    "sequential": Call(
        ps.sequential,
        {k: v for k, v in SOLVE.items() if k != "tol"},
        GRID
        | {
            "batch_dims": ({"max_batch": 1}, {"batch_dims": 1, "max_batch": 1}),
            "max_batch": ({"batch_dims": 1}, {"batch_dims": 1, "max_batch": 1}),
        },
        without=("progress",),
    ),
    "solve_chain": Call(
        ps.solve_chain,
        CHAIN,
        {
            "step": ({}, {"step": lambda n, x: 0.5 * x}),
            "x0": ({}, {"x0": 2 * Y}),
            "n_steps": ({}, {"n_steps": 50}),
            "vectorized": (
                {},
                {"vectorized": False, "step": lambda n, x: x.sum() / (1 + n)},
                "step: expected to return",
            ),
            "tol": ({"tol": 1e-2}, {"tol": 1e-8}),
            "rtol": ({"rtol": 1e-2}, {"rtol": 1e-9}),
            "atol": ({"rtol": 0.0, "atol": 1e-2}, {"rtol": 0.0, "atol": 1e-9}),
            "batch_dims": ({"window": 8}, {"window": 8, "batch_dims": 1}),
            "window": ({}, {"window": 4}),
            **{name: GRID[name] for name in ("args", "save")},
            **{name: WINDOW[name] for name in ("iteration", "max_batch")},
            "guess": ({"window": 8}, {"window": 8, "guess": lambda n, x: 0 * x + n.to(x)[:, None, None]}),
            "max_rounds": ({**TRUNCATED, "max_rounds": 2}, TRUNCATED),
            "throw": (TRUNCATED, {**TRUNCATED, "throw": True}, "limit of rounds"),
        },
        without=("progress",),
    ),
    "odeint": Call(
        ps.odeint,
        ODEINT,
        {
            "func": ({}, {"func": lambda t, y: -y}),
            "y0": ({}, {"y0": Y[1]}),
            "t": ({}, {"t": 2 * TS[::16]}),
            "rtol": ({}, {"rtol": 1e-3}),
            "atol": ({}, {"atol": 1e-3}),
            "method": ({}, {"method": "picard"}),
            "options": ({}, {"options": {}}),
            "event_fn": ({"t": TS[[0, -1]]}, {"t": TS[[0, -1]], "event_fn": lambda t, y: y[0] - 0.99}),
            **SPREAD,
        },
    ),
    "sdeint": Call(
        ps.sdeint,
        SDEINT,
        {
            "sde": ({}, {"sde": type("Other", (Equation,), {"f": lambda self, t, y: y})()}),
            "y0": ({}, {"y0": 2 * Y}),
            "ts": ({}, {"ts": [0.0, 0.7, 1.0]}),
            "bm": ({}, {"bm": ps.BrownianPath(4)}),
            "method": ({}, {"method": "euler"}),
            "dt": ({}, {"dt": 0.1}),
            "adaptive": ({}, {"adaptive": True}, "adaptive: expected False"),
            "rtol": ({"rtol": 1e-2}, {"rtol": 1e-9}),
            "atol": ({"atol": 1e-1, "rtol": 0.0}, {"atol": 1e-9, "rtol": 0.0}),
            "options": ({}, {"options": {"full_output": True}}),
            "names": ({}, {"names": {"drift": "h"}}),
        },
    ),
    "analyze": Call(
        ps.analyze,
        {k: v for k, v in SOLVE.items()},
        {name: row for name, row in GRID.items() if name not in ("save", "throw", "max_batch", "batch_dims")}
        | {
            "max_batch": ({}, {"max_batch": 8}),
            "iteration": ({}, {"iteration": ps.Jacobi()}),
            "batch_dims": ({}, {"batch_dims": 2}, "batch_dims: expected 0"),
            "tol": ({"tol": 1e-1}, {"tol": 1e-12}),
            "rtol": ({"tol": None, "rtol": 1e-1}, {"tol": None, "rtol": 1e-12}),
            "atol": ({"tol": None, "rtol": 0.0, "atol": 1e-1}, {"tol": None, "rtol": 0.0, "atol": 1e-12}),
        },
        lambda found: (found.steps, [(r.width, r.rounds) for r in found.table], found.contraction, found.lipschitz),
    ),
    "BrownianPath": Call(
        ps.BrownianPath,
        {},
        {
            "seed": ({}, {"seed": 1}),
            "resolution": ({}, {"resolution": 2.0**-4}),
            "dtype": ({}, {"dtype": torch.float32}),
            "device": ({}, {"device": "meta"}),
        },
        lambda path: (path.increment(0.0, 0.7, (2, 3)), path.resolution, *drawn_there(path)),
    ),
    "BrownianPath.increment": Call(
        ps.BrownianPath.increment,
        {"self": ps.BrownianPath(), "t0": 0.0, "t1": 1.0, "shape": (2, 3)},
        {
            "t0": ({}, {"t0": 0.5}),
            "t1": ({}, {"t1": 0.5}),
            "shape": ({}, {"shape": (2, 4)}),
            "dtype": ({}, {"dtype": torch.float64}),
            "device": ({}, {"device": "meta"}),
        },
        lambda w: (tuple(w.shape), str(w.dtype), str(w.device), None if w.is_meta else w),
    ),
    "reverse_sde": Call(
        ps.reverse_sde,
        {"score": lambda x, t: -x, "schedule": SCHEDULE, "start": 900.0, "end": 10.0, "steps": 10},
        {
            "score": ({}, {"score": lambda x, t: -2 * x}),
            "schedule": ({}, {"schedule": ps.schedules.from_betas(2 * BETAS)}),
            "start": ({}, {"start": 800.0}),
            "end": ({}, {"end": 20.0}),
            "steps": ({}, {"steps": 11}),
        },
        lambda found: (found[1], found[0].drift(found[1][:1, None], Y[:1])),
    ),
    "divergence": Call(
        ps.divergence,
        {"drift": lambda t, y: torch.sin(y.cumsum(-1))},
        {
            "drift": ({}, {"drift": lambda t, y: torch.cos(y.cumsum(-1))}),
            "probes": ({}, {"probes": 1}),
            "seed": ({"probes": 1}, {"probes": 1, "seed": 1}),
            "law": ({"probes": 1}, {"probes": 1, "law": "gaussian"}),
        },
        lambda flow: flow(TS[0], (Y, Y[:, 0])),
    ),
    "grids.uniform": Call(
        ps.grids.uniform,
        {"t0": 0.0, "t1": 1.0, "steps": 4},
        {"t0": ({}, {"t0": -1.0}), "t1": ({}, {"t1": 2.0}), "steps": ({}, {"steps": 5})},
    ),
    "grids.karras": Call(
        ps.grids.karras,
        {"sigma_max": 10.0, "sigma_min": 0.1, "steps": 6},
        {
            "sigma_max": ({}, {"sigma_max": 20.0}),
            "sigma_min": ({}, {"sigma_min": 0.2}),
            "steps": ({}, {"steps": 7}),
            "rho": ({}, {"rho": 3.0}),
        },
    ),
    "grids.log_snr": Call(
        ps.grids.log_snr,
        {"schedule": SCHEDULE, "t0": 900.0, "t1": 10.0, "steps": 6},
        {
            "schedule": ({}, {"schedule": ps.schedules.from_betas(2 * BETAS)}),
            "t0": ({}, {"t0": 800.0}),
            "t1": ({}, {"t1": 20.0}),
            "steps": ({}, {"steps": 7}),
        },
    ),
    "recheck": Call(
        ps.Certificate.recheck,
        {"self": ps.solve(**SOLVE).certificate},
        {"factor": ({}, {"factor": 0.9})},
        lambda found: (found.better.ys,),
    ),
    "certified": Call(
        ps.Certificate.certified,
        {"self": ps.solve(**SOLVE).certificate, "lipschitz": 4.0},
        {"lipschitz": ({}, {"lipschitz": 5.0}), "one_sided": ({}, {"one_sided": 1.0})},
        lambda found: (found.bound,),
    ),
}


def solved(**given):
    return ps.solve(**{**SOLVE, **given})


def preset(name, **rows):
    made = getattr(ps.presets, name)
    return Call(made, {}, {parameter: ({}, {parameter: value}) for parameter, value in rows.items()})


def built(kind, seen, given=None, /, without=(), **rows):
    """A constructor, seen through a solve."""
    return Call(kind, given or {}, {name: ({}, {name: value}) for name, value in rows.items()}, seen, without)


def iterated(iteration):
    return solved(iteration=iteration, tol=1e-6)


def guessed(guess):
    return solved(guess=guess, tol=1e-6, window=8)


def denoised(integrator):
    return ps.solve(**{**DENOISES, "integrator": integrator})


CALLS |= {
    "presets.paradigms": preset("paradigms", tol=0.2),
    "presets.parasolver": preset("parasolver", tol=0.2),
    "presets.parataa": preset("parataa", order=3),
    "presets.srds": preset("srds", blocks=4, iterations=2),
    "presets.chords": preset("chords", steps=100, cores=4, iterations=1),
    "presets.deq": preset("deq"),
    "presets.deer": preset("deer"),
    "presets.quasi_deer": preset("quasi_deer"),
    "Anderson": built(
        ps.Anderson, iterated, memory=1, triangular=False, ridge=1.0, order=2, absolute_ridge=1.0, base="picard"
    ),
    "MultiSecant": built(ps.MultiSecant, iterated, memory=3, neighbours=0, ridge=10.0),
    "Newton": built(ps.Newton, iterated, jacobian="hutchinson", damping=0.9, seed=3),
    "Parareal": built(ps.Parareal, iterated, blocks=3, starts=(0, 20), coarse=3, iterations=1, grid=None),
    "Polynomial": built(ps.Polynomial, guessed, without=("ts",), degree=1),
    "RK4": built(ps.RK4, lambda rule: solved(integrator=rule), rule="3/8"),
    "DDIM": built(ps.DDIM, denoised, eta=1.0),
    "StochasticEDM": built(
        ps.StochasticEDM,
        lambda made: ps.solve(NOISY, DENOISES["y0"], ps.grids.karras(5.0, 0.1, 8), integrator=made),
        {"s_churn": 2.0},
        s_churn=1.0,
        s_tmin=1.0,
        s_tmax=1.0,
        s_noise=1.1,
        order=1,
        gamma_max=0.1,
        step_scale=1.2,
    ),
    "DPMSolver": built(ps.DPMSolver, denoised, order=1, sde=True),
    "Batcher": built(
        ps.Batcher,
        # what a lone call shows of it; test_batcher.py has company
        lambda made: (made(torch.zeros(1), Y), torch.tensor([made.load.max_rows, made.max_wait or 0.0])),
        {"model": drift, "max_rows": 8},
        model=lambda t, y: -y,
        max_rows=2,
        max_wait=0.01,
    ),
    "ODE": built(ps.ODE, lambda term: solved(term=term), {"drift": drift}, drift=lambda t, y: -y, vectorized=False),
}
EARLIER = ps.solve(**SOLVE)
CALLS |= {
    "Adaptive": built(
        ps.Adaptive,
        lambda method: solved(integrator=method, ts=TS[[0, -1]]),
        first_step=1e-2,
        max_step=0.02,
    ),
    "Collocation": built(
        ps.Collocation,
        lambda method: solved(integrator=method, ts=TS[[0, -1]]),
        **{"nodes": "chebyshev", "order": 9, "in_flight": 1, "first_step": 1e-2, "max_step": 0.05},
    ),
    **{
        method.__name__: built(
            method,
            lambda made: solved(integrator=made, ts=TS[[0, -1]], throw=False),
            {"first_step": 0.05, "max_num_steps": 1000},  # where factors of the next lengths are felt
            first_step=1e-2,
            min_step=0.2,
            max_step=0.02,
            max_num_steps=1,
            step_t=(0.111,),
            jump_t=(0.111,),
            safety=0.5,
            ifactor=1.5,
            dfactor=0.9,
        )
        for method in (ps.Dopri5, ps.Dopri8, ps.Tsit5)
    },
    "SDE": built(
        ps.SDE,
        lambda term: solved(term=term, integrator=ps.Milstein()),
        {"drift": drift, "diffusion": spread},
        drift=lambda t, y: -y,
        diffusion=lambda t, y: 0.1 * y,
        noise="scalar",
        interpretation="stratonovich",
        vectorized=False,
    ),
    "Denoiser": built(
        ps.Denoiser,
        lambda term: ps.solve(**DENOISES | {"term": term}),
        {"model": eps, "schedule": SCHEDULE},
        model=lambda x, t: 0.1 * x,
        schedule=ps.schedules.from_betas(2 * BETAS),
        prediction="sample",
        sigma_data=3.0,
    ),
    "FromTrajectory": built(
        ps.FromTrajectory,
        guessed,
        {"previous": EARLIER},
        without=("rows", "problem"),
        previous=0 * EARLIER.ys,
        noise=None,
    ),
    "SecondOrderODE": built(
        ps.SecondOrderODE,
        lambda term: solved(term=term, y0=(Y[0], Y[1])),
        {"acceleration": drift},
        acceleration=lambda t, q: -q,
        vectorized=False,
    ),
    "SemilinearODE": built(
        ps.SemilinearODE,
        lambda term: solved(term=term, y0=Y[0], integrator=ps.ETD1()),
        {"linear": torch.tensor([-3.0, -1.0]), "nonlinear": drift},
        linear=torch.tensor([-5.0, -1.0]),
        nonlinear=lambda t, y: 0 * y,
        vectorized=False,
    ),
    "Diagonal": built(
        ps.Diagonal,
        lambda part: (part.apply(Y),),
        {"values": torch.tensor([1.0, 2.0])},
        values=torch.tensor([3.0, 2.0]),
    ),
    "Fourier": built(
        ps.Fourier, lambda part: (part.apply(Y),), {"symbol": torch.tensor([0.0, 2.0])}, symbol=torch.tensor([0.0, 3.0])
    ),
}
# values that do not differ from the default by themselves
BESIDE = {
    ("Anderson", "base"): (
        {"base": "picard"},
        {"base": "exponential"},
        lambda one: ps.solve(**DENOISES, iteration=one),
    ),
    ("Newton", "seed"): (
        {"jacobian": "hutchinson"},
        {"jacobian": "hutchinson", "seed": 3},
        lambda one: solved(iteration=one, term=ps.ODE(lambda t, y: torch.sin(3 * y.flip(-1)))),
    ),
    ("Parareal", "grid"): ({"starts": (0, 20)}, {"starts": (0, 20), "grid": 128}, None),
    ("ODE", "vectorized"): (
        {},
        {"vectorized": False},
        lambda term: solved(term=ps.ODE(lambda t, y: drift(t, y) + 0 * t.dim() + float(t.dim() > 0), term.vectorized)),
    ),
}
BESIDE |= {
    ("SDE", "vectorized"): (
        {"drift": lambda t, y: -y + float(t.dim() > 0)},
        {"drift": lambda t, y: -y + float(t.dim() > 0), "vectorized": False},
        None,
    ),
    ("SecondOrderODE", "vectorized"): (
        {"acceleration": lambda t, y: -y + float(t.dim() > 0)},
        {"acceleration": lambda t, y: -y + float(t.dim() > 0), "vectorized": False},
        None,
    ),
    ("SemilinearODE", "vectorized"): (
        {"nonlinear": lambda t, y: -y + float(t.dim() > 0)},
        {"nonlinear": lambda t, y: -y + float(t.dim() > 0), "vectorized": False},
        None,
    ),
    ("FromTrajectory", "noise"): (
        {"previous": ps.solve(**DENOISES)},
        {"previous": ps.solve(**DENOISES), "noise": "new"},
        lambda guess: ps.solve(**DENOISES | {"brownian": ps.BrownianPath(5), "guess": guess}),
    ),
}
# what comes back from calls, and is not made by users
RESULTS = {
    "Analysis",
    "Cancelled",
    "Certificate",
    "ConvergenceWarning",
    "Expected",
    "Occurrences",
    "Result",
    "Round",
    "Solution",
} | {
    "SolveError",
    "Stats",
    "Verification",
}
ROWS = [(name, parameter) for name, call in CALLS.items() for parameter in call.names]


@pytest.mark.parametrize(("name", "parameter"), ROWS)
def test_an_argument_acts_or_is_refused(name, parameter):
    call = CALLS[name]
    first, second, *rest = BESIDE.get((name, parameter)) or call.rows[parameter]
    refusal = rest[0] if rest and isinstance(rest[0], str) else None
    if rest and callable(rest[0]):
        call = Call(call.function, call.given, call.rows, rest[0])
    if refusal is not None:
        with pytest.raises((TypeError, ValueError, ps.SolveError), match=refusal):
            call.observed(second)
        return
    one, again, other = call.observed(first), call.observed(first), call.observed(second)
    assert same(one, again)  # what is observed is a function of the arguments
    assert not same(one, other)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_odeint_acts_or_is_refused(name):
    check_option(name, *OPTIONS[name])


@pytest.mark.parametrize("name", FIXED_OPTIONS)
def test_an_option_of_odeint_on_a_grid_acts_or_is_refused(name):
    check_option(name, *FIXED_OPTIONS[name], method="rk4")


def check_option(name, first, second, refusal=None, **more):
    def asked(value):
        options = {"full_output": True, "vectorized": True} | ({} if value is None else {name: value})
        if name == "vectorized":  # whether t comes with dimensions
            return flat(ps.odeint(lambda t, y: -y + float(t.dim() > 0), Y[0], TS[::16], options=options, **more))
        return flat(ps.odeint(drift, Y[0], TS if more else TS[::16], options=options, **more))

    if refusal is None:
        assert not same(asked(first), asked(second))
    else:
        with pytest.raises((ValueError, ps.SolveError, UserWarning), match=refusal):
            asked(second)


@pytest.mark.parametrize("call", [ps.solve, ps.sequential])
def test_progress_shows_a_bar(call, capsys):
    given = {name: value for name, value in SOLVE.items() if name in inspect.signature(call).parameters}
    call(**given)
    silent = capsys.readouterr().err
    call(**given, progress=True)
    assert silent == ""
    assert "64/64" in capsys.readouterr().err


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_argument_is_refused(name):
    call = CALLS[name]
    with pytest.raises(TypeError, match="unheard_of"):
        call.observed({"unheard_of": 1})


def test_every_public_call_has_rows():
    """Classes without arguments, and what only comes back from a call, need none."""
    calls = {call.function for call in CALLS.values()}
    public = [getattr(ps, name) for name in ps.__all__ if callable(getattr(ps, name))]
    public += [
        f
        for m in (ps.grids, ps.presets)
        for n, f in vars(m).items()
        if inspect.isfunction(f) and n[0] != "_" and f.__module__ == m.__name__
    ]
    missing = [
        each.__name__
        for each in public
        if each not in calls and not inspect.isclass(each) and each.__module__.startswith("picardsolve")
    ]
    elsewhere = {"given", "per_sample"} | {name for name in missing if name.startswith("check_")} | {"replace"}
    assert set(missing) <= elsewhere
    for name in set(ps.__all__) - RESULTS:
        kind = getattr(ps, name)
        if inspect.isclass(kind) and inspect.signature(kind).parameters:
            assert kind in calls, name


@pytest.mark.parametrize("name", ["tol", "rtol", "atol"])
@pytest.mark.parametrize("value", [True, "1e-3", -1.0, math.nan, [1e-3], torch.tensor([1e-3, -1.0])])
@pytest.mark.parametrize("integrator", [ps.Euler(), ps.Collocation()])
def test_a_tolerance_that_is_none_is_refused(name, value, integrator):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected "):
        ps.solve(ps.ODE(drift), Y, TS, integrator=integrator, batch_dims=1, **{name: value})
