"""A solve over the ranks of a mesh: the solution of one process, on every rank, and clean ends where a rank fails."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist

import picardsolve as ps

Y = torch.tensor([[1.0, 0.5], [0.3, 2.0], [-0.4, 1.0]], dtype=torch.float64)
TS = ps.grids.uniform(0.0, 1.0, 24)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def drift(t, y, k=1.0):
    return y * (1 - y * y) - k * y * t  # bit for bit the same in every batch, as functions in vectors may not be


def of_one(t, y):
    return torch.stack([y[1] * t, -y[0] * y[1]])


def noise(t, y):
    return 0.3 * y


def eps(x, t, shift):
    return 0.5 * x + 1e-3 * shift * t[:, None]


def denoised(**given):
    term = ps.Denoiser(eps, ps.schedules.from_betas(BETAS))
    ts = torch.linspace(999, 0, 21, dtype=torch.float64)
    return ps.solve(term, Y, ts, integrator=ps.DDIM(), cond={"shift": Y[:, :1]}, window=8, **given)


K = torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64)
SOLVES = {
    "grid": lambda **given: ps.solve(
        ps.ODE(drift), Y, TS, integrator=ps.RK4(), batch_dims=1, args=(K,), window=8, **given
    ),
    "chunks": lambda **given: ps.solve(ps.ODE(drift), Y, TS, integrator=ps.Euler(), window=8, max_batch=4, **given),
    "newton": lambda **given: ps.solve(
        ps.ODE(drift), Y, TS, integrator=ps.Euler(), iteration=ps.Newton(), batch_dims=1, window=8, **given
    ),
    "implicit": lambda **given: ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.BackwardEuler(), window=8, **given),
    "lifted": lambda **given: ps.solve(ps.ODE(of_one, vectorized=False), Y[0], TS, integrator=ps.Heun(), **given),
    "collocation": lambda **given: ps.solve(ps.ODE(drift), Y, TS, integrator=ps.Collocation(), batch_dims=1, **given),
    "embedded": lambda **given: ps.solve(ps.ODE(drift), Y, TS, integrator=ps.Dopri5(), batch_dims=1, **given),
    "sde": lambda **given: ps.solve(ps.SDE(drift, noise), Y, TS, integrator=ps.EulerMaruyama(), batch_dims=1, **given),
    "milstein": lambda **given: ps.solve(
        ps.SDE(drift, noise), Y, TS, integrator=ps.Milstein(), batch_dims=1, window=8, **given
    ),
    "parareal": lambda **given: ps.solve(
        ps.ODE(drift), Y, TS, integrator=ps.Euler(), iteration=ps.Parareal(), window=8, **given
    ),
    "denoiser": denoised,
    "one step at a time": lambda **given: ps.solve(
        ps.ODE(drift), Y, TS, integrator=ps.Euler(), batch_dims=1, window=1, **given
    ),
}


def everything(mesh):
    found = {}
    for name, solve in SOLVES.items():
        sol = solve(mesh=mesh)
        found[name] = sol.ys, sol.result, sol.stats, [each.stride for each in sol.history], sol.notes
    works = (
        (shared_out, twice) if mesh.size() == 3 else (paced, sharded, not_finite, others, gradients, last_bits, clocked)
    )
    return found, {work.__name__: outcome_of(work, mesh) for work in works}


def outcome_of(work, mesh):
    try:
        return work(mesh), None
    except Exception as error:
        return None, (f"{type(error).__name__}: {error}", getattr(error, "solution", None))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What two and what three ranks return: for every solve, and in the tests below, by their names."""
    found = {}
    for count in (2, 3):
        outcomes = ranks.run(everything, tmp_path_factory.mktemp("ranks"), ranks=count, patience=60.0)
        assert all(outcome is not None and outcome[1] is None for outcome in outcomes), outcomes
        found[count] = [value for value, _, _ in outcomes]
    return found


