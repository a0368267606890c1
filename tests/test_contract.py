"""What the public calls refuse: the type of the error, the argument it names, and what it says to pass instead."""

import re

import pytest
import torch

import picardsolve as ps

Y = torch.tensor([1.0, 2.0])
BATCH = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
TS = ps.grids.uniform(0.0, 1.0, 8)
NOISE_TO_SAMPLE = ps.grids.karras(10.0, 0.1, 8)
EDM = ps.schedules.EDM()
FLOW = ps.schedules.Flow()
NAN, INF = float("nan"), float("inf")


class Functions:
    """Well-behaved functions of a user, counting their calls."""

    def __init__(self):
        self.calls = 0

    def drift(self, t, y, *args):
        self.calls += 1
        return torch.utils._pytree.tree_map(lambda leaf: -leaf, y)

    def diffusion(self, t, y, *args):
        self.calls += 1
        return 0.1 * torch.ones_like(y)

    def model(self, x, t, **cond):
        self.calls += 1
        return 0.1 * x


def ode(f, call=ps.solve, vectorized=True, **change):
    return call(ps.ODE(f.drift, vectorized), **{"y0": Y, "ts": TS, "integrator": ps.Euler(), **change})


def sde(f, interpretation="ito", **change):
    term = ps.SDE(f.drift, f.diffusion, interpretation=interpretation)
    return ps.solve(term, **{"y0": BATCH, "ts": TS, "integrator": ps.EulerMaruyama(), "batch_dims": 1, **change})


def denoise(f, schedule=EDM, prediction="epsilon", **change):
    term = ps.Denoiser(f.model, schedule, prediction)
    return ps.solve(term, **{"y0": BATCH, "ts": NOISE_TO_SAMPLE, "integrator": ps.DDIM(), **change})


def odeint(f, **change):
    return ps.odeint(f.drift, **{"y0": Y, "t": TS, "method": "euler", "options": {"vectorized": True}, **change})


