"""Calls of many threads, merged into shared rounds: values, fairness, errors, cancellation."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import picardsolve as ps
from picardsolve.serving.rounds import shares

LONG = 60.0  # seconds that calls wait for company: rounds are then as full as they can be, and no test takes so long
pytestmark = pytest.mark.timeout(120)


def in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of functions, or what they raised, each in a thread of its own."""
    results: list[Any] = [None] * len(functions)

    def run(k: int) -> None:
        try:
            results[k] = functions[k]()
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    return results


def at_once(batcher: ps.Batcher, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
    """The results of functions of a request, each in a thread of its own; all requests begin before the first call."""
    with ExitStack() as stack:
        requests = [stack.enter_context(batcher.request()) for _ in calls]

        def one(k: int) -> Any:
            with torch.no_grad():
                try:
                    return calls[k](requests[k])
                finally:
                    requests[k].__exit__()

        return in_threads([lambda k=k: one(k) for k in range(len(calls))])


class Model:
    """A function of rows that notes how many rows each of its calls has."""

    def __init__(self, function=lambda t, y, **k: torch.sin(t) * y):
        self.function, self.rows = function, []

    def __call__(self, t, y, **kwargs):
        self.rows.append(len(y))
        return self.function(t, y, **kwargs)


def rows(count: int, size: int = 3, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, generator=gen, dtype=dtype), torch.randn(count, size, generator=gen, dtype=dtype)


# ---- values


def test_calls_of_two_threads_share_a_round():
    model = Model()
    batcher = ps.Batcher(model, max_rows=8, max_wait=LONG)
    given = [rows(2, seed=1), rows(3, seed=2)]
    twice = [lambda request, k=k: [request(*given[k]) for _ in range(2)] for k in range(2)]
    found = at_once(batcher, twice)
    for (t, y), outs in zip(given, found, strict=True):
        assert all(torch.equal(out, torch.sin(t) * y) for out in outs)
    assert sorted(model.rows[:3]) == [2, 3, 5]  # the first round of a kind is evaluated in company and alone
    assert model.rows[3:] == [5]
    assert batcher.rounds.widest == 5


def test_a_call_by_itself_is_the_models_own():
    model = Model()
    batcher = ps.Batcher(model, max_rows=8)
    t, y = rows(3)
    given = []
    model.function = lambda t, y: given.append((t, y)) or y
    with torch.no_grad():
        assert batcher(t, y) is y
    assert given[0][0] is t
    assert given[0][1] is y


@given(st.data())
def test_every_call_gets_what_it_would_get_alone(data):
    """Elementwise functions do not depend on the batch, so that values are the same to the last bit."""
    count, most = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    model = Model(
        lambda t, y, shift=0.0, labels=None: {
            "a": torch.sin(t) * y + shift,
            "b": (y if labels is None else y * labels[:, None], "text"),
        }
    )
    batcher = ps.Batcher(model, max_rows=most, max_wait=LONG)
    sizes, dtypes = st.sampled_from([2, 3]), st.sampled_from([torch.float32, torch.float64])

    def drawn(k):
        t, y = rows(data.draw(st.integers(1, 9)), data.draw(sizes), k, data.draw(dtypes))
        kwargs: dict[str, Any] = {}
        if data.draw(st.booleans()):
            kwargs["shift"] = data.draw(st.sampled_from([0.5, 1, 2.0]))
        if data.draw(st.booleans()):
            kwargs["labels"] = torch.arange(len(y), dtype=y.dtype) + k
        return t, y, kwargs

    calls = [[drawn(10 * k + j) for j in range(data.draw(st.integers(1, 3)))] for k in range(count)]
    modes = [data.draw(st.sampled_from([torch.no_grad, torch.inference_mode])) for _ in calls]

    def request(k):
        def solve(model):
            with modes[k]():
                return [model(t, y, **kwargs) for t, y, kwargs in calls[k]]

        return solve

    found = at_once(batcher, [request(k) for k in range(count)])
    for k in range(count):
        for (t, y, kwargs), out in zip(calls[k], found[k], strict=True):
            with modes[k]():
                expected = model.function(t, y, **kwargs)
            assert torch.equal(out["a"], expected["a"])
            assert torch.equal(out["b"][0], expected["b"][0])
            assert out["b"][1] == "text"
            assert out["a"].is_inference() is (modes[k] is torch.inference_mode)
    assert max(model.rows) <= most


@given(st.data())
def test_rows_that_belong_together_stay_together(data):
    """A model that splits its rows into halves, as guidance does, gets the halves of all requests in order."""
    widths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    most = data.draw(st.integers(2, 12))

    def guided(t, y):
        without, given = y.chunk(2)
        out = without + 3 * (given - without)
        return torch.cat([out, out]) * t

    model = Model(guided)
    batcher = ps.Batcher(model, max_rows=most, max_wait=LONG)
    calls = [rows(2 * w, 3, k) for k, w in enumerate(widths)]
    found = at_once(
        batcher,
        [lambda r, k=k: [r.call(model, calls[k], {}, lanes=widths[k]) for _ in range(2)] for k in range(len(widths))],
    )
    for call, outs in zip(calls, found, strict=True):
        assert all(torch.equal(out, guided(*call)) for out in outs)
    assert max(model.rows) <= most
    assert not batcher.rounds.apart


def test_times_without_a_row_are_given_to_all_rows_of_their_request():
    batcher = ps.Batcher(Model(lambda t, y: y * t.reshape(-1, 1)), max_rows=8, max_wait=LONG)
    y = rows(2)[1]
    calls = [lambda r, k=k: [r(torch.tensor(float(k)), y) for _ in range(2)] for k in range(3)]
    for k, outs in enumerate(at_once(batcher, calls)):
        assert all(torch.equal(out, k * y) for out in outs)
    assert batcher.rounds.widest == 6


@pytest.mark.parametrize("same", [True, False])
def test_what_requests_share_must_have_the_same_values(same):
    model = Model(lambda t, y, table: y @ table)
    batcher = ps.Batcher(model, max_rows=8, max_wait=LONG)
    t, y = rows(2, 5)
    tables = [torch.full((5, 5), 1.0 if same else float(k), dtype=torch.float64) for k in range(2)]
    found = at_once(batcher, [lambda r, k=k: [r(t, y, table=tables[k]) for _ in range(2)] for k in range(2)])
    for table, outs in zip(tables, found, strict=True):
        torch.testing.assert_close(outs, [y @ table] * 2)
    assert batcher.rounds.widest == (4 if same else 2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_shared_may_be_written_to_between_calls(mode):
    model = Model(lambda t, y, table: y * table.sum())
    batcher = ps.Batcher(model, max_rows=8, max_wait=LONG)
    t, y = rows(2, 5)

    def request(k):
        def solve(r):
            with mode():
                table, outs = torch.ones(7), []
                for value in (1.0, 1.0, 1.0 + k, 2.0):
                    table.fill_(value)
                    outs.append(float((r(t, y, table=table) / y).mean()))
                return outs

        return solve

    assert at_once(batcher, [request(0), request(1)]) == [[7, 7, 7, 14], [7, 7, 14, 14]]


def test_an_output_may_be_written_to():
    batcher = ps.Batcher(Model(), max_rows=8, max_wait=LONG)
    t, y = rows(2)

    def request(r):
        r(t, y)
        out = r(t, y)
        before = out._version
        return out, before, out.zero_()

    for out, before, _ in at_once(batcher, [request, lambda r: (r(t, y), 0, r(t, y))]):
        assert before == 0
        assert out._version <= 1


class Output(SimpleNamespace):
    """What some models return."""


def test_an_object_with_a_sample_is_divided():
    batcher = ps.Batcher(lambda t, y: Output(sample=y * t, note="n"), max_rows=3, max_wait=LONG)
    calls = [rows(k, seed=k) for k in (2, 5)]
    for (t, y), out in zip(calls, at_once(batcher, [lambda r, c=c: r(*c) for c in calls]), strict=True):
        assert torch.equal(out.sample, t * y)
        assert out.note == "n"


# ---- what gets no company


def test_a_model_whose_rows_see_each_other_gets_no_company():
    batcher = ps.Batcher(Model(lambda t, y: y - y.mean(0)), max_rows=8, max_wait=LONG)
    calls = [rows(2, seed=1), rows(2, seed=2)]
    found = at_once(batcher, [lambda r, c=c: [r(*c) for _ in range(3)] for c in calls])
    for (_, y), outs in zip(calls, found, strict=True):
        assert all(torch.equal(out, y - y.mean(0)) for out in outs)
    assert len(batcher.rounds.apart) == 1


def test_an_argument_that_looks_like_rows_by_chance_gets_no_company():
    """Five rows and five numbers that are for all of them."""
    batcher = ps.Batcher(Model(lambda t, y, scale: y * scale.sum()), max_rows=20, max_wait=LONG)
    t, y = rows(5)
    scales = [torch.arange(5.0).double() + k for k in range(2)]
    found = at_once(batcher, [lambda r, k=k: [r(t, y, scale=scales[k]) for _ in range(2)] for k in range(2)])
    for scale, outs in zip(scales, found, strict=True):
        assert all(torch.equal(out, y * scale.sum()) for out in outs)


@pytest.mark.parametrize(
    "fails", [lambda y: y[:0], lambda y: y.sum(), lambda y: y.unflatten(0, (2, 1)) if len(y) > 2 else y]
)
def test_a_model_that_returns_other_rows_in_company_gets_none(fails):
    batcher = ps.Batcher(Model(lambda t, y: fails(y)), max_rows=8, max_wait=LONG)
    calls = [rows(2, seed=1), rows(2, seed=2)]
    found = at_once(batcher, [lambda r, c=c: [r(*c) for _ in range(2)] for c in calls])
    for (_, y), outs in zip(calls, found, strict=True):
        assert all(torch.equal(out, fails(y)) for out in outs)


def test_gradients_and_transforms_are_left_to_their_own_thread():
    weight, threads = torch.ones(3, requires_grad=True), []

    def drift(t, y):
        threads.append(threading.get_ident())
        return torch.sin(t) * y * weight

    batcher = ps.Batcher(drift, max_rows=8, max_wait=LONG)
    t, y = rows(2)

    def gradient(r):
        with torch.enable_grad():
            return torch.autograd.grad(r(t, y).sum(), weight)[0], threading.get_ident()

    def lifted(r):
        tangent = torch.func.jvp(lambda y: r(t, y), (y,), (y,))[1]
        return torch.func.vmap(r)(t, y), tangent, threading.get_ident()

    (grad, one), (many, tangent, other) = at_once(batcher, [gradient, lifted])
    torch.testing.assert_close(grad, (torch.sin(t) * y).sum(0).float())
    torch.testing.assert_close(many, torch.sin(t) * y)
    torch.testing.assert_close(tangent, torch.sin(t) * y)
    assert set(threads) == {one, other}


# ---- rows are shared out fairly


def test_few_rows_do_not_wait_for_many():
    arrived, seen, began = [threading.Event() for _ in range(3)], [], threading.Event()

    def wait_for_all(t, y):
        began.set()
        assert all(event.wait(100) for event in arrived)
        seen.append(sorted(y[:, 0].tolist()))
        return y * t

    batcher = ps.Batcher(wait_for_all, max_rows=8, max_wait=LONG)

    def request(k, count):
        def solve(r):
            arrive = r.arrive
            r.arrive = lambda call: (arrive(call), arrived[k].set())
            assert k == 0 or began.wait(100)  # the many come first, whatever the threads do
            return r(torch.ones(count, 1), torch.full((count, 3), float(k)))

        return solve

    at_once(batcher, [request(0, 400), request(1, 2), request(2, 3)])
    together = [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    first = seen.index(together)  # the few have their rows in the first round that begins after they came
    assert all(set(rows) == {0.0} for rows in seen[:first])
    assert first <= 1
    assert max(map(len, seen)) == 8
    assert sum(len(rows) for rows in seen) == 405 + 8  # that round is evaluated alone, too


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 20))
def test_nobody_gets_more_rows_than_another_that_lacks_some(wanted, most):
    calls = [SimpleNamespace(lanes=n, taken=0, form=SimpleNamespace(block=1)) for n in wanted]
    calls = [Hashed(call) for call in calls]
    pieces = shares(calls, most)
    given = {id(piece.call): len(piece) for piece in pieces}
    assert sum(given.values()) == min(most, sum(wanted))
    got = [given.get(id(call), 0) for call in calls]
    for call, own in zip(calls, got, strict=True):
        if own < call.lanes:
            assert max(got) <= own + 1
    assert got[0] > 0


class Hashed:
    def __init__(self, of):
        vars(self).update(vars(of))


# ---- errors


def test_only_the_guilty_fail():
    def checked(t, y):
        if y.isnan().any():
            raise RuntimeError("not a number")
        return y * t

    batcher = ps.Batcher(Model(checked), max_rows=16, max_wait=LONG)
    calls = [rows(2, seed=k) for k in range(4)]
    calls[2][1][0, 0] = float("nan")
    found = at_once(batcher, [lambda r, c=c: r(*c) for c in calls])
    for k, ((t, y), out) in enumerate(zip(calls, found, strict=True)):
        if k == 2:
            assert isinstance(out, RuntimeError)
        else:
            assert torch.equal(out, y * t)
    assert not batcher.rounds.apart


def test_an_error_of_all_is_raised_in_all():
    def broken(t, y):
        raise KeyError(len(y))

    batcher = ps.Batcher(broken, max_rows=16, max_wait=LONG)
    found = at_once(batcher, [lambda r, k=k: r(*rows(k)) for k in (1, 2, 3)])
    assert [error.args for error in found] == [(1,), (2,), (3,)]


def test_what_fails_in_company_only_gets_none():
    def small(t, y):
        if len(y) > 2:
            raise RuntimeError("out of memory")
        return y * t

    model = Model(small)
    batcher = ps.Batcher(model, max_rows=16, max_wait=LONG)
    calls = [rows(2, seed=k) for k in range(3)]
    found = at_once(batcher, [lambda r, c=c: [r(*c) for _ in range(3)] for c in calls])
    for (t, y), outs in zip(calls, found, strict=True):
        assert all(torch.equal(out, y * t) for out in outs)
    assert model.rows.count(6) == 1


def test_an_interrupt_of_the_thread_that_leads_harms_nobody_else():
    """Ctrl-C reaches one thread, in the middle of a round of all."""
    interrupted = threading.Event()

    def model(t, y):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        return y * t

    batcher = ps.Batcher(model, max_rows=16, max_wait=LONG)
    calls = [rows(2, seed=k) for k in range(3)]
    found = at_once(batcher, [lambda r, c=c: r(*c) for c in calls])
    assert sum(isinstance(out, KeyboardInterrupt) for out in found) == 1
    for (t, y), out in zip(calls, found, strict=True):
        assert isinstance(out, KeyboardInterrupt) or torch.equal(out, y * t)
    assert batcher.company == 1


# ---- cancellation, and threads that are gone


def test_a_request_that_waits_can_be_cancelled():
    batcher = ps.Batcher(Model(), max_rows=16, max_wait=LONG)
    with batcher.request() as silent, batcher.request() as waits:
        started = threading.Event()

        def wait():
            started.set()
            with torch.no_grad():
                waits(*rows(2))

        def cancel():
            started.wait(100)
            waits.cancel()

        found = in_threads([wait, cancel])
        assert isinstance(found[0], ps.Cancelled)
        with torch.no_grad(), pytest.raises(ps.Cancelled):
            waits(*rows(2))
        waits.__exit__()
        with torch.no_grad():  # nothing of the cancelled call is left: this one is alone
            assert silent(*rows(3)).shape == (3, 3)
    assert batcher.rounds.rows == 3


def test_a_request_in_a_round_can_be_cancelled():
    entered, cancelled = threading.Event(), threading.Event()

    def model(t, y):
        entered.set()
        assert cancelled.wait(100)
        return y * t

    batcher = ps.Batcher(model, max_rows=4, max_wait=LONG)
    calls = [rows(2, seed=k) for k in range(2)]
    victims = []

    def call(k):
        def solve(r):
            victims.append(r)
            return r(*calls[k])

        return solve

    def cancel(r):
        entered.wait(100)
        follower = next(v for v in victims if v.pending is not None and batcher._leads is not v.pending)
        follower.cancel()
        cancelled.set()

    found = at_once(batcher, [call(0), call(1), cancel])
    assert sum(isinstance(out, ps.Cancelled) for out in found) == 1
    assert sum(isinstance(out, torch.Tensor) for out in found) == 1


@pytest.mark.parametrize("late", ["gone", "never calls"])
def test_a_request_that_does_not_call_is_waited_for_once(late):
    model = Model()
    batcher = ps.Batcher(model, max_rows=16, max_wait=0.05)
    other = batcher.request().__enter__()
    if late == "gone":  # its thread ends, and never leaves the context
        in_threads([lambda: other])
    with batcher.request() as request, torch.no_grad():
        assert batcher.company == 2
        for _ in range(3):
            request(*rows(2))
        assert other.late
        assert batcher.company == 1
    assert model.rows == [2, 2, 2]


def test_a_request_after_its_context_is_the_batchers():
    batcher = ps.Batcher(Model(), max_rows=4)
    with batcher.request() as request:
        pass
    t, y = rows(2)
    with torch.no_grad():
        assert torch.equal(request(t, y), torch.sin(t) * y)


def test_a_call_within_a_request_of_the_same_thread_ends():
    batcher = ps.Batcher(Model(), max_rows=4, max_wait=0.01)
    with batcher.request() as request, torch.no_grad():
        assert batcher(*rows(2)).shape == request(*rows(2)).shape


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"model": 3}, TypeError),
        ({"max_rows": 0}, ValueError),
        ({"max_rows": 2.0}, TypeError),
        ({"max_wait": -1}, ValueError),
        ({"max_wait": float("inf")}, ValueError),
        ({"max_wait": "1"}, TypeError),
    ],
)
def test_wrong_arguments(given, error):
    (name,) = given
    given = {"model": Model(), "max_rows": 4, **given}
    with pytest.raises(error, match=name):
        ps.Batcher(given.pop("model"), **given)
