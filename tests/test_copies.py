"""What comes back from a pickle, a deep copy and `torch.save`: everything but functions that cannot go along."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from dataclasses import fields

import matplotlib as mpl
import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils import _pytree as pytree

import picardsolve as ps

mpl.use("Agg")
from matplotlib import pyplot as plt

TS = ps.grids.uniform(0.0, 1.0, 20)
Y = torch.tensor([[1.0, 0.5], [0.3, 2.0], [-1.0, 0.2]], dtype=torch.float64)
SCHEDULE = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))


def drift(t, y):
    return torch.cos(3 * t) - y


def spread(t, y):
    return 0.2 + 0.1 * torch.sin(y)


def constant(t, y):
    return 0.2 + 0 * y


def parts(t, y):
    return {"a": -y["b"], "b": y["a"]}


def turning(t, y):
    return 1j * y


def eps(x, t, scale):
    return x * scale[:, None]


def crossing(t, y):
    return y[0] - 0.5


def term(function=drift):
    return ps.ODE(function)


def fixed(function=drift, y0=Y[0], **more):
    return ps.solve(term(function), y0, TS, **{"integrator": ps.RK4(), "tol": 1e-6, **more})


def stochastic(function=drift, diffusion=spread, noise="diagonal", **more):
    how = {"integrator": ps.EulerMaruyama(), "tol": 1e-4, "batch_dims": 1, "brownian": ps.BrownianPath(seed=3), **more}
    return ps.solve(ps.SDE(function, diffusion, noise), Y, TS, **how)


def denoised(function=eps):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    cond = {"scale": torch.tensor([0.5, 1.0, 0.7])}
    model = ps.Denoiser(function, SCHEDULE)
    return ps.solve(model, x, ps.grids.uniform(999, -1, 25), integrator=ps.DDPM(), cond=cond, tol=1e-2)


def unfinished(function=drift):
    with pytest.raises(ps.SolveError) as caught:
        fixed(function, max_rounds=8)
    return caught.value.solution


CASES = {
    "an ODE on a grid": fixed,
    "its last state": lambda f=drift: fixed(f, save="last"),
    "a batch of different tolerances": lambda f=drift: fixed(
        f, Y, batch_dims=1, tol=torch.tensor([1e-3, 1e-6, 1e-9], dtype=torch.float64)
    ),
    "a dict of tensors": lambda f=parts: fixed(f, {"b": Y[0], "a": Y[1]}),
    "half precision": lambda f=drift: fixed(f, Y[0].half(), tol=1e-2),
    "complex numbers": lambda f=turning: fixed(f, Y[0] + 1j * Y[1]),
    "Parareal": lambda f=drift: fixed(f, iteration=ps.Parareal(), integrator=ps.Euler()),
    "backward Euler": lambda f=drift: fixed(f, integrator=ps.BackwardEuler()),
    "tolerance 0": lambda f=drift: fixed(f, tol=0.0),
    "too few rounds": unfinished,
    "an SDE": stochastic,
    "additive noise": lambda f=drift: stochastic(f, constant, "additive"),
    "a denoiser": denoised,
    "step by step": lambda f=drift: ps.sequential(term(f), Y[0], TS, integrator=ps.RK4()),
    "collocation": lambda f=drift: ps.solve(term(f), Y[0], TS, integrator=ps.Collocation()),
    "collocation of samples": lambda f=drift: ps.solve(term(f), Y, TS, integrator=ps.Collocation(), batch_dims=1),
    "collocation with events": lambda f=drift: ps.solve(
        term(f), Y, TS, integrator=ps.Collocation("lobatto"), batch_dims=1, events=lambda t, y: crossing(t, y)
    ),
    "odeint": lambda f=drift: ps.odeint(f, Y[0], TS, options={"full_output": True, "vectorized": True})[1],
    "odeint on a grid": lambda f=drift: ps.odeint(
        f, Y[0], TS, method="rk4", options={"full_output": True, "vectorized": True}
    )[1],
    "odeint to an event": lambda f=drift: ps.odeint(
        f, Y[0], TS[[0, -1]], event_fn=crossing, options={"full_output": True, "vectorized": True}
    )[1],
}


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": pickled,
    "its oldest protocol": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": saved,
    "twice": lambda value: copy.deepcopy(pickled(value)),
}


def assert_same(found, expected):
    """Of nested dataclasses, containers and tensors."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0, equal_nan=True)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(found) is type(expected)
        for field in fields(expected):
            if not field.name.startswith("_") and field.name not in ("dense", "solution", "better", "history"):
                assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def assert_all_there(found, expected):
    assert_same(found, expected)
    assert_same(list(found.history), list(expected.history))
    assert str(found) == str(expected)
    if expected.dense is not None:
        times = torch.tensor([0.7, 0.0, 0.31, float(expected.ts[-1])], dtype=torch.float64)
        assert_same(found(times), expected(times))
    if expected.stats.max_width == 1:
        return
    assert_same(found.certificate, expected.certificate)
    plt.close(found.plot())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_all_of_a_solution_comes_back(name, way):
    solution = CASES[name]()
    assert_all_there(WAYS[way](solution), solution)


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("name", CASES)
def test_all_of_it_comes_back_where_its_function_cannot(name, way):
    function = {"a dict of tensors": parts, "complex numbers": turning, "a denoiser": eps}.get(name, drift)
    solution = CASES[name](lambda *given, **more: function(*given, **more))
    assert_all_there(WAYS[way](solution), solution)


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(("collocation", "odeint", "step"))])
def test_what_a_certificate_can_ask_it_can_ask_in_a_copy(name, way):
    solution = CASES[name]()
    expected, found = solution.certificate, WAYS[way](solution).certificate
    assert_same(found.verify().error, expected.verify().error)
    assert_same(found.recheck().error, expected.recheck().error)
    assert found.verify().holds == expected.verify().holds
    assert_same(WAYS[way](found), found)  # a certificate by itself
    assert_same(WAYS[way](found.verify()).error, found.verify().error)


