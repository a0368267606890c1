"""The queue of one model's calls, and the rounds that they share.

No thread belongs to the batcher. Of the threads whose calls wait, that of the oldest one leads: it waits for company,
evaluates a round in which its own call has a part, in its own modes of torch (which those of all others in the round
equal), hands out what came of it, and passes the lead on. So there is nothing to start or to shut down, and a thread
that is gone has left nothing behind: its call is withdrawn on its way out.
"""

import math
from collections.abc import Callable
from threading import Condition, Lock
from time import monotonic
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from picardsolve.problem.checks import check_callable, check_not_negative, check_positive_integer
from picardsolve.serving.calls import Call, Form, described
from picardsolve.serving.load import Load
from picardsolve.serving.modes import merges, modes
from picardsolve.serving.request import Request
from picardsolve.serving.rounds import Outcome, Rounds, shares
from picardsolve.serving.shared import SharedTensors


class Batcher:
    """One model for many solves at once: calls from many threads are merged into shared rounds.

        batcher = ps.Batcher(network, max_rows=64)
        sol = ps.solve(ps.Denoiser(batcher, schedule), x, ts, integrator=ps.DDIM(), window="auto")    # in any thread
        out = parallel.sample(pipe, batcher=batcher, window="auto")                  # pipelines that share a denoiser

    With ``window="auto"`` a solve's windows follow the load: they fill the rows that are idle, and shrink towards one
    step where many requests wait; the answer is within the solve's tolerance, whatever the company. With a window of
    fixed width the answer does not depend on the company at all, but for the last bits of a model whose rows do.

    Calls are merged where their structure, shapes, types, devices, modes of torch (inference, autocast, stream) and the
    values of what has no row for each state agree. What requires gradients, and calls within `torch.func`, are made
    alone. The first round of each kind is evaluated alone, too: a model whose rows see each other is given no company.
    Where a round raises an error each call of it is evaluated alone, so that only those that fail there do.

    Args:
        model: a drift, a network, or any function whose rows are independent.
        max_rows: most rows of one call.
        max_wait: seconds that a call waits, at most, for those of other requests that are expected. None: as long as
            their company saves, and their own work until then takes, by what has been measured.

    Attributes:
        model: as given.
        max_rows: as given.
        max_wait: as given.
        rounds: the rounds so far.
        load: what they have shown.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value.
    """

    def __init__(self, model: Callable[..., Any], *, max_rows: int, max_wait: float | None = None):
        check_callable("model", model)
        check_positive_integer("max_rows", max_rows)
        if max_wait is not None:
            check_not_negative("max_wait", max_wait)
        if max_wait is not None and math.isinf(max_wait):
            raise ValueError("max_wait: expected a finite number of seconds, for a request may never call again.")
        self.model, self.max_rows, self.max_wait = model, max_rows, max_wait
        self.__wrapped__ = model  # what reads a function's signature, or what it depends on, looks there
        self.load = Load(max_rows)
        self.rounds = Rounds(self.load)
        self._shared = SharedTensors()
        self._lock = Lock()
        self._arrived = Condition(self._lock)  # the leader waits here
        self._queue: list[Call] = []  # the oldest is first, and leads
        self._leads: Call | None = None
        self._requests: list[Request] = []

    def request(self) -> Request:
        """A place for one solve, to be entered as a context and called like the model."""
        return Request(self)

    def for_one_solve(self) -> Request:
        """A request, which a solve enters and leaves."""
        return self.request()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model once, in company where there is any."""
        with self.request() as request:
            return request(*args, **kwargs)

    @property
    def company(self) -> int:
        """How many requests make calls at present, at least 1."""
        return max(sum(request.is_under_way(self._patience()) for request in self._requests), 1)

    # ---- for requests

    def admit(self, request: Request) -> None:
        """A request begins."""
        with self._lock:
            self._requests = [*self._requests, request]  # a new list: others read the old one without the lock

    def dismiss(self, request: Request) -> None:
        """A request is over."""
        with self._lock:
            self._requests = [other for other in self._requests if other is not request]
            self._arrived.notify()

    def stir(self, request: Request) -> None:
        """A request was cancelled: wake it."""
        with self._lock:
            if request.pending is not None:
                request.pending.wake.set()
            self._arrived.notify()

    def answer(self, request: Request, function: Callable[..., Any], args: Any, kwargs: Any, lanes: int | None) -> Any:
        """The value of a request's call; see `Request.call`."""
        request.check()
        if request not in self._requests:
            with self.request() as other:
                return other.call(function, args, kwargs, lanes)
        call = self._described(function, args, kwargs, lanes)
        if call is None:
            return function(*args, **kwargs)
        with self._lock:
            request.arrive(call)
            self._queue.append(call)
            self._leads = self._leads or call
            self._arrived.notify()
        try:
            while not call.done:
                request.check()
                if self._leads is call:
                    self._lead(request, call)
                else:
                    call.wake.wait()
                    call.wake.clear()
        finally:
            self._withdraw(request, call)
        request.check()
        return call.result()

    # ---- the queue

    def _described(self, function: Callable[..., Any], args: Any, kwargs: Any, lanes: int | None) -> Call | None:
        """A call, with what must agree with others; None for one that is made alone."""
        parts, structure = pytree.tree_flatten((args, kwargs))
        tensors = [part for part in parts if isinstance(part, Tensor)]
        rows = next((len(tensor) for tensor in tensors if tensor.dim()), 0)
        lanes = rows if lanes is None else lanes
        if lanes == 0 or rows % lanes or not merges(tensors):
            return None
        leaves = tuple([described(part, rows) for part in parts])
        form = Form(function, structure, leaves, rows // lanes)
        kinds = [leaf[0] if isinstance(part, Tensor) else None for part, leaf in zip(parts, leaves, strict=True)]
        shared = [self._shared.number(part) for part, kind in zip(parts, kinds, strict=True) if kind == "shared"]
        return Call(function, args, kwargs, form, (*shared, *modes(tensors)), parts, lanes)

    def _withdraw(self, request: Request, call: Call) -> None:
        """A call is over, for whatever reason; pass on the lead if it had it."""
        with self._lock:
            request.leave()
            self._queue = [other for other in self._queue if other is not call]
            if self._leads is call:
                self._leads = self._queue[0] if self._queue else None
                if self._leads is not None:
                    self._leads.wake.set()

    # ---- what the thread of the oldest call does for all

    def _lead(self, request: Request, call: Call) -> None:
        """Evaluate a round, once there is company or nobody to be waited for."""
        with self._lock:
            began = monotonic()
            while not self._is_complete() and not request.cancelled:
                left = began + self._patience() - monotonic()
                if left <= 0:
                    for other in self._requests:
                        other.late = other.late or other.is_expected(self._patience())
                    break
                self._arrived.wait(left)
            joining = [other for other in self._queue if not other.done and other.joins(call)]
            pieces = shares([call, *(other for other in joining if other is not call)], self.max_rows)
        request.check()
        outcomes = self.rounds.evaluated(pieces)  # without the lock: calls arrive meanwhile
        with self._lock:
            for piece, outcome in zip(pieces, outcomes, strict=True):
                self._deliver(piece.call, outcome)

    def _is_complete(self) -> bool:
        """Whether there are as many rows as a round takes, or nobody is expected."""
        patience = self._patience()
        full = self._waiting() >= self.max_rows
        return full or not any(request.is_expected(patience) for request in self._requests)

    def _waiting(self) -> int:
        """Rows that wait for a round."""
        return sum((call.lanes - call.taken) * call.form.block for call in self._queue)

    def _patience(self) -> float:
        """Seconds that a call waits, at most."""
        if self.max_wait is not None:
            return self.max_wait
        others = [request.latest for request in self._requests if request.pending is None and not request.late]
        return self.load.patience(self._waiting(), others)

    @staticmethod
    def _deliver(call: Call, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            call.error = outcome
        else:
            call.outputs.append(outcome)
            call.taken += outcome.lanes
        if call.done:
            call.wake.set()