# What is wrong: (the call, the exact type of the error, what its first words name, what to pass instead).
# Names and instructions are regular expressions.
BAD_ARGUMENTS = {
    # the state
    "y0 of integers": (lambda f: ode(f, y0=torch.tensor([1, 2])), TypeError, "y0", r"pass y0\.double\(\)"),
    "y0 of booleans": (lambda f: ode(f, y0=torch.tensor([True])), TypeError, "y0", r"pass y0\.double\(\)"),
    "y0 complex of an SDE": (lambda f: sde(f, y0=1j * torch.ones(2)), TypeError, "y0", "only an ODE"),
    "y0 a numpy array": (lambda f: ode(f, y0=Y.numpy()), TypeError, "y0", r"pass torch\.as_tensor\("),
    "y0 a list of numbers": (lambda f: ode(f, y0=[1.0, 2.0]), TypeError, "y0", r"pass torch\.as_tensor\("),
    "y0 None": (lambda f: ode(f, y0=None), TypeError, "y0", r"pass torch\.as_tensor\("),
    "y0 an empty tuple": (lambda f: ode(f, y0=()), TypeError, "y0", "expected a tensor, or a tuple, list or dict"),
    "y0 without elements": (lambda f: ode(f, y0=torch.ones(0)), ValueError, "y0", "expected non-empty samples"),
    "y0 without samples": (
        lambda f: ode(f, y0=torch.ones(0, 2), batch_dims=1), ValueError, "y0", "expected non-empty samples"
    ),
    "y0 with NaN": (lambda f: ode(f, y0=torch.tensor([1.0, NAN])), ValueError, "y0", "expected finite values"),
    "y0 infinite": (lambda f: ode(f, y0=torch.tensor([INF])), ValueError, "y0", "expected finite values"),
    "y0 of two dtypes": (lambda f: ode(f, y0=(Y, Y.double())), TypeError, "y0", r"one dtype.*\.to\("),
    "y0 on two devices": (lambda f: ode(f, y0=(Y, Y.to("meta"))), TypeError, "y0", r"one device.*\.to\("),
    "y0 of two batch sizes": (
        lambda f: ode(f, y0=(BATCH, BATCH[:2]), batch_dims=1), ValueError, "y0", "one leading batch dimension"
    ),
    "y0 a number for a batch": (
        lambda f: ode(f, y0=torch.tensor(1.0), batch_dims=1), ValueError, "y0", "leading .*dimension"
    ),
    "y0 of integers, sequential": (
        lambda f: ode(f, ps.sequential, y0=torch.tensor([1, 2])), TypeError, "y0", r"pass y0\.double\(\)"
    ),
    # the grid
    "ts not monotone": (lambda f: ode(f, ts=[0.0, 2.0, 1.0]), ValueError, "ts", "strictly increasing or strictly"),
    "ts repeats a time": (lambda f: ode(f, ts=[0.0, 1.0, 1.0]), ValueError, "ts", "drop repeats"),
    "ts with NaN": (lambda f: ode(f, ts=[0.0, NAN, 1.0]), ValueError, "ts", "expected finite times"),
    "ts infinite": (lambda f: ode(f, ts=[0.0, INF]), ValueError, "ts", "expected finite times"),
    "ts of one time": (lambda f: ode(f, ts=[0.0]), ValueError, "ts", "at least two times"),
    "ts a number": (lambda f: ode(f, ts=1.0), ValueError, "ts", "at least two times"),
    "ts a matrix": (lambda f: ode(f, ts=torch.ones(3, 1)), ValueError, "ts", r"expected shape \(N \+ 1,\)"),
    "ts a string": (lambda f: ode(f, ts="linear"), TypeError, "ts", "times"),
    "ts None": (lambda f: ode(f, ts=None), TypeError, "ts", "times"),
    "ts complex": (lambda f: ode(f, ts=torch.tensor([0j, 1j])), TypeError, "ts", "real"),
    "ts repeats a time, sequential": (
        lambda f: ode(f, ps.sequential, ts=[0.0, 0.0]), ValueError, "ts", "drop repeats"
    ),
    "ts falls for an SDE": (lambda f: sde(f, ts=TS.flip(0)), ValueError, "ts", "reverse-time equation forward"),
    "ts rises in noise for a Denoiser": (
        lambda f: denoise(f, ts=NOISE_TO_SAMPLE.flip(0)), ValueError, "ts", "from noise to sample; reverse ts"
    ),
    "ts ends below no noise": (lambda f: denoise(f, ts=[2.0, 1.0, -1.0]), ValueError, "ts", "negative|>= 0"),
    "ts starts without signal, epsilon": (
        lambda f: denoise(f, FLOW, "epsilon", ts=ps.grids.uniform(1, 0, 8)),
        ValueError,
        "ts|prediction",
        "v_prediction|flow",
    ),
    # the tolerance
    "tol negative": (lambda f: ode(f, tol=-1.0), ValueError, "tol", "expected values >= 0"),
    "tol NaN": (lambda f: ode(f, tol=NAN), ValueError, "tol", "expected values >= 0"),
    "rtol negative": (lambda f: ode(f, rtol=-1.0), ValueError, "rtol", "expected values >= 0"),
    "atol negative": (lambda f: ode(f, atol=-1.0), ValueError, "atol", "expected values >= 0"),
    "tol with rtol": (lambda f: ode(f, tol=0.1, rtol=0.1), ValueError, "tol", "either tol, or rtol and atol"),
    "tol with atol": (lambda f: ode(f, tol=0.1, atol=0.1), ValueError, "tol", "either tol, or rtol and atol"),
    "tol of wrong shape": (lambda f: ode(f, tol=torch.ones(3)), ValueError, "tol", r"a number or shape \(1,\)"),
    "tol of wrong shape, batch": (
        lambda f: sde(f, tol=torch.ones(2)), ValueError, "tol", r"a number or shape \(3,\)"
    ),
    "rtol of wrong shape": (lambda f: sde(f, rtol=torch.ones(3, 1)), ValueError, "rtol", r"shape \(3,\)"),
    "tol a string": (lambda f: ode(f, tol="tight"), TypeError, "tol", "number"),
    # sizes and choices
    "window 0": (lambda f: ode(f, window=0), ValueError, "window", "expected an integer >= 1"),
    "window negative": (lambda f: ode(f, window=-3), ValueError, "window", "expected an integer >= 1"),
    "window a float": (lambda f: ode(f, window=4.0), TypeError, "window", "expected an integer >= 1"),
    "max_rounds 0": (lambda f: ode(f, max_rounds=0), ValueError, "max_rounds", "expected an integer >= 1"),
    "max_batch 0": (lambda f: ode(f, max_batch=0), ValueError, "max_batch", "expected an integer >= 1"),
    "max_batch 0, sequential": (
        lambda f: ode(f, ps.sequential, max_batch=0), ValueError, "max_batch", "expected an integer >= 1"
    ),
    "save unknown": (lambda f: ode(f, save="some"), ValueError, "save", "'all', 'last'"),
    "save unknown, sequential": (lambda f: ode(f, ps.sequential, save="some"), ValueError, "save", "'all', 'last'"),
    "batch_dims 2": (lambda f: ode(f, batch_dims=2, y0=BATCH), ValueError, "batch_dims", "expected 0 .* or 1"),
    "batch_dims a float": (lambda f: ode(f, batch_dims=1.0, y0=BATCH), TypeError, "batch_dims", "expected 0 .* or 1"),
    "batch_dims 0 for a Denoiser": (lambda f: denoise(f, batch_dims=0), ValueError, "batch_dims", "always a batch"),
    "batch_dims 2 for a Denoiser": (lambda f: denoise(f, batch_dims=2), ValueError, "batch_dims", "always a batch"),
    # the parts
    "term a function": (
        lambda f: ps.solve(f.drift, Y, TS, integrator=ps.Euler()), TypeError, "term", r"pass ps\.ODE\(f\)"
    ),
    "term a class": (lambda f: ps.solve(ps.ODE, Y, TS, integrator=ps.Euler()), TypeError, "term", "expected an ODE"),
    "integrator a class": (
        lambda f: ode(f, integrator=ps.Euler), TypeError, "integrator", r"an instance such as .*Euler\(\)"
    ),
    "integrator a string": (
        lambda f: ode(f, integrator="euler"), TypeError, "integrator", r"an instance such as .*Euler\(\)"
    ),
    "iteration a class": (lambda f: ode(f, iteration=ps.Picard), TypeError, "iteration", r"Picard\(\)"),
    "iteration a guess": (lambda f: ode(f, iteration=ps.Copy()), TypeError, "iteration", r"Picard\(\)"),
    "guess a class": (lambda f: ode(f, guess=ps.Copy), TypeError, "guess", r"Copy\(\)"),
    "guess a number": (lambda f: ode(f, guess=1.0), TypeError, "guess", r"Copy\(\)"),
    "brownian a seed": (lambda f: sde(f, brownian=3), TypeError, "brownian", r"BrownianPath\(seed=0\)"),
    "FrozenSample for an ODE": (
        lambda f: ode(f, guess=ps.FrozenSample()), TypeError, "guess", r"pass FrozenOutput\(\) or Copy\(\)"
    ),
    "FrozenSample for an SDE": (
        lambda f: sde(f, guess=ps.FrozenSample()), TypeError, "guess", r"pass FrozenOutput\(\) or Copy\(\)"
    ),
    "Heun for an SDE": (lambda f: sde(f, integrator=ps.Heun()), TypeError, "integrator", "or StochasticHeun..[.]"),
    "RK4 for an SDE": (lambda f: sde(f, integrator=ps.RK4()), TypeError, "integrator", "or StochasticHeun..[.]"),
    "DDIM for an SDE": (lambda f: sde(f, integrator=ps.DDIM()), TypeError, "integrator", r"pass EulerMaruyama\(\) or"),
    "DDPM for an SDE": (lambda f: sde(f, integrator=ps.DDPM()), TypeError, "integrator", r"pass EulerMaruyama\(\) or"),
    "Euler for a Stratonovich SDE": (
        lambda f: sde(f, "stratonovich"), TypeError, "integrator", "correction to the drift and pass .*='ito'"
    ),
    "DDIM for an ODE": (lambda f: ode(f, integrator=ps.DDIM()), TypeError, "integrator", r"pass Euler\(\), .*RK4\(\)"),
    "DDIM for an ODE, sequential": (
        lambda f: ode(f, ps.sequential, integrator=ps.DDIM()), TypeError, "integrator", r"pass Euler\(\), .*RK4\(\)"
    ),
    "DPMSolver for an ODE": (
        lambda f: ode(f, integrator=ps.DPMSolver()), TypeError, "integrator", r"pass Euler\(\), .*RK4\(\)"
    ),
    "backward Euler for a Denoiser": (
        lambda f: denoise(f, integrator=ps.BackwardEuler()), TypeError, "integrator", r"or DPMSolver\(\)\."
    ),
    "Milstein for a Denoiser": (
        lambda f: denoise(f, integrator=ps.Milstein()), TypeError, "integrator", r"or DPMSolver\(\)\."
    ),
    # what is passed on
    "cond for an ODE": (lambda f: ode(f, cond={"a": 1}), ValueError, "cond", r"pass args=\(\.\.\.\)"),
    "args for a Denoiser": (lambda f: denoise(f, args=(1,)), ValueError, "args", r"pass cond=\{"),
    "args a tensor": (lambda f: ode(f, args=torch.ones(3)), TypeError, "args", r"args=\("),
    "args a number": (lambda f: ode(f, args=2.0), TypeError, "args", r"args=\("),
    "cond a list": (lambda f: denoise(f, cond=[1]), TypeError, "cond", r"cond=\{"),
    "args of wrong length": (lambda f: sde(f, args=(torch.ones(2),)), ValueError, "args", "leading dimension of 3"),
    "args of wrong length, nested": (
        lambda f: sde(f, args=({"mass": torch.ones(5)},)), ValueError, "args", "leading dimension of 3"
    ),
    "cond of wrong length": (
        lambda f: denoise(f, cond={"text": torch.ones(2, 4)}), ValueError, "cond", "leading dimension of 3"
    ),
    "cond of wrong length, nested": (
        lambda f: denoise(f, cond={"added": {"text": torch.ones(5, 4)}}), ValueError, "cond", "leading dimension of 3"
    ),
    "too few seeds": (
        lambda f: sde(f, brownian=ps.BrownianPath([1, 2])), ValueError, "seed", "2 seeds for 3 samples; pass one for"
    ),
    "too few seeds for a sampler": (
        lambda f: denoise(f, integrator=ps.DDPM(), brownian=ps.BrownianPath([1])), ValueError, "seed", "pass one for"
    ),
    "steps below the resolution": (
        lambda f: sde(f, ts=[0.0, 1e-6, 1.0], brownian=ps.BrownianPath(0)),
        ValueError, "resolution", r"pass BrownianPath\(seed, resolution="
    ),
    # terms
    "drift not callable": (lambda f: ps.ODE(1.0), TypeError, "drift", "expected a function"),
    "drift of an SDE not callable": (lambda f: ps.SDE(1.0, f.diffusion), TypeError, "drift", "expected a function"),
    "diffusion not callable": (lambda f: ps.SDE(f.drift, 0.1), TypeError, "diffusion", "expected a function"),
    "model not callable": (lambda f: ps.Denoiser(None, EDM), TypeError, "model", "expected a function"),
    "noise unknown": (lambda f: ps.SDE(f.drift, f.diffusion, "white"), ValueError, "noise", "'additive', 'diagonal'"),
    "interpretation unknown": (
        lambda f: ps.SDE(f.drift, f.diffusion, interpretation="levy"), ValueError, "interpretation", "'ito', 'strato"
    ),
    "prediction unknown": (lambda f: ps.Denoiser(f.model, EDM, "v"), ValueError, "prediction", "'v_prediction'"),
    "schedule a class": (
        lambda f: ps.Denoiser(f.model, ps.schedules.EDM), TypeError, "schedule", r"such as VP\(alpha_bar\)"
    ),
    "schedule a function": (
        lambda f: ps.Denoiser(f.model, torch.cos), TypeError, "schedule", r"such as VP\(alpha_bar\)"
    ),
    "vectorized not a bool": (lambda f: ps.ODE(f.drift, (1, 2)), TypeError, "vectorized", "True or False"),
    # integrators
    "DDIM, eta negative": (lambda f: ps.DDIM(eta=-1.0), ValueError, "eta", "expected a number >= 0"),
    "DDIM, eta a string": (lambda f: ps.DDIM(eta="ode"), TypeError, "eta", "expected a number >= 0"),
    "DPMSolver, order 4": (lambda f: ps.DPMSolver(order=4), ValueError, "order", "expected 1, 2 or 3"),
    "DPMSolver, order 0": (lambda f: ps.DPMSolver(order=0), ValueError, "order", "expected 1, 2 or 3"),
    "DPMSolver, order a float": (lambda f: ps.DPMSolver(order=2.0), ValueError, "order", "expected 1, 2 or 3"),
    "DPMSolver, order 3 of the SDE": (
        lambda f: ps.DPMSolver(order=3, sde=True), ValueError, "order", "expected 1 or 2 with sde=True"
    ),
    "RK4, unknown rule": (lambda f: ps.RK4(rule="gauss"), ValueError, "rule", "'classic', '3/8'"),
    # grids and schedules
    "uniform, no steps": (lambda f: ps.grids.uniform(0, 1, 0), ValueError, "steps", "expected at least 1"),
    "uniform, half a step": (lambda f: ps.grids.uniform(0, 1, 2.5), TypeError, "steps", "integer"),
    "uniform, no interval": (lambda f: ps.grids.uniform(1, 1, 4), ValueError, "t0|t1", "differ"),
    "karras, no steps": (lambda f: ps.grids.karras(10, 1, 0), ValueError, "steps", "expected at least 1"),
    "karras, levels swapped": (lambda f: ps.grids.karras(0.1, 10, 4), ValueError, "sigma_min", "sigma_min < sigma_max"),
    "karras, level 0": (lambda f: ps.grids.karras(1, 0, 4), ValueError, "sigma_min", "expected 0 < sigma_min"),
    "karras, rho 0": (lambda f: ps.grids.karras(10, 0.1, 4, rho=0.0), ValueError, "rho", "expected"),
    "log_snr, clean end": (lambda f: ps.grids.log_snr(EDM, 2, 0, 4), ValueError, "t0, t1", "must be finite at both"),
    "log_snr, a class": (
        lambda f: ps.grids.log_snr(ps.schedules.EDM, 2, 1, 4), TypeError, "schedule", r"such as VP\(alpha_bar\)"
    ),
    "VP of a number": (lambda f: ps.schedules.VP(0.5), TypeError, "alpha_bar", "expected a function"),
    "VE of a number": (lambda f: ps.schedules.VE(0.5), TypeError, "noise", "expected a function"),
    "betas of a list": (lambda f: ps.schedules.from_betas([0.1, 0.2]), TypeError, "betas", "tensor"),
    "betas above 1": (lambda f: ps.schedules.from_betas(2 * Y), ValueError, "betas", r"values in \(0, 1\)"),
    "betas empty": (lambda f: ps.schedules.from_betas(torch.ones(0)), ValueError, "betas", r"expected shape \(T,\)"),
    # noise
    "seed a string": (lambda f: ps.BrownianPath("abc"), TypeError, "seed", "integer"),
    "seed a float": (lambda f: ps.BrownianPath(1.5), TypeError, "seed", "integer"),
    "seed a tensor": (lambda f: ps.BrownianPath(torch.tensor([1, 2])), TypeError, "seed", "integer"),
    "seeds of no sample": (lambda f: ps.BrownianPath([]), ValueError, "seed", "one"),
    "resolution not a power of two": (lambda f: ps.BrownianPath(0, 0.3), ValueError, "resolution", "a power of two"),
    "resolution 0": (lambda f: ps.BrownianPath(0, 0.0), ValueError, "resolution", "from 2.*-40 to 1"),
    "resolution a string": (lambda f: ps.BrownianPath(0, "fine"), TypeError, "resolution", "a power of two"),
    "increment below the resolution": (
        lambda f: ps.BrownianPath().increment(0, 1e-9, (1,)), ValueError, "resolution", r"pass BrownianPath\(seed, reso"
    ),
    "increment, too few seeds": (
        lambda f: ps.BrownianPath([1]).increment(0, 1, (2, 3)), ValueError, "seed", "1 seeds for 2 samples; pass one"
    ),
    "increment without samples": (lambda f: ps.BrownianPath().increment(0, 1, ()), ValueError, "shape", r"\(B, \.\.\."),
    # odeint
    "odeint, unknown method": (lambda f: odeint(f, method="ab2"), ValueError, "method", "'euler', 'heun2', 'rk4'"),
    "odeint, unknown option": (lambda f: odeint(f, options={"perturb": True}), ValueError, "options", "see odeint's"),
    "odeint, adaptive, unknown option": (
        lambda f: odeint(f, method=None, options={"window": 8}), ValueError, "options", "see odeint's"
    ),
    "odeint, adaptive, tolerance too small": (
        lambda f: odeint(f, method="dopri5", rtol=1e-9, atol=1e-12), ValueError, "rtol", "pass rtol >="
    ),
    "odeint, a tolerance of words": (lambda f: odeint(f, rtol="low"), TypeError, "rtol", "expected a number"),
    "odeint, an event on a fixed grid": (
        lambda f: odeint(f, event_fn=lambda t, y: y), ValueError, "event_fn", "leave method out"
    ),
    "odeint, an event and many times": (
        lambda f: odeint(f, method=None, event_fn=lambda t, y: y), ValueError, "event_fn", "two times"
    ),
    "odeint, options a list": (lambda f: odeint(f, options=["vectorized"]), TypeError, "options", "dict"),
    "odeint, step_size 0": (
        lambda f: odeint(f, options={"step_size": 0.0}), ValueError, "step_size", "expected a positive number"
    ),
    "odeint, step_size negative": (
        lambda f: odeint(f, options={"step_size": -0.1}), ValueError, "step_size", "expected a positive number"
    ),
    "odeint, step_size a string": (
        lambda f: odeint(f, options={"step_size": "auto"}), TypeError, "step_size", "expected a positive number"
    ),
    "odeint, window 0": (lambda f: odeint(f, options={"window": 0}), ValueError, "window", "expected an integer >= 1"),
    "odeint, t repeats a time": (lambda f: odeint(f, t=[0.0, 0.0]), ValueError, "t", "drop repeats"),
    "odeint, func not callable": (lambda f: ps.odeint(1.0, Y, TS, method="euler"), TypeError, "func", "a function"),
    "odeint, rtol negative": (lambda f: odeint(f, rtol=-1.0), ValueError, "rtol", "expected values >= 0"),
    "odeint, y0 a dict": (lambda f: odeint(f, y0={"a": Y}), TypeError, "y0", "tensor, or (a )?tuple"),
    "odeint, y0 nested": (lambda f: odeint(f, y0=(Y, (Y, Y))), TypeError, "y0", "tensor, or (a )?tuple"),
}  # fmt: skip