def test_certified_bounds_come_from_a_copy():
    solution = fixed()
    assert_same(pickled(solution).certificate.certified(1.0).bound, solution.certificate.certified(1.0).bound)
    certified = solution.certificate.certified(1.0)
    assert_same(pickled(certified), certified)
    rechecked = solution.certificate.recheck()
    assert_same(pickled(rechecked).better.ys, rechecked.better.ys)


ASKS = {
    "verify": lambda certificate: certificate.verify(),
    "recheck": lambda certificate: certificate.recheck(),
    "certified": lambda certificate: certificate.certified(1.0),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_a_function_that_could_not_go_along_is_missed_in_one_sentence(ask, way):
    certificate = WAYS[way](fixed(lambda t, y: -y)).certificate
    with pytest.raises(ValueError, match=rf"^{ask}: this solution was pickled, .* did not go along \(.*lambda.*\)"):
        ASKS[ask](certificate)
    assert ASKS[ask](copy.deepcopy(fixed(lambda t, y: -y)).certificate)  # which shares it


class Heavy(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size, size))

    def forward(self, t, y):
        return -y + self.weight[0, 0]


@pytest.mark.parametrize(("size", "along"), [(10, True), (1000, False)])
def test_weights_go_along_only_where_they_are_light(size, along):
    with torch.no_grad():
        solution = fixed(Heavy(size))
    stored = pickle.dumps(solution)
    assert len(stored) < 100_000
    certificate = pickle.loads(stored).certificate
    if along:
        assert certificate.verify().holds
    else:
        with pytest.raises(ValueError, match=r"^verify: .*more than 1 MB"):
            certificate.verify()


