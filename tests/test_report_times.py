"""What a report says of speed, with a denoiser that is slow the first time and a clock that only it moves."""

import pickle
import tempfile
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_diffusers_features import cheap, ddim, noise

from picardsolve.integrations.diffusers import Report, denoise, spans

FIRST, CALL, ROW, BODY = 0.5, 4e-3, 1e-3, 2e-4  # seconds: of the first call of a shape, of any, of a row; of the loop


class Clock:
    """A time that passes only in the denoiser, and is kept in a file, where no watch over its memory looks."""

    def __init__(self):
        self.file = Path(tempfile.mkdtemp(), "now")
        self.file.write_text("0.0")

    def __call__(self) -> float:
        return float(self.file.read_text())

    def sleep(self, seconds: float) -> None:
        self.file.write_text(repr(self() + seconds))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    for module in ("denoiser_calls", "loop", "window"):
        monkeypatch.setattr(f"picardsolve.integrations.diffusers.run.{module}.perf_counter", made)
    return made


class Slow(torch.nn.Module):
    """Takes ``call + row * rows`` seconds, and ``first`` more for each shape that it has not seen.

    Which it has is written to files: what it kept in itself would be a memory, and steps taken one at a time.
    """

    def __init__(self, clock: Clock, call: float = CALL, row: float = ROW, first: float = FIRST):
        super().__init__()
        self.clock, self.cost, self.folder = clock, (call, row, first), tempfile.mkdtemp()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        call, row, first = self.cost
        seen = Path(self.folder, "x".join(map(str, x.shape)))
        self.clock.sleep(call + row * len(x) + (0 if seen.exists() else first))
        seen.touch()
        return cheap(x.double(), t).to(x)


def run(model: Any, clock: Clock, batch: int = 1, body: float = BODY, dtype=torch.float64, **more: Any) -> Report:
    """A run whose scheduler takes ``body`` seconds for each of the loop's own steps."""
    scheduler = ddim(60)
    scheduler.step = timed(scheduler.step, clock, body)
    given = {"window": 8, "tolerance": 1e-3, **more}
    return denoise(model, scheduler, noise(batch, 4, 4, 4, seed=1).to(dtype), **given)[1]


def timed(step: Any, clock: Clock, body: float) -> Any:
    @wraps(step)
    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.sleep(body)
        return step(*args, **kwargs)

    return slow


def truth(report: Report, batch: int = 1, body: float = BODY, call: float = CALL, row: float = ROW) -> float:
    """How many times as fast as the sequential loop with a warm denoiser."""
    return report.steps * (call + row * batch + body) / report.seconds


def test_a_first_run_measures_no_single_step_and_says_so(clock):
    report = run(Slow(clock), clock)
    assert report.round_seconds[0] == (1, pytest.approx(FIRST + CALL + ROW + BODY))
    assert report.single_seconds == []
    assert report.measured_gain is None
    assert report.predicted_gain is None
    assert "was not measured" in str(report)
    assert "times as fast" not in str(report)


def test_a_second_run_measures_the_truth(clock):
    model = Slow(clock)
    run(model, clock)
    report = run(model, clock)
    assert report.measured_gain == pytest.approx(truth(report), rel=1e-6)
    assert 0.5 * truth(report) < report.predicted_gain < 1.1 * truth(report)  # the pace grows towards the end
    assert f"{report.measured_gain:.2f} times as fast as one step at a time" in str(report)


def test_a_function_is_known_again(clock):
    slow = Slow(clock)

    def model(x, t):
        return slow(x, t)

    assert run(model, clock).measured_gain is None
    again = run(model, clock)
    assert again.measured_gain == pytest.approx(truth(again), rel=1e-6)


@pytest.mark.parametrize(("batch", "dtype"), [(2, torch.float64), (1, torch.float32)])
def test_another_shape_or_type_is_another_first_call(batch, dtype, clock):
    model = Slow(clock)
    run(model, clock)
    reports = [run(model, clock, batch=batch, dtype=dtype) for _ in range(2)]
    assert reports[0].measured_gain is None
    assert reports[1].measured_gain == pytest.approx(truth(reports[1], batch), rel=1e-6)


