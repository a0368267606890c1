"""Schedulers and denoisers with a memory of their own: the answer is the untouched loop's, whatever they remember."""

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import generator
from torch import Tensor, nn

from picardsolve.integrations.diffusers import denoise, sampler
from picardsolve.integrations.diffusers.mutable_state import MemoryLost

# diffusers' schedulers make numpy arrays of tensors, in ways that numpy 2 wants torch to support differently
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

STEPS = 18
WEIGHT = torch.randn(64, 64, generator=generator(0), dtype=torch.float64) / 8
START = torch.randn(1, 1, 8, 8, generator=generator(1), dtype=torch.float64)
numerics = given(tolerance=st.sampled_from([0.0, 1e-3]), window=st.sampled_from([2, 4, 8, 16]), seed=st.integers(0, 3))


def pure(x: Tensor, t: Any) -> Tensor:
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)
    return torch.tanh(unit(x) @ WEIGHT).reshape(x.shape) * (1 + t / 1000)


def unit(x: Tensor) -> Tensor:
    """Rows of the size of noise."""
    rows = x.flatten(1)
    return 8 * rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def start(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=generator(seed), dtype=torch.float64)


def by_hand(model: Any, scheduler: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
    return x


def distance(actual: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected))


def reset() -> None:
    """What belongs to the process."""
    global TOTAL
    TOTAL = 0
    OfClass.total = CountingClass.total = 0
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def check(make_model: Callable, make_scheduler: Callable, tolerance: float, window: int, seed: int) -> tuple[Any, Any]:
    """The untouched loop's result; the same memory afterwards. The report, and the model."""
    results = []
    for parallel in (False, True):
        reset()
        model, scheduler, x = make_model(), make_scheduler(), start(seed)
        scheduler.set_timesteps(STEPS)
        if parallel:
            x, report = denoise(model, scheduler, x, window=window, tolerance=tolerance)
        else:
            x = by_hand(model, scheduler, x)
        results.append((x, torch.get_rng_state(), random.getstate(), repr(np.random.get_state())))
    (expected, *drawn), (actual, *again) = results
    assert distance(actual, expected) <= (1e-9 if tolerance == 0 else 2 * tolerance), report
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]
    assert report.rounds <= STEPS + 1
    return report, model


# ---- schedulers