@pytest.fixture
def solved(ran):
    return {count: [solves for solves, _ in values] for count, values in ran.items()}


@pytest.fixture
def of(ran):
    """What each rank returned or raised in a test's own work."""
    return lambda work, count=2: [others[work.__name__] for _, others in ran[count]]


@pytest.mark.parametrize("name", SOLVES)
def test_every_rank_returns_the_solution_of_one_process_bit_for_bit(solved, name):
    alone = SOLVES[name]()
    for count, values in solved.items():
        for value in values:
            ys, result, stats, accepted, notes = value[name]
            assert torch.equal(ys, alone.ys), count
            assert result is alone.result
            assert notes == alone.notes
            assert (stats.rounds, stats.evaluations, stats.max_width) == (
                alone.stats.rounds,
                alone.stats.evaluations,
                alone.stats.max_width,
            )
            assert all(torch.equal(one, each.stride) for one, each in zip(accepted, alone.history, strict=True))


def shared_out(mesh):
    rows = []

    def counted(t, y):
        rows.append(len(y))
        time.sleep(0.002 * len(y))
        return drift(t, y)

    sol = ps.solve(ps.ODE(counted), Y[0], TS, integrator=ps.Euler(), window=8, mesh=mesh)
    return rows, sol.stats


def test_of_every_round_each_rank_gets_its_share_and_no_more(of):
    outcomes = [value for value, _ in of(shared_out, 3)]
    rows, (stats, *_) = zip(*outcomes, strict=True)
    totals = [sum(own) for own in rows]
    assert rows[0][0] == 1  # the first step is exact, and is one row
    assert sum(totals) == stats.evaluations
    assert stats.calls == sum(map(len, rows))
    assert all(0.2 < total / stats.evaluations < 0.5 for total in totals)


class Third(torch.nn.Module):
    """A drift that takes three times as long on one rank."""

    def forward(self, t, y):
        time.sleep((0.006 if dist.get_rank() == 1 else 0.002) * len(y))
        return drift(t, y)


def paced(mesh):
    rows, model = [], Third()

    def counted(t, y):
        rows.append(len(y))
        return model(t, y)

    ps.solve(ps.ODE(counted), Y[0], ps.grids.uniform(0, 1, 150), integrator=ps.Euler(), window=32, mesh=mesh)
    return rows


def test_a_rank_that_is_three_times_slower_gets_a_third_of_the_rows_and_the_solve_is_shorter_for_it(of):
    (first, _), (second, _) = of(paced)
    shared = first[-len(second) :]
    assert 0.15 < sum(second[4:-1]) / sum(shared[4:-1] + second[4:-1]) < 0.35  # a quarter
    pairs = list(zip(shared, second, strict=True))
    took = sum(max(quick, 3 * slow) for quick, slow in pairs)
    assert took < 0.8 * sum(1.5 * (quick + slow) for quick, slow in pairs)  # of even shares


class Bits(torch.nn.Module):
    """A drift whose last digits depend on the rank, as on GPUs of different kinds, and whose time does, too."""

    def forward(self, t, y):
        rank = dist.get_rank() if dist.is_initialized() else 0
        time.sleep(1e-3 * rank)
        return drift(t, y) * (1 + 4e-14 * rank)  # more than a step rounds away


LOOSE = {"window": 24, "tol": 0.1}  # accepts many states a round, so those of the last rank, too


def last_bits(mesh):
    found = []
    for given in (LOOSE, {"window": 8, "tol": 1e-12}, {"window": 8, "tol": 0.0}, {"window": "auto"}):
        sol = ps.solve(ps.ODE(Bits()), Y[0], TS, integrator=ps.RK4(), mesh=mesh, **given)
        found.append((sol.ys, sol.stats.rounds, [each.stride for each in sol.history]))
    return found


