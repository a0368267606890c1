"""A solve over several devices of one process: two copies of a model on the CPU."""

import threading
import time
from functools import partial
from itertools import accumulate

import pytest
import torch

import picardsolve as ps
from picardsolve.distributed.replicas import Replicas

Y = torch.tensor([[1.0, 0.5], [0.3, 2.0], [-0.4, 1.0]], dtype=torch.float64)
TS = ps.grids.uniform(0.0, 2.0, 64)
TWO = ["cpu", "cpu"]


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


class Drift(torch.nn.Module):
    """A drift that notes which copy of it was called, where, and with how many rows."""

    seen: list

    def __init__(self, seen):
        super().__init__()
        self.net = net()
        type(self).seen = seen

    def forward(self, t, y):
        type(self).seen.append((id(self), threading.current_thread().name, len(y)))
        return self.net(y) - y


def solved(term, devices=None, **given):
    given = {"integrator": ps.RK4(), "batch_dims": 1, "window": 16, **given}
    return ps.solve(term, Y, TS, devices=devices, **given)


def nearly(one, other):
    """Equal but for the last bits of matrix products, which depend on the rows beside a row."""
    return torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "integrator",
    [ps.Euler(), ps.RK4(), ps.BackwardEuler(), ps.Collocation(), ps.Dopri5()],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("iteration", [None, ps.Newton()], ids=["default", "newton"])
def test_two_copies_give_the_solution_of_one_bit_for_bit(integrator, iteration):
    model = net()
    given = {"integrator": integrator, "iteration": iteration}
    if isinstance(integrator, ps.Collocation | ps.Dopri5):
        given["window"] = None
    if isinstance(integrator, ps.Dopri5):
        given["iteration"] = None
    term = ps.ODE(lambda t, y: y * (1 - y * y) - model(y) * 0)
    alone, shared = solved(term, **given), solved(term, TWO, **given)
    assert torch.equal(alone.ys, shared.ys)
    assert alone.stats.rounds == shared.stats.rounds
    assert alone.stats.evaluations == shared.stats.evaluations


def test_each_device_has_a_thread_and_a_copy_that_is_kept():
    seen = []
    model = Drift(seen)
    term = ps.ODE(model)
    solved(term, TWO)
    copies, threads = {copy for copy, _, _ in seen}, {thread for _, thread, _ in seen if "picardsolve" in thread}
    assert len(copies) == 2
    assert id(model) in copies
    assert threads == {"picardsolve-cpu-0_0", "picardsolve-cpu-1_0"}
    sums = list(accumulate(rows for _, _, rows in seen))
    assert 12 in sums  # the four stages of a step of three samples
    assert 12 + 49 in sums  # 16 steps of three samples, and the first state once more
    assert 49 not in [rows for _, _, rows in seen[: sums.index(12 + 49) + 1]]  # in parts
    seen.clear()
    solved(term, TWO)
    assert {copy for copy, _, _ in seen} == copies


def test_a_copy_is_made_anew_where_the_weights_have_changed():
    model = Drift([])
    term = ps.ODE(model)
    solved(term, TWO)
    with torch.no_grad():
        model.net[0].weight.mul_(0.5)
    assert nearly(solved(term, TWO).ys, solved(term).ys)
    model.net[0].weight = torch.nn.Parameter(0.5 * model.net[0].weight.detach())
    assert nearly(solved(term, TWO).ys, solved(term).ys)


MODEL = net()


def through_globals(t, y):
    return MODEL(y) - y


HALF = torch.full((2,), 0.5, dtype=torch.float64)


class Method:
    def __init__(self):
        self.model = net()

    def drift(self, t, y):
        return self.model(y) - y


def closure():
    model, scale = net(), torch.ones(2, dtype=torch.float64)

    def inner(y):
        return model(y)

    def drift(t, y, k=HALF):
        return inner(y) * scale - k * y

    return drift


def factor(model, t, y):
    return model(y) - y


@pytest.mark.parametrize(
    "function",
    [through_globals, Method().drift, closure(), partial(factor, net())],
    ids=["globals", "method", "closure", "partial"],
)
def test_functions_are_copied_with_what_they_hold(function):
    from picardsolve.problem.parameters import reachable

    replica = Replicas(torch.device("cpu")).of(function)
    own = {id(tensor) for tensor in reachable(function)}
    assert own
    assert not own & {id(tensor) for tensor in reachable(replica)}
    t, y = torch.zeros(3, 1, dtype=torch.float64), Y
    assert torch.equal(function(t, y), replica(t, y))
    assert nearly(solved(ps.ODE(function), TWO).ys, solved(ps.ODE(function)).ys)