def check_message(message, names, instead):
    """Its first words, up to the colon, name the argument; what follows is plain English."""
    head, colon, rest = message.partition(":")
    assert colon, message
    assert re.search(rf"\b({names})\b", head), message
    assert re.search(instead, rest), message


@pytest.mark.parametrize(("call", "error", "names", "instead"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_a_bad_argument_is_refused_before_any_work(call, error, names, instead):
    functions = Functions()
    with pytest.raises((TypeError, ValueError)) as raised:
        call(functions)
    assert raised.type is error
    check_message(str(raised.value), names, instead)
    assert functions.calls == 0


@pytest.mark.parametrize("good", [ode, sde, denoise, odeint])
def test_without_the_bad_argument_the_same_call_works(good):
    functions = Functions()
    good(functions)
    assert functions.calls > 0


def solve(drift, y0=Y, vectorized=True, **change):
    return ps.solve(ps.ODE(drift, vectorized), y0, **{"ts": TS, "integrator": ps.Euler(), **change})


def solve_sde(drift, diffusion, noise="diagonal"):
    return ps.solve(ps.SDE(drift, diffusion, noise), Y, TS, integrator=ps.EulerMaruyama())


def solve_model(model):
    return ps.solve(ps.Denoiser(model, EDM), BATCH, NOISE_TO_SAMPLE, integrator=ps.DDIM())


def needs_one_state(y):
    """A right hand side that says so itself when it is given more states than one."""
    if len(y) > 1:
        raise RuntimeError("one state only")
    return -y


def decay(t, y):
    return -y


ONE_STATE = "pass vectorized=False"
NO_VECTORIZED = r"^(?!.*vectorized=False)"  # of no use where it is set already, or does not exist
A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])