def test_ranks_whose_last_bits_and_clocks_differ_return_the_same_bits(of):
    (first, _), (second, _) = of(last_bits)
    for (ys, rounds, strides), (others, more, accepted) in zip(first, second, strict=True):
        assert torch.equal(ys, others)
        assert rounds == more
        assert all(map(torch.equal, strides, accepted))
    alone = ps.solve(ps.ODE(Bits()), Y[0], TS, integrator=ps.RK4(), **LOOSE).ys
    assert not torch.equal(first[0][0], alone)  # states of rank 1 were accepted
    assert torch.allclose(first[0][0], alone, rtol=0, atol=1e-12)


ROW = 4e-3  # seconds


def clocked(mesh):
    def sleeping(t, y):
        time.sleep(ROW * len(y))
        return drift(t, y)

    began = time.perf_counter()
    stats = ps.solve(ps.ODE(sleeping), Y[0], ps.grids.uniform(0, 1, 128), integrator=ps.Euler(), window=32, mesh=mesh)
    return stats.stats, time.perf_counter() - began


def test_the_time_of_two_processes_is_the_predicted_one(of):
    for (stats, seconds), error in of(clocked):
        assert error is None
        rows = stats.evaluations / stats.rounds
        said = ps.theory.wall_clock(128, stats.rounds, round(rows), {1: ROW, 32: 32 * ROW}, 2, overhead=2e-3)
        assert 0.9 < seconds / said.seconds < 1.6
        assert said.sequential == pytest.approx(128 * ROW)


class Tensors(torch.nn.Module):
    """A linear drift whose columns are spread over the mesh's second dimension."""

    def __init__(self, group):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        whole = 0.5 * torch.randn(4, 4, dtype=torch.float64, generator=gen)
        part = dist.get_rank(group)
        self.group, self.columns = group, slice(2 * part, 2 * part + 2)
        self.weight = torch.nn.Parameter(whole[:, self.columns].clone())

    def forward(self, t, y):
        out = y[..., self.columns] @ self.weight.T
        out = out.detach().clone()
        dist.all_reduce(out, group=self.group)
        return torch.tanh(out)


def two_dimensions(mesh):
    y, ts = torch.ones(4, dtype=torch.float64), ps.grids.uniform(0, 1, 32)
    sol = ps.solve(ps.ODE(Tensors(mesh.get_group("model"))), y, ts, integrator=ps.Euler(), window=8, mesh=mesh, tol=0.0)
    return sol.ys


def test_a_drift_may_use_a_second_dimension_of_the_mesh_itself(tmp_path):
    outcomes = ranks.run(two_dimensions, tmp_path, ranks=4, shape=(2, 2), names=("rows", "model"))
    gen = torch.Generator().manual_seed(0)
    whole = 0.5 * torch.randn(4, 4, dtype=torch.float64, generator=gen)
    y, ts = torch.ones(4, dtype=torch.float64), ps.grids.uniform(0, 1, 32)
    alone = ps.sequential(ps.ODE(lambda t, y: torch.tanh(y @ whole.T)), y, ts, integrator=ps.Euler())
    for ys, error, _ in outcomes:
        assert error is None
        assert torch.equal(ys, outcomes[0][0])
        assert torch.allclose(ys, alone.ys, rtol=0, atol=1e-13)


def sharded(mesh):
    rows = []

    def counted(t, y, k):
        rows.append(len(y))
        return drift(t, y, k)

    spread = ps.distributed.shard(counted, mesh)
    t, y = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None], torch.arange(10.0).reshape(5, 2).double() / 10
    own = y + 1e-3 * dist.get_rank()  # what rank 0 was called with counts
    values = [spread(t, own, K[0]), spread(t[:1], own[:1], K[0])]
    with pytest.raises(ps.distributed.RankError, match="Rank 1 runs with other shapes of arguments than rank 0"):
        spread(t[: 5 - dist.get_rank()], own[: 5 - dist.get_rank()], K[0])
    solved = ps.solve(ps.ODE(ps.distributed.shard(drift, mesh)), Y, TS, integrator=ps.Euler(), window=8).ys
    return values, rows, solved