class Stateful(DDIMScheduler):
    """Mixes the output with what it remembers."""

    def __init__(self) -> None:
        super().__init__(clip_sample=False)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def mixed(self, output: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        return super().step(self.mixed(model_output), timestep, sample, return_dict=return_dict, **kwargs)


class InDeque(Stateful):
    def begin(self):
        self.past = deque(maxlen=2)

    def mixed(self, output):
        self.past.append(output)
        return 1.3 * self.past[-1] - 0.3 * self.past[0]


class InList(Stateful):
    def begin(self):
        self.past = [[]]

    def mixed(self, output):
        self.past[0].append(output)
        return 1.3 * output - 0.3 * self.past[0][-2:][0]


class InDict(Stateful):
    def begin(self):
        self.past = {"deep": {"last": None}}

    def mixed(self, output):
        last, self.past["deep"]["last"] = self.past["deep"]["last"], output
        return output if last is None else 1.3 * output - 0.3 * last


class Helper:
    def __init__(self):
        self.last = None

    def next(self, output):
        last, self.last = self.last, output
        return output if last is None else 1.3 * output - 0.3 * last

    def __repr__(self):
        return "Helper()"


class InHelper(Stateful):
    def begin(self):
        self.helper = Helper()

    def mixed(self, output):
        return self.helper.next(output)


class SlottedHelper:
    __slots__ = ("count", "last")

    def __init__(self):
        self.count, self.last = 0, None

    def next(self, output):
        last, self.last, self.count = self.last, output, self.count + 1
        return output if last is None else 1.3 * output - 0.3 * last + 0.01 * (self.count % 3)


class InSlots(InHelper):
    def begin(self):
        self.helper = SlottedHelper()


class InMethod(Stateful):
    """Also kept as a bound method."""

    def begin(self):
        self.mixed = Helper().next


class InScalar(Stateful):
    shape: tuple[int, ...] = ()

    def begin(self):
        self.size = torch.ones(self.shape, dtype=torch.float64)

    def mixed(self, output):
        self.size.mul_(0.8).add_(0.2 * output.std())
        return output / self.size.mean()


class InVector(InScalar):
    shape = (1,)


class InState(InScalar):
    shape = (1, 1, 8, 8)


class InArray(Stateful):
    def begin(self):
        self.sizes = np.ones(3)

    def mixed(self, output):
        self.sizes *= 0.8
        self.sizes[0] += 0.6 * float(output.std())
        return output / float(self.sizes[0] + 1)


class OwnGenerator(Stateful):
    def begin(self):
        self.random = torch.Generator().manual_seed(11)

    def mixed(self, output):
        return output + 0.1 * torch.randn(output.shape, generator=self.random, dtype=output.dtype)


class OwnNumpy(Stateful):
    def begin(self):
        self.random = np.random.default_rng(11)

    def mixed(self, output):
        return output * (1 + 0.1 * self.random.random())


class OwnPython(Stateful):
    def begin(self):
        self.random = random.Random(11)

    def mixed(self, output):
        return output * (1 + 0.1 * self.random.random())


class GlobalNumpy(Stateful):
    def begin(self):
        pass

    def mixed(self, output):
        return output * (1 + 0.1 * np.random.random())


class GlobalPython(Stateful):
    def begin(self):
        pass

    def mixed(self, output):
        return output * (1 + 0.1 * random.random())


class GlobalTorch(Stateful):
    def begin(self):
        pass

    def mixed(self, output):
        return output * (1 + 0.1 * torch.rand((), dtype=output.dtype))


class Counting(Stateful):
    def begin(self):
        self.count = 0

    def mixed(self, output):
        self.count += 1
        return output * (1.2 if self.count % 3 == 0 else 1.0)


class InClosure(Stateful):
    def begin(self):
        last = None

        def mix(output):
            nonlocal last
            before, last = last, output
            return output if before is None else 1.3 * output - 0.3 * before

        self.mix = mix

    def mixed(self, output):
        return self.mix(output)


class OfClass(Stateful):
    total = 0

    def begin(self):
        pass

    def mixed(self, output):
        OfClass.total += 1
        return output * (1.2 if OfClass.total % 3 == 0 else 1.0)


class OfModule(Stateful):
    def begin(self):
        pass

    def mixed(self, output):
        global TOTAL
        TOTAL += 1
        return output * (1.2 if TOTAL % 3 == 0 else 1.0)


class WithIterator(Stateful):
    def begin(self):
        self.factors = itertools.cycle([1.0, 1.2, 0.9])

    def mixed(self, output):
        return output * next(self.factors)


class WithNetwork(Stateful):
    """A network that counts, which is no part of the copies."""

    def begin(self):
        self.network = CountingModule()

    def mixed(self, output):
        return self.network(output, 0) * 0.1 + output


SCHEDULERS = [
    *[InDeque, InList, InDict, InHelper, InSlots, InMethod, InScalar, InVector, InState, InArray],
    *[OwnGenerator, OwnNumpy, OwnPython, GlobalNumpy, GlobalPython, GlobalTorch],
    *[Counting, InClosure, OfClass, OfModule, WithIterator, WithNetwork],
]
TOTAL = 0


@pytest.mark.parametrize("make", SCHEDULERS)
@numerics
@settings(max_examples=4)
def test_a_scheduler_with_a_memory(make, tolerance, window, seed):
    check(lambda: pure, make, tolerance, window, seed)


@pytest.mark.parametrize("make", [InDeque, InList, InHelper, InSlots, InVector, OwnGenerator, InClosure, Counting])
def test_a_memory_that_can_be_copied_costs_no_parallelism(make):
    report, _ = check(lambda: pure, make, 1e-3, 8, 0)
    assert report.sequential is None
    assert report.rounds <= 0.75 * STEPS


@pytest.mark.parametrize("make", [OfClass, OfModule, WithIterator, WithNetwork, GlobalPython])
def test_a_memory_that_cannot_be_copied_is_said_so(make):
    report, _ = check(lambda: pure, make, 1e-3, 8, 0)
    assert "scheduler" in report.sequential.lower() or make.__name__ in report.sequential
    assert report.sequential in str(report)


class Failing(Counting):
    """Cannot be stepped twice at one time, and has moved its memory by then."""

    def begin(self):
        self.count, self.seen = 0, Seen
        Seen.clear()

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        if float(timestep) in Seen:
            raise ValueError("stepped twice")
        Seen.add(float(timestep))
        return super().step(model_output, timestep, sample, return_dict, **kwargs)


class _Set:
    """One set for all."""

    def __init__(self):
        self.times = set()

    def __contains__(self, t):
        return t in self.times

    def add(self, t):
        self.times.add(t)

    def clear(self):
        self.times.clear()


Seen = _Set()


@numerics
@settings(max_examples=6)
def test_steps_ahead_that_fail_move_no_memory(tolerance, window, seed):
    report, _ = check(lambda: pure, Failing, tolerance, window, seed)
    assert report.sequential is not None


# ---- denoisers


class CountingModule(nn.Module):
    period = 3

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        self.count += 1
        return pure(x, t) * (1.2 if self.count % self.period == 0 else 1.0)


class LateModule(nn.Module):
    """Nothing is seen of what it counts before it is late."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        self.count += 1
        return pure(x, t) * (1.2 if self.count > 11 else 1.0)


class CountingClass(nn.Module):
    total = 0

    def forward(self, x, t):
        CountingClass.total += 1
        return pure(x, t) * (1.2 if CountingClass.total % 3 == 0 else 1.0)


class Caching(nn.Module):
    """Evaluates every other call, and where it is asked for another number of rows."""

    def __init__(self):
        super().__init__()
        self.kept, self.count = None, 0

    def forward(self, x, t):
        self.count += 1
        if self.kept is None or self.count % 2 or self.kept.shape != x.shape:
            self.kept = pure(x, t)
        return self.kept


class CachingByTime(nn.Module):
    """Counts nothing: the time says when it evaluates."""

    def __init__(self):
        super().__init__()
        self.kept = None

    def forward(self, x, t):
        if self.kept is None or self.kept.shape != x.shape or int(torch.as_tensor(t).flatten()[0]) % 4 < 2:
            self.kept = pure(x, t)
        return 0.5 * self.kept + 0.5 * pure(x, t)


class CachingByDistance(nn.Module):
    """As TeaCache and the first-block cache do."""

    def __init__(self):
        super().__init__()
        self.input, self.kept, self.moved = None, None, 0.0

    def forward(self, x, t):
        if self.input is not None and self.input.shape == x.shape:
            self.moved += distance(x, self.input)
        if self.kept is None or self.kept.shape != x.shape or self.moved > 0.2:
            self.kept, self.moved = pure(x, t), 0.0
        self.input = x
        return self.kept


class CachingLate(nn.Module):
    """From a time on only."""

    def __init__(self):
        super().__init__()
        self.kept = None

    def forward(self, x, t):
        if torch.as_tensor(t).min() > 500:
            return pure(x, t)
        if self.kept is None:
            self.kept = pure(x[-1:], torch.as_tensor(t).flatten()[-1:])
        return 0.7 * pure(x, t) + 0.3 * self.kept


class RunningBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        self.size.mul_(0.9).add_(0.1 * x[0].std())
        return pure(x, t) / self.size


class RunningData(RunningBuffer):
    """What torch does not count as written to."""

    def forward(self, x, t):
        self.size.data.mul_(0.9).add_(0.1 * x[0].std())
        return pure(x, t) / self.size


class WeightOfItsOwn(nn.Module):
    """Learns while it samples."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x, t):
        self.gain.data.mul_(0.98)
        return pure(x, t) * self.gain.mean()


class OnlySeveral(nn.Module):
    """Remembers only that it was asked for several rows."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        self.count += len(x) > 1
        return pure(x, t) * (1 + 0.2 * self.count)


class FailingModule(nn.Module):
    """Counts, and fails on several rows."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        if len(x) > 1:
            self.count += 1
            raise ValueError("one at a time")
        return pure(x, t) * (1 + 0.2 * self.count)


class Aside(nn.Module):
    """Its part is in a plain list, and no submodule."""

    def __init__(self):
        super().__init__()
        self.parts = [CountingModule()]

    def forward(self, x, t):
        return self.parts[0](x, t)


class Processor:
    """As attention processors are."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return pure(x, t) * (1.2 if self.calls % 4 == 0 else 1.0)


class WithProcessor(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.processor = Processor()

    def forward(self, x, t):
        return self.inner.processor(x, t)


def replaced_forward() -> nn.Module:
    module, state = PureModule(), {"kept": None, "count": 0}
    forward = module.forward

    def cached(x, t):
        state["count"] += 1
        if state["kept"] is None or state["count"] % 3 == 1 or state["kept"].shape != x.shape:
            state["kept"] = forward(x, t)
        return state["kept"]

    module.forward = cached
    return module


class PureModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x, t):
        return pure(self.inner(x), t)


def hook(inside: bool) -> nn.Module:
    module, past = PureModule(), deque(maxlen=2)

    def remember(_, __, output):
        past.append(output.mean())
        return output + 0.2 * sum(past)

    (module.inner if inside else module).register_forward_hook(remember)
    return module


def closing_over_a_module() -> Callable:
    module = CountingModule()
    return lambda x, t: module(x, t)


def closing_over_a_number() -> Callable:
    count = 0

    def model(x, t):
        nonlocal count
        count += 1
        return pure(x, t) * (1.2 if count % 3 == 0 else 1.0)

    return model


def of_a_global() -> Callable:
    def model(x, t):
        global TOTAL
        TOTAL += 1
        return pure(x, t) * (1.2 if TOTAL % 3 == 0 else 1.0)

    return model


def with_an_iterator() -> Callable:
    count = itertools.count()
    return lambda x, t: pure(x, t) * (1 + 0.1 * (next(count) % 3))


def with_a_generator() -> Callable:
    factors = (1 + 0.1 * (k % 3) for k in range(1000))
    return lambda x, t: pure(x, t) * next(factors)


class LocalToAThread(nn.Module):
    def __init__(self):
        super().__init__()
        self.local = threading.local()
        self.local.count = 0

    def forward(self, x, t):
        self.local.count += 1
        return pure(x, t) * (1.2 if self.local.count % 3 == 0 else 1.0)


COUNT: ContextVar[int] = ContextVar("count", default=0)


def of_the_context() -> Callable:
    COUNT.set(0)

    def model(x, t):
        COUNT.set(COUNT.get() + 1)
        return pure(x, t) * (1.2 if COUNT.get() % 3 == 0 else 1.0)

    return model


def of_bytes() -> Callable:
    count = bytearray(1)

    def model(x, t):
        count[0] += 1
        return pure(x, t) * (1.2 if count[0] % 3 == 0 else 1.0)

    return model


def of_a_default() -> Callable:
    def model(x, t, count=None):
        count[0] += 1
        return pure(x, t) * (1.2 if count[0] % 3 == 0 else 1.0)

    model.__defaults__ = ([0],)
    return model


class Alias(nn.Module):
    """Reads its log by another name."""

    def __init__(self):
        super().__init__()
        self.log = self.seen = []

    def forward(self, x, t):
        self.log.append(1)
        return pure(x, t) * (1.2 if len(self.seen) > 8 else 1.0)


class LookedUp(nn.Module):
    """Reads its count without spelling it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        self.count += 1
        return pure(x, t) * (1.2 if getattr(self, "".join(["co", "unt"])) > 8 else 1.0)


def drawing(draw: Callable[[], float]) -> Callable:
    return lambda x, t: pure(x, t) * (1 + 0.1 * draw())


MODELS = {
    **{cls.__name__: cls for cls in (CountingModule, LateModule, CountingClass, Caching, CachingByTime)},
    **{cls.__name__: cls for cls in (CachingByDistance, CachingLate, RunningBuffer, RunningData, WeightOfItsOwn)},
    **{cls.__name__: cls for cls in (OnlySeveral, FailingModule, Aside, WithProcessor, Processor)},
    **{cls.__name__: cls for cls in (LocalToAThread, Alias, LookedUp)},
    "of the context": of_the_context,
    "of bytes": of_bytes,
    "of a default": of_a_default,
    "replaced forward": replaced_forward,
    "hook inside": lambda: hook(True),
    "hook": lambda: hook(False),
    "closing over a module": closing_over_a_module,
    "closing over a number": closing_over_a_number,
    "method of a helper": lambda: Processor().__call__,
    "of a global": of_a_global,
    "iterator": with_an_iterator,
    "generator": with_a_generator,
    "draws of torch": lambda: drawing(lambda: float(torch.rand(()))),
    "draws of numpy": lambda: drawing(np.random.random),
    "draws of python": lambda: drawing(random.random),
    "draws of its own": lambda: drawing(np.random.default_rng(3).random),
}


@pytest.mark.parametrize("name", MODELS)
@numerics
@settings(max_examples=4)
def test_a_denoiser_with_a_memory(name, tolerance, window, seed):
    report, _ = check(MODELS[name], lambda: DDIMScheduler(clip_sample=False), tolerance, window, seed)
    if name == "hook":  # it runs in the pipeline's own loop, on what the denoiser answered
        assert report.width == 1 or any("changed between steps" in note for note in report.notes)
    elif name not in ("OnlySeveral", "FailingModule") or window > 2:
        assert report.sequential is not None
        assert report.sequential in str(report)


@pytest.mark.parametrize("name", MODELS)
def test_a_denoiser_with_a_memory_beside_a_scheduler_with_one(name):
    check(MODELS[name], InDeque, 1e-3, 8, 2)
    check(MODELS[name], lambda: DPMSolverMultistepScheduler(solver_order=2), 0.0, 4, 2)


def test_a_memory_that_nobody_can_see_is_an_error():
    """A function's cache hands out what is written to: neither to be seen nor to be put back."""

    @cache
    def count() -> list[int]:
        return [0]

    def model(x, t):
        count()[0] += 1
        return pure(x, t) * (1 + 0.1 * count()[0])

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    with pytest.raises(MemoryLost, match=r"differs from call to call.*window=1"):
        denoise(model, scheduler, START)
    assert set(vars(scheduler)).isdisjoint({"step", "set_timesteps", "scale_model_input"})
    count.cache_clear()
    expected = by_hand(model, scheduler, START)
    count.cache_clear()
    actual, _ = denoise(model, scheduler, START, window=1)
    assert distance(actual, expected) <= 1e-9


# ---- what is no memory


class Logging(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows: list[int] = []
        self.calls = 0
        self.largest: dict[str, int] = {}

    def forward(self, x, t):
        self.rows.append(len(x))
        self.calls += 1
        self.largest["most"] = len(x)
        return pure(x, t)

    def summary(self):
        return sum(self.rows), self.calls


class Table(nn.Module):
    """Made in the first call, and the same whatever that was."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x, t):
        if self.table is None:
            self.table = torch.linspace(0, 1, 64, dtype=x.dtype).reshape(1, 8, 8)
        return pure(x, t) + 0.01 * self.table


class WithHistory(PureModule):
    """Lists, dictionaries, generators and counters that nobody touches."""

    def __init__(self):
        super().__init__()
        self.layers, self.random, self.config = [nn.Linear(2, 2)], torch.Generator(), {"a": [1, 2, {3}]}
        self.count = 0


def logging_hook() -> nn.Module:
    module, calls = PureModule(), []
    module.register_forward_hook(lambda *_: calls.append(1))
    return module


@pytest.mark.parametrize("make", [PureModule, Logging, Table, WithHistory, logging_hook, lambda: pure])
def test_what_is_no_memory_costs_no_parallelism(make):
    report, model = check(make, lambda: DDIMScheduler(clip_sample=False), 1e-3, 8, 0)
    assert report.sequential is None
    assert report.rounds <= 0.6 * STEPS
    if isinstance(model, Logging):
        assert model.calls == len(model.rows) == report.calls


class ReadLog(Logging):
    """The same log, read."""

    def forward(self, x, t):
        out = super().forward(x, t)
        return out * (1.2 if self.summary()[1] % 4 == 0 else 1.0)


def test_a_log_that_is_read_is_a_memory():
    report, _ = check(ReadLog, lambda: DDIMScheduler(clip_sample=False), 1e-3, 8, 0)
    assert "memory of its own" in report.sequential


# ---- what others change in the denoiser between steps


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64, bias=False).double()
        with torch.no_grad():
            self.inner.weight.copy_(WEIGHT)
        self.low = nn.Parameter(torch.eye(64, dtype=torch.float64)[:, :40])
        self.scale, self.processor = [1.0], SimpleNamespace(scale=1.0)
        self.register_buffer("gain", torch.ones(1, dtype=torch.float64))

    def forward(self, x, t):
        rows = unit(x)
        y = self.inner(rows) + self.scale[0] * self.processor.scale * (rows @ self.low @ self.low.T)
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return torch.tanh(self.gain * y).reshape(x.shape) * (1 + t / 1000) * (1.0 if self.training else 0.9)


def replaced_weight(net):
    net.inner.weight = nn.Parameter(0.5 * WEIGHT)


def loaded(net):
    net.load_state_dict({name: 0.5 * value for name, value in net.state_dict().items()})


def without_gradient(net):
    with torch.no_grad():
        net.low.zero_()


def other_module(net):
    net.inner = nn.Linear(64, 64).double()
    with torch.no_grad():
        for weight in net.inner.parameters():
            weight.fill_(0.01)


def hooked(net):
    net.register_forward_hook(lambda _, __, output: 0.8 * output)


def hooked_inside(net):
    net.inner.register_forward_hook(lambda _, __, output: 0.8 * output)


def other_forward(net):
    forward = net.inner.forward
    net.inner.forward = lambda x: 0.8 * forward(x)


CHANGES = {
    "a scale in a list": lambda net: net.scale.__setitem__(0, 0.0),
    "another list": lambda net: setattr(net, "scale", [0.0]),
    "a scale of a processor": lambda net: setattr(net.processor, "scale", 0.0),
    "another processor": lambda net: setattr(net, "processor", SimpleNamespace(scale=0.2)),
    "a weight, by data": lambda net: net.low.data.zero_(),
    "a weight's data": lambda net: setattr(net.low, "data", torch.zeros(64, 40, dtype=torch.float64)),
    "an element, by data": lambda net: net.inner.weight.data[3].fill_(2.0),
    "a weight, by numpy": lambda net: net.inner.weight.detach().numpy().__imul__(0.5),
    "a weight, by copy": lambda net: net.low.data.copy_(0.1 * net.low.data),
    "a weight, without gradient": without_gradient,
    "another weight": replaced_weight,
    "a state that is loaded": loaded,
    "a buffer": lambda net: net.gain.fill_(0.5),
    "evaluation mode": lambda net: net.eval(),
    "another module": other_module,
    "a hook": hooked,
    "a hook inside": hooked_inside,
    "another forward inside": other_forward,
}


def loop(net: nn.Module, scheduler: Any, change: Callable, when: Callable[[int], bool], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
            if when(i):
                change(net)
    return x


@pytest.mark.parametrize("name", CHANGES)
@numerics
@settings(max_examples=3)
def test_a_change_between_steps(name, tolerance, window, seed):
    def run(around: Any, at: int) -> Tensor:
        net, scheduler = Adapted(), DDIMScheduler(clip_sample=False)
        owner = SimpleNamespace(scheduler=scheduler, components={"net": net})
        with around(owner) as entered:
            reports.append(entered)
            return loop(net, scheduler, CHANGES[name], lambda i: i == at, start(seed))

    reports: list[Any] = []
    at = 4 + seed
    never, expected = run(nullcontext, -1), run(nullcontext, at)
    assert distance(never, expected) > 3e-3  # the change matters
    actual = run(lambda owner: sampler(owner, window=window, tolerance=tolerance), at)
    assert distance(actual, expected) <= (1e-9 if tolerance == 0 else 2 * tolerance)
    assert reports[-1].report.sequential is None
    assert window == 2 or reports[-1].report.width > 1


def test_a_change_in_every_step():
    results = []
    for parallel in (False, True):
        net, scheduler = Adapted(), DDIMScheduler(clip_sample=False)
        owner = SimpleNamespace(scheduler=scheduler, components={"net": net})
        with sampler(owner, window=8) if parallel else nullcontext() as run:
            halve = lambda net: net.scale.__setitem__(0, 0.9 * net.scale[0])  # noqa: E731
            results.append(loop(net, scheduler, halve, lambda i: True, START))
    assert distance(results[1], results[0]) <= 1e-9
    assert any("changed between steps" in note for note in run.report.notes)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_loop_that_tells_the_denoiser_its_step(tolerance):
    """By an attribute: every lane of a window would see the first one's."""
    results = []
    for parallel in (False, True):
        net, scheduler, x = Adapted(), DDIMScheduler(clip_sample=False), START
        owner = SimpleNamespace(scheduler=scheduler, components={"net": net})
        scheduler.set_timesteps(STEPS)
        with torch.no_grad(), sampler(owner, window=8, tolerance=tolerance) if parallel else nullcontext():
            for i, t in enumerate(scheduler.timesteps):
                net.processor.scale = 1 - i / STEPS
                x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
        results.append(x)
    assert distance(results[1], results[0]) <= 1e-9


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_pipeline_that_is_given_another_denoiser(tolerance):
    results = []
    for parallel in (False, True):
        pipe = SimpleNamespace(scheduler=DDIMScheduler(clip_sample=False), net=Adapted(), x=START)
        pipe.components = {"net": pipe.net}
        pipe.scheduler.set_timesteps(STEPS)
        other = Adapted().eval()
        with torch.no_grad(), sampler(pipe, window=8, tolerance=tolerance) if parallel else nullcontext() as run:
            for i, t in enumerate(pipe.scheduler.timesteps):
                pipe.x = pipe.scheduler.step(pipe.net(pipe.x, t), t, pipe.x, return_dict=False)[0]
                if i == 5:
                    pipe.net = other
        results.append(pipe.x)
        assert "forward" not in vars(other)
    assert distance(results[1], results[0]) <= (1e-9 if tolerance == 0 else 2 * tolerance)
    assert run.report.rounds < STEPS or tolerance == 0


# ---- gradients through the denoiser

TARGET = start(7)


def guided(
    net: nn.Module,
    scheduler: Any,
    *,
    how: str = "grad",
    retain: bool = False,
    through: bool = True,
    first: int = 0,
    of_weights: bool = False,
) -> Tensor:
    """Guidance by a gradient, as posterior sampling and guidance by a classifier use it."""
    scheduler.set_timesteps(STEPS)
    x = START
    for i, t in enumerate(scheduler.timesteps):
        if i < first:
            with torch.no_grad():
                x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
            continue
        with torch.enable_grad():
            state = x.detach().requires_grad_(True)
            noise = net(state, t)
            if not through:
                noise = noise.detach()
            signal = scheduler.alphas_cumprod[t].double()
            sample = (state - (1 - signal) ** 0.5 * noise) / signal**0.5
            if how == "grad":
                slope = torch.autograd.grad(((sample - TARGET) ** 2).sum(), state, retain_graph=retain)[0]
                if retain:
                    slope = slope + torch.autograd.grad(torch.tanh(sample).sum(), state)[0]
            else:
                ((sample - TARGET) ** 2).sum().backward(retain_graph=retain)
                slope = state.grad
        output = noise.detach() + 0.1 * signal * slope
        x = scheduler.step(output, t, x, return_dict=False)[0].detach()
    return x


GUIDES = {
    "grad": {},
    "grad, twice": {"retain": True},
    "backward": {"how": "backward"},
    "backward, retained": {"how": "backward", "retain": True},
    "not through the denoiser": {"through": False},
    "late": {"first": 7},
    "late, backward": {"first": 6, "how": "backward"},
}


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("window", [2, 8, 16])
@pytest.mark.parametrize("name", GUIDES)
def test_guidance_by_a_gradient(name, window, tolerance):
    net = Adapted().requires_grad_(False)
    expected = guided(net, DDIMScheduler(clip_sample=False), **GUIDES[name])
    scheduler = DDIMScheduler(clip_sample=False)
    owner = SimpleNamespace(scheduler=scheduler, components={"net": net})
    with sampler(owner, window=window, tolerance=tolerance) as run:
        actual = guided(net, scheduler, **GUIDES[name])
    assert distance(actual, expected) <= (1e-9 if tolerance == 0 or "first" not in GUIDES[name] else 2 * tolerance)
    assert "gradient" in run.report.sequential
    if "first" not in GUIDES[name]:
        assert run.report.rounds == STEPS


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_gradient_through_the_whole_loop(tolerance):
    """With respect to the start and to the weights, as those ask for who train through a sampler."""
    slopes = []
    for parallel in (False, True):
        net, scheduler = Adapted(), DDIMScheduler(clip_sample=False)
        owner = SimpleNamespace(scheduler=scheduler, components={"net": net})
        scheduler.set_timesteps(STEPS)
        begin = x = START.clone().requires_grad_(True)
        with sampler(owner, window=8, tolerance=tolerance) if parallel else nullcontext():
            for t in scheduler.timesteps:
                x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
        slopes.append(torch.autograd.grad((x**2).sum(), [begin, net.low, net.inner.weight]))
    for actual, expected in zip(slopes[1], slopes[0], strict=True):
        assert distance(actual, expected) <= 1e-9