# What the user's function does: (the call, the error, which function is named, what to do instead).
BAD_FUNCTIONS = {
    "shape of nothing": (lambda: solve(lambda t, y: None), ValueError, "drift", r"shape \(1, 2\) for 1 state"),
    "shape of a number": (lambda: solve(lambda t, y: 1.0), ValueError, "drift", r"shape \(1, 2\) for 1 state"),
    "shape short": (lambda: solve(lambda t, y: -y[:, :1]), ValueError, "drift", r"shape \(1, 2\).* got \(1, 1\)"),
    "shape of one state": (lambda: solve(lambda t, y: -y[0]), ValueError, "drift", ONE_STATE),
    "shape of a tuple": (lambda: solve(lambda t, y: -y[0], (Y, Y)), ValueError, "drift", "a tuple of 2"),
    "shape from vmap": (lambda: solve(lambda t, y: y[:1], Y, False), ValueError, "drift", NO_VECTORIZED),
    "structure of another kind": (lambda: solve(lambda t, y: [-y["a"]], {"a": Y}), ValueError, "drift", "dict"),
    "dtype": (lambda: solve(lambda t, y: -y.double()), TypeError, "drift", "the dtype of y0.* convert"),
    "dtype of integers": (lambda: solve(lambda t, y: y.long()), TypeError, "drift", "the dtype of y0.* convert"),
    "device": (lambda: solve(lambda t, y: y.to("meta")), ValueError, "drift", "expected .* on cpu, got meta"),
    "many states raise": (lambda: solve(lambda t, y: needs_one_state(y)), ValueError, "drift", ONE_STATE),
    "many states reshape": (lambda: solve(lambda t, y: -y.view(1, 2)), ValueError, "drift", ONE_STATE),
    "many states come out as one": (lambda: solve(lambda t, y: -y[:1]), ValueError, "drift", ONE_STATE),
    "one state indexed": (lambda: solve(lambda t, y: torch.stack([y[1], -y[0]])), ValueError, "drift", ONE_STATE),
    "one state multiplied": (lambda: solve(lambda t, y: A @ y), ValueError, "drift", ONE_STATE),
    "rows mixed by a sum": (lambda: solve(lambda t, y: y - y.sum(0)), ValueError, "drift", ONE_STATE),
    "rows mixed by a mean": (lambda: solve(lambda t, y: 0.1 * y.mean(0) - y), ValueError, "drift", ONE_STATE),
    "rows mixed in a tuple": (
        lambda: solve(lambda t, y: (-y[0], y[1] - y[1].sum(0)), (Y, Y)), ValueError, "drift", ONE_STATE
    ),
    "rows mixed by a matrix": (
        lambda: solve(lambda t, y: A @ y, torch.eye(2), batch_dims=1), ValueError, "drift", ONE_STATE
    ),
    "rows mixed by the diffusion": (
        lambda: solve_sde(decay, lambda t, y: y.sum(0).expand_as(y)), ValueError, "diffusion", ONE_STATE
    ),
    "vmap meets an if": (
        lambda: solve(lambda t, y: -y if y[0] > 0 else y, Y, False), ValueError, "drift", "pass vectorized=True"
    ),
    "vmap meets an item": (
        lambda: solve(lambda t, y: y * y[0].item(), Y, False), ValueError, "drift", "pass vectorized=True"
    ),
    "diffusion shape": (
        lambda: solve_sde(decay, lambda t, y: y[:, :1]), ValueError, "diffusion", r"shape \(1, 2\).* got \(1, 1\)"
    ),
    "diffusion without its motions": (
        lambda: solve_sde(decay, decay, "general"), ValueError, "diffusion", r"shape \(1, 2, m\)"
    ),
    "diffusion dtype": (lambda: solve_sde(decay, lambda t, y: y.double()), TypeError, "diffusion", "dtype of y0"),
    "model shape": (lambda: solve_model(lambda x, t: x[:, :1]), ValueError, "model", r"shape \(\d+, 2\) for"),
    "model shape, what to do": (lambda: solve_model(lambda x, t: x[:, :1]), ValueError, "model", NO_VECTORIZED),
    "model dtype": (lambda: solve_model(lambda x, t: x.double()), TypeError, "model", "the dtype of y0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "names", "instead"), BAD_FUNCTIONS.values(), ids=BAD_FUNCTIONS.keys())
def test_a_bad_function_is_refused_in_plain_words(call, error, names, instead):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert raised.type is error
    check_message(str(raised.value), names, instead)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("window", [1, 2, 32])
def test_a_drift_that_mixes_rows_never_gives_a_wrong_answer(steps, window):
    """Short chains leave few rounds to notice in."""
    term, ts = ps.ODE(lambda t, y: y - y.sum(0)), ps.grids.uniform(0.0, 1.0, steps)
    try:
        solution = ps.solve(term, Y, ts, integrator=ps.Euler(), window=window, tol=0.0)
    except ValueError as error:
        check_message(str(error), "drift", ONE_STATE)
    else:
        expected = ps.sequential(term, Y, ts, integrator=ps.Euler())
        torch.testing.assert_close(solution.ys, expected.ys)


@pytest.mark.parametrize("bad", [lambda y: -y[:, :1], lambda y: -y.double(), lambda y: y.to("meta")])
def test_what_a_drift_returns_is_checked_in_its_first_call(bad):
    calls = []
    with pytest.raises((TypeError, ValueError)):
        solve(lambda t, y: calls.append(t) or bad(y))
    assert len(calls) == 1


def test_a_drift_may_return_its_dict_in_any_order():
    y0 = {"q": torch.tensor([1.0]), "p": torch.tensor([0.0])}
    turned = solve(lambda t, y: {"p": -y["q"], "q": y["p"]}, y0, tol=0.0)
    straight = solve(lambda t, y: {"q": y["p"], "p": -y["q"]}, y0, tol=0.0)
    assert torch.equal(turned.ys["q"], straight.ys["q"])
    assert torch.equal(turned.ys["p"], straight.ys["p"])


@pytest.mark.parametrize("vectorized", [True, False])
def test_args_nested_in_a_container_go_to_their_samples(vectorized):
    rate = torch.tensor([1.0, 2.0, 3.0])
    flat = ps.ODE((lambda t, y, k: -k[:, None] * y) if vectorized else lambda t, y, k: -k * y, vectorized)
    nested = ps.ODE(lambda t, y, p: flat.drift(t, y, p["rate"]), vectorized)
    given = {"y0": BATCH, "ts": TS, "integrator": ps.Euler(), "batch_dims": 1, "tol": 0.0}
    expected = ps.solve(flat, args=(rate,), **given)
    assert torch.equal(ps.solve(nested, args=({"rate": rate},), **given).ys, expected.ys)


@pytest.mark.parametrize("call", [ps.solve, ps.sequential])
def test_nan_from_the_drift_at_once_names_step_and_time(call):
    with pytest.raises(ps.SolveError) as raised:
        call(ps.ODE(lambda t, y: y * NAN), Y, [0.25, 0.5, 1.0], integrator=ps.Euler())
    assert raised.type is ps.SolveError
    assert (raised.value.step, raised.value.time) == (0, 0.25)
    assert str(raised.value).startswith("Step 0 at t = 0.25 is not finite. ")
    assert "take smaller steps" in str(raised.value)


@pytest.mark.parametrize("call", [ps.solve, ps.sequential])
def test_nan_on_the_way_names_step_time_and_sample(call):
    def drift(t, y):
        return torch.where((t > 0.6) & (y > 4), NAN, 1.0).to(y)

    with pytest.raises(ps.SolveError, match=r"^Step 5 of sample 1 at t = 0\.625 is not finite\. .*smaller") as raised:
        call(ps.ODE(drift), BATCH[1:, :1] * torch.tensor([[0.1], [1.0]]), TS, integrator=ps.Euler(), batch_dims=1)
    assert (raised.value.step, raised.value.time) == (5, 0.625)


@pytest.mark.parametrize("call", [ps.solve, ps.sequential])
def test_a_drift_that_writes_into_its_argument_is_harmless_or_refused(call):
    y0 = Y.clone()
    try:
        solution = call(ps.ODE(lambda t, y: y.neg_()), y0, TS, integrator=ps.Euler())
    except ValueError as error:
        check_message(str(error), "drift", "in place")
    else:
        torch.testing.assert_close(solution.ys, ps.sequential(ps.ODE(decay), Y, TS, integrator=ps.Euler()).ys)
    assert torch.equal(y0, Y)