def test_a_sharded_function_gives_every_rank_the_values_at_the_rows_of_rank_0(of):
    t, y = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None], torch.arange(10.0).reshape(5, 2).double() / 10
    alone = ps.solve(ps.ODE(drift), Y, TS, integrator=ps.Euler(), window=8).ys
    outcomes = of(sharded)
    for (values, _, solved), error in outcomes:
        assert error is None
        assert torch.equal(values[0], drift(t, y, K[0]))
        assert torch.equal(values[1], drift(t[:1], y[:1], K[0]))
        assert torch.equal(solved, alone)
    assert [rows for (_, rows, _), _ in outcomes] == [[3, 1], [2]]


def test_the_script_of_the_docs_runs_under_torchrun(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "devices.md").read_text()
    script = tmp_path / "many.py"
    script.write_text(re.search(r"```python\n(# many.py.*?)```", page, re.DOTALL)[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    lines = [line.split() for line in sorted(done.stdout.splitlines())]
    assert [line[0] for line in lines] == ["0", "1"], done.stderr
    assert lines[0][1:] == lines[1][1:]


# ---- failures


def not_finite(mesh):
    return ps.solve(ps.ODE(lambda t, y: y / (0.5 - t).clamp(min=0)), Y[0], TS, integrator=ps.Euler(), mesh=mesh)


def test_an_error_of_the_solve_itself_is_the_same_on_every_rank(of):
    with pytest.raises(ps.SolveError) as alone:
        not_finite(None)
    for _, (error, solution) in of(not_finite):
        assert error == f"SolveError: {alone.value}"
        assert solution.result is ps.Result.nonfinite
        assert torch.equal(solution.ys.nan_to_num(), alone.value.solution.ys.nan_to_num())


class Wrong:
    """A drift that fails on a rank, at its third call there."""

    def __init__(self, rank, how):
        self.rank, self.how, self.calls = rank, how, 0

    def __call__(self, t, y):
        self.calls += 1
        if dist.get_rank() == self.rank and self.calls == 3:
            self.how()
        return drift(t, y)


def die():
    os._exit(7)


def sleep():
    time.sleep(6)


def fail():
    raise ValueError("no more paper")


def failing(mesh, rank, how):
    term = ps.ODE(Wrong(rank, how))
    return ps.solve(term, Y[0], TS, integrator=ps.Euler(), window=8, mesh=mesh)


@pytest.mark.parametrize(
    ("how", "patience", "said"),
    [(die, 20.0, "Rank 1 has ended"), (sleep, 3.0, "Rank 1 has ended, or did not answer within the timeout")],
)
def test_a_rank_that_dies_or_hangs_is_one_error_on_every_rank_and_rank_0_keeps_the_states(
    tmp_path, how, patience, said
):
    first, second, third = ranks.run(failing, tmp_path, 1, how, ranks=3, patience=patience)
    assert second is None or second[1][0].startswith("RankError")  # it died, or came too late
    for outcome, kind in ((first, "SolveError"), (third, "RankError")):
        _, (error, _), seconds = outcome
        assert error.startswith(f"{kind}: {said}"), error
        assert seconds < 10  # at once for one that died
    solution = first[1][1]
    alone = ps.sequential(ps.ODE(drift), Y[0], TS, integrator=ps.Euler())
    known = torch.isfinite(solution.ys).all(-1)
    assert solution.result is ps.Result.interrupted
    assert 1 < int(known.sum()) < len(TS)
    assert torch.allclose(solution.ys[known], alone.ys[known], rtol=1e-4, atol=1e-4)


def test_rank_0_that_dies_is_an_error_on_the_others(tmp_path):
    first, second, third = ranks.run(failing, tmp_path, 0, die, ranks=3, patience=20.0)
    assert first is None
    for _, (error, _), seconds in (second, third):
        assert error.startswith("RankError: Rank 0 has ended")
        assert seconds < 10


def twice(mesh):
    found = []
    for rank in (0, 1):
        try:
            failing(mesh, rank, fail)
        except (ValueError, ps.SolveError, ps.distributed.RankError) as error:
            ys = ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.Euler(), window=8, mesh=mesh).ys
            found.append((f"{type(error).__name__}: {error}", ys))
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_drift_that_raises_on_one_rank_ends_the_solve_on_all_and_the_next_one_works(of, rank):
    alone = ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.Euler(), window=8).ys
    for number, (found, error) in enumerate(of(twice, 3)):
        assert error is None
        said, ys = found[rank]
        assert torch.equal(ys, alone)
        assert "no more paper" in said
        if number == rank:
            assert said.startswith("ValueError")
        else:
            assert said.startswith("SolveError" if number == 0 else "RankError")
            assert f"Rank {rank} raised ValueError" in said