def test_single_steps_later_in_a_run_are_measurements(clock):
    """A window of one: every step but the first is a warm one, and nothing is gained."""
    report = run(Slow(clock), clock, window=1)
    assert len(report.single_seconds) == 59
    assert report.measured_gain == pytest.approx(60 * (CALL + ROW + BODY) / report.seconds)
    assert report.measured_gain < 1


costs = st.fixed_dictionaries(
    {
        "call": st.floats(1e-4, 1e-2),
        "row": st.floats(0, 1e-2),
        "first": st.floats(0, 2.0),
    }
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(costs, st.floats(0, 1e-2), st.integers(2, 16), st.integers(1, 3))
def test_no_gain_is_claimed_that_is_not_true(clock, cost, body, window, batch):
    """Whatever calls cost, in a first run and in later ones, wide first calls included."""
    model, kept = Slow(clock, **cost), {key: cost[key] for key in ("call", "row")}
    for number in range(3):
        report = run(model, clock, body=body, window=window, batch=batch)
        true = truth(report, batch, body, **kept)
        assert (report.measured_gain is None) is (not report.single_seconds)
        assert number == 0 or report.single_seconds
        for gain, least, most in ((report.measured_gain, 0.999, 1.001), (report.predicted_gain, 0.5, 1.2)):
            assert gain is None or least * true <= gain <= most * true


def test_what_is_foreseen_does_not_take_the_first_call_of_a_width_for_a_usual_one(clock):
    """One step was measured before, windows were not: their first call is paid once, and not for every window."""
    model = Slow(clock)
    run(model, clock, window=1)
    report = run(model, clock)
    assert max(seconds for width, seconds in report.round_seconds if width > 1) > FIRST
    assert report.predicted_gain == pytest.approx(truth(report), rel=0.2)


@pytest.mark.parametrize("first", [0.0, 0.05, 1.0])
def test_auto_is_not_taken_in_by_a_slow_first_call(first, clock):
    """Time grows with the rows: no window pays, however long the first call of one step took."""
    model = Slow(clock, call=0.0, row=2e-3, first=first)
    for shape in (2, 3, 4, 5, 6, 7, 8, 16, 32, 60):  # wide calls are warm
        Path(model.folder, f"{shape}x4x4x4").touch()
    report = run(model, clock, body=0.0, window="auto")
    assert report.sequential == "a wider window would be slower here"
    assert report.evaluations < 3 * 60


class Event:
    """An event of a device that is always so many seconds behind the host: reading it before it happened waits."""

    waits: ClassVar[list["Event"]] = []

    def __init__(self, clock: Clock, behind: float):
        self.at = clock() + behind

    def synchronize(self) -> None:
        self.waits.append(self)

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


@pytest.mark.parametrize("window", [8, "auto"])
def test_a_device_is_waited_for_only_where_its_times_are_read(window, clock, monkeypatch):
    """With a fixed window, the times of rounds are read from events, after the run."""
    monkeypatch.setattr(Event, "waits", [])
    monkeypatch.setitem(spans._MAKE, "cpu", lambda _: Event(clock, 0.25))
    model = Slow(clock, call=0.0 if window == "auto" else CALL)
    run(model, clock, window=window)
    assert bool(Event.waits) is (window == "auto")  # its width follows from the times of single steps
    report = run(model, clock, window=window)
    if window == 8:
        assert Event.waits == []
        assert report.measured_gain == pytest.approx(truth(report), rel=1e-6)
        assert 0.5 * truth(report) < report.predicted_gain < 1.1 * truth(report)
        assert len(Event.waits) == len(report.round_seconds) + 1  # each time is read once, and that of the run
        assert pickle.loads(pickle.dumps(report)).seconds == report.seconds