def test_a_pickle_is_of_the_size_of_what_it_holds():
    for width in (4, 64):
        y0 = torch.linspace(-1, 1, 1000, dtype=torch.float64)
        solution = ps.solve(term(), y0, ps.grids.uniform(0.0, 1.0, 200), integrator=ps.Euler(), tol=1e-6, window=width)
        assert len(pickle.dumps(solution)) < 1.2 * solution.ys.nbytes + 40_000


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save", "copy"])
@pytest.mark.parametrize("integrator", [ps.RK4(), ps.Collocation()])
def test_gradients_stay_with_the_original_and_its_shallow_copy(integrator, way):
    y0 = Y[0].clone().requires_grad_()
    solution = ps.solve(term(), y0, TS, integrator=integrator, rtol=1e-8, atol=1e-8)
    found = WAYS[way](solution)
    assert_same(found.ys.detach(), solution.ys)
    assert found.ys.requires_grad == (way == "copy")
    (expected,) = torch.autograd.grad(solution.ys[-1].sum(), y0)
    assert float(expected.abs().min()) > 0.1
    if integrator != ps.RK4():
        assert found(0.5).requires_grad == (way == "copy")
        assert_same(found(0.5).detach(), solution(0.5))


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_an_error_brings_its_solution_along(way):
    def breaks(t, y):
        return torch.where(t > 0.5, torch.nan, -y)

    with pytest.raises(ps.SolveError) as caught:
        fixed(breaks, integrator=ps.Euler())
    found = WAYS[way](caught.value)
    assert str(found) == str(caught.value)
    assert (found.step, found.time) == (caught.value.step, caught.value.time)
    assert_all_there(found.solution, caught.value.solution)


def test_it_is_read_where_its_functions_cannot_be_imported(tmp_path):
    """By another program, which does not have the module that the drift is in."""
    module = tmp_path / "mine.py"
    module.write_text("def drift(t, y):\n    return -y\n")
    write = """
        import pickle, sys, torch, mine, picardsolve as ps
        ts = ps.grids.uniform(0.0, 1.0, 20)
        solution = ps.solve(ps.ODE(mine.drift), torch.ones(2), ts, integrator=ps.RK4(), tol=1e-6)
        pickle.dump(solution, open(sys.argv[1], "wb"))
    """
    read = """
        import pickle, sys
        solution = pickle.load(open(sys.argv[1], "rb"))
        assert abs(float(solution.ys[-1, 0]) - 0.36788) < 1e-4
        assert float(solution.certificate.error[-1]) < 1e-5
        try:
            solution.certificate.verify()
        except ValueError as error:
            assert "cannot be read here (ModuleNotFoundError" in str(error)
        else:
            raise AssertionError
    """
    for code in (write, read):
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path / "solution.pkl")]
        subprocess.run(command, check=True, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"})
        module.unlink(missing_ok=True)


def test_an_analysis_and_what_is_passed_to_a_solve_can_be_pickled():
    analysis = ps.analyze(term(), Y[0], TS, integrator=ps.Euler())
    assert str(pickled(analysis)) == str(analysis)
    given = ps.Collocation(), ps.RK4("3/8"), ps.Newton("diagonal"), ps.Parareal(4), ps.BrownianPath([1, 2]), SCHEDULE
    for value in given:
        assert type(pickled(value)) is type(value)
    assert pickled(ps.presets.chords()) == ps.presets.chords()


def test_a_plan_can_be_pickled():
    from picardsolve.integrations.policies import ParallelPolicy

    scheduler = DDPMScheduler(num_train_timesteps=20)
    scheduler.set_timesteps(20)
    policy = ParallelPolicy(lambda x, t, obs: 0.1 * x, scheduler, (4, 2), executed=2)
    plan = policy.plan(torch.zeros(1, 3))
    for way in ("pickle", "deepcopy", "torch.save"):
        found = WAYS[way](plan)
        assert_same(found.actions, plan.actions)
        assert_same(found.certificate, plan.certificate)
        assert_all_there(found.solution, plan.solution)
    with pytest.raises(ValueError, match=r"^verify: this solution was pickled"):
        pickled(plan).certificate.verify()


def test_a_report_can_be_pickled():
    from picardsolve.integrations.diffusers.report import Report

    solution = stochastic()
    state = solution.ys[-1]
    report = Report(steps=20, rounds=7, samples=3, tolerance=1e-3, history=solution.history, state=state)
    for way in WAYS:
        found = WAYS[way](report)
        assert_same(found.certificate, report.certificate)
        assert str(found) == str(report)


def test_states_are_not_printed():
    for name, case in CASES.items():
        solution = case()
        for text in (repr(solution), str(solution)):
            assert "tensor(" not in text, name
            assert len(text) < 1000
        assert all(str(tuple(leaf.shape)) in repr(solution) for leaf in pytree.tree_leaves(solution.ys))
        assert solution.result.name in repr(solution)
        assert solution.result.value in str(solution)
        assert f"{solution.stats.rounds} rounds, {solution.stats.evaluations} evaluations" in repr(solution)