def absent(mesh):
    if dist.get_rank() == 1:
        return None
    return ps.solve(ps.ODE(drift), Y[0], TS, integrator=ps.Euler(), mesh=mesh)


def test_a_rank_that_never_calls_is_named(tmp_path):
    first, second, third = ranks.run(absent, tmp_path, ranks=3, patience=3.0)
    assert second[1] is None
    for _, (error, _), seconds in (first, third):
        assert error.startswith("RankError: Rank 1 has ended, or did not answer within the timeout")
        assert seconds < 40


class Weights(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor([value, 1.0], dtype=torch.float64))

    def forward(self, t, y):
        return -self.k * y


def other(mesh, what):
    odd = dist.get_rank() == 1
    given = {"brownian": ps.BrownianPath(seed=int(odd and what == "brownian"))}
    given["window"] = 9 if odd and what == "window" else 8
    y = Y[0] + 1e-16 * (odd and what == "y0")
    model = Weights(1.0 + 1e-15 * (odd and what == "weights"))
    function = (lambda t, y: model(t, y) * 1) if odd and what == "code" else (lambda t, y: model(t, y))
    y = Y[0].roll(1) if odd and what == "y0" else y
    term = ps.SDE(function, noise)
    return ps.solve(term, y, TS, integrator=ps.EulerMaruyama(), mesh=mesh, **given).ys


def others(mesh):
    said = {}
    for what in ("weights", "window", "brownian", "y0", "code", "nothing"):
        try:
            other(mesh, what)
        except ps.distributed.RankError as error:
            said[what] = str(error)
    return said


def test_ranks_that_run_with_something_else_are_told_so_before_the_first_round(of):
    for said, error in of(others):
        assert error is None
        assert said == {
            what: f"Rank 1 runs with other {what} than rank 0; call it alike on every rank, with the same arguments, "
            "seeds and weights."
            for what in ("weights", "window", "brownian", "y0", "code")
        }


def gradients(mesh):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    y = Y.clone().requires_grad_()
    sol = ps.solve(
        ps.ODE(lambda t, y: torch.tanh(model(y))), y, TS, integrator=ps.Euler(), batch_dims=1, window=8, mesh=mesh
    )
    sol.ys.square().sum().backward()
    found = [y.grad, model.weight.grad, model.bias.grad]
    refused = ps.solve(ps.ODE(lambda t, y: torch.tanh(model(y))), y, TS, integrator=ps.Collocation(), mesh=mesh)
    with pytest.raises(RuntimeError, match="not recorded by adaptive solves with mesh="):
        refused.ys.sum().backward()
    return found


def test_every_rank_records_the_gradients_of_one_process_and_collocation_refuses_them(of):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    y = Y.clone().requires_grad_()
    sol = ps.solve(ps.ODE(lambda t, y: torch.tanh(model(y))), y, TS, integrator=ps.Euler(), batch_dims=1, window=8)
    sol.ys.square().sum().backward()
    for found, error in of(gradients):
        assert error is None
        for one, own in zip(found, (y.grad, model.weight.grad, model.bias.grad), strict=True):
            assert torch.equal(one, own)
