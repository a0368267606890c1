"""What only a report reads is not computed by a solve, nor before it is asked for."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import picardsolve as ps
from picardsolve.certificate.accepted import Accepted
from picardsolve.certificate.certificate import Certificate
from picardsolve.results.history import History

Y0 = torch.linspace(-1, 1, 12).reshape(3, 4)
MODEL = ps.Denoiser(lambda x, t: torch.sin(x) / 2, ps.schedules.VP(lambda t: torch.exp(-5 * t)))
SOLVES: dict[str, dict[str, Any]] = {
    "an orbit, with growth measured": {
        "term": ps.ODE(lambda t, y: torch.cat([y[..., 2:], -torch.sin(y[..., :2])], -1)),
        "ts": ps.grids.uniform(0, 20, 300),
        "integrator": ps.RK4(),
        "batch_dims": 1,
    },
    "a decay": {"term": ps.ODE(lambda t, y: -y), "ts": ps.grids.uniform(0, 1, 80), "integrator": ps.Euler()},
    "noise": {
        "term": ps.SDE(lambda t, y: -y, lambda t, y: 0.1 + 0.1 * torch.sin(y), noise="diagonal"),
        "ts": ps.grids.uniform(0, 1, 80),
        "integrator": ps.Milstein(),
    },
    "a denoiser": {"term": MODEL, "ts": torch.linspace(0.999, 0.001, 81).double(), "integrator": ps.DDIM()},
    "auto": {
        "term": ps.ODE(lambda t, y: -y),
        "ts": ps.grids.uniform(0, 1, 80),
        "integrator": ps.Euler(),
        "window": "auto",
    },
}


@pytest.fixture
def made(monkeypatch) -> Counter[str]:
    """How often each thing that only a report reads was computed."""
    seen: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, staticmethod(counted) if name == "of" else counted)

    count(Certificate, "of")
    count(History, "_round")
    return seen


def solved(name: str) -> ps.Solution:
    how = dict(SOLVES[name])
    return ps.solve(how.pop("term"), Y0, how.pop("ts"), **how)


@pytest.mark.parametrize("name", SOLVES)
def test_a_certificate_is_made_when_it_is_asked_for(name, made):
    solution = solved(name)
    assert made["of"] == 0
    first = solution.certificate
    assert made["of"] == 1
    assert solution.certificate is first
    assert made["of"] == 1


@pytest.mark.parametrize("name", [name for name in SOLVES if name != "auto"])  # it reads the round's width
def test_records_of_rounds_are_made_when_they_are_read(name, made):
    solution = solved(name)
    assert made["_round"] == 0
    assert len(solution.history) > 1
    assert made["_round"] == 0
    record = solution.history[0]
    assert int(record.begin.min()) == 0
    assert made["_round"] == 1


@pytest.mark.parametrize("name", ["a decay", "noise", "a denoiser"])
def test_errors_are_propagated_only_for_a_certificate(name, monkeypatch):
    """What a warning is about is known without them, unless errors grow."""
    propagated = []
    errors = Accepted._errors.func

    def counted(self: Accepted) -> Any:
        propagated.append(self)
        return errors(self)

    monkeypatch.setattr(Accepted, "errors", property(lambda self: counted(self)[0]))
    monkeypatch.setattr(Accepted, "most", property(lambda self: counted(self)[1]))
    monkeypatch.setattr("picardsolve.certificate.sharpening.measurable", lambda *_: False)  # it decides by errors
    solution = solved(name)
    assert not propagated
    assert solution.certificate.error.isfinite().all()
    assert propagated


@pytest.mark.parametrize("name", SOLVES)
def test_what_is_read_of_a_solution_calls_nothing(name):
    """The drift is called by the solve, not by its certificate."""
    calls = []
    how = dict(SOLVES[name])
    term = how.pop("term")
    function = "model" if isinstance(term, ps.Denoiser) else "drift"
    original = getattr(term, function)

    def counted(*args: Tensor) -> Tensor:
        calls.append(args)
        return original(*args)

    solution = ps.solve(ps.Denoiser(counted, term.schedule) if function == "model" else _with(term, counted), Y0, **how)
    done = len(calls)
    assert done == solution.stats.calls
    assert str(solution.certificate)
    assert len(list(solution.history)) == len(solution.history)
    assert len(calls) == done


def _with(term: Any, drift: Any) -> Any:
    return ps.ODE(drift) if isinstance(term, ps.ODE) else ps.SDE(drift, term.diffusion, noise="diagonal")