class Odd:
    """Holds a tensor where no copy can replace it."""

    kept = {"table": torch.ones(2, dtype=torch.float64)}  # noqa: RUF012

    def __call__(self, t, y):
        return -self.kept["table"] * y


def test_a_tensor_that_cannot_be_copied_is_refused():
    with pytest.raises(ValueError, match=r"devices: Odd reaches a tensor of shape \(2,\) on cpu"):
        solved(ps.ODE(Odd()), TWO)


def test_forward_mode_of_the_users_own_is_refused():
    def drift(t, y):
        return torch.func.jvp(lambda y: y * y, (y,), (y,))[1]

    with pytest.raises(ValueError, match="uses jvp, whose results are wrong where several threads use it"):
        solved(ps.ODE(drift), TWO)


class Fails(torch.nn.Module):
    """Fails in the second device's thread."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, t, y):
        if threading.current_thread().name.startswith("picardsolve-cpu-1"):
            raise MemoryError("no room")
        return self.net(y) - y


def test_rows_of_a_device_that_fails_are_evaluated_on_the_others_and_a_note_says_so():
    term = ps.ODE(Fails())
    shared = solved(term, TWO)
    assert nearly(shared.ys, solved(term).ys)
    assert len(shared.notes) == 1
    assert shared.notes[0].startswith("cpu failed (")
    assert "no room" in shared.notes[0]


def test_errors_of_the_function_itself_come_back_whole():
    def drift(t, y):
        if len(y) > 1 and t.max() > 0.5:
            raise KeyError("a word of its own")
        return -y

    with pytest.raises(ValueError, match="a word of its own") as caught:
        ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.Euler(), window=16, devices=TWO)
    assert isinstance(caught.value.__cause__, KeyError)
    assert any(entry.name == "drift" for entry in caught.traceback) or caught.value.__cause__.__traceback__


def test_gradients_are_those_of_one_device():
    found = []
    for devices in (None, TWO):
        model, y = net(), Y.clone().requires_grad_()
        for integrator in (ps.Euler(), ps.Collocation()):
            sol = ps.solve(
                ps.ODE(lambda t, y, model=model: model(y) - y), y, TS[::8], integrator=integrator, devices=devices
            )
            sol.ys.square().sum().backward()
        found.append([y.grad, *(p.grad for p in model.parameters())])
    assert all(nearly(*pair) for pair in zip(*found, strict=True))


def test_modes_of_the_caller_hold_in_the_threads():
    seen = set()

    def drift(t, y):
        seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return -y

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.Euler(), window=16, devices=TWO)
    assert seen == {(False, True, True)}


@pytest.mark.parametrize(
    ("devices", "kind", "said"),
    [
        ("cpu", TypeError, "devices: expected a list"),
        ([], ValueError, "devices: expected at least one"),
        (["cpu", "cuda:77"], ValueError, "devices: there is no 'cuda:77' here"),
        (["nowhere"], ValueError, "devices: there is no 'nowhere' here"),
    ],
)
def test_devices_that_are_not_there_are_refused(devices, kind, said):
    with pytest.raises(kind, match=said):
        solved(ps.ODE(lambda t, y: -y), devices)


def test_the_automatic_window_has_as_many_rows_for_each_device():
    def drift(t, y):
        time.sleep(1e-2)
        return -y

    def widest(devices):
        given = {"integrator": ps.Euler(), "window": "auto", "max_batch": 6, "tol": 1e-2}
        return solved(ps.ODE(drift), devices, **given).stats.max_width

    assert widest(None) == 2  # steps of three samples
    assert 4 in (widest(TWO) for _ in range(5))  # where a busy machine's clock does not speak against it


def test_a_batcher_is_refused():
    with pytest.raises(ValueError, match="drift: a Batcher gathers rows in one process"):
        solved(ps.ODE(ps.Batcher(lambda t, y: -y, max_rows=8)), TWO)


def test_mesh_and_devices_do_not_go_together():
    with pytest.raises(ValueError, match="devices: those of one process"):
        ps.solve(ps.ODE(lambda t, y: -y), Y, TS, integrator=ps.Euler(), mesh=2, devices=TWO)
