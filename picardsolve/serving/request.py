"""One solve's place at a model that many solves share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from picardsolve.serving.calls import Call
from picardsolve.serving.load import LoadPace

if TYPE_CHECKING:
    from picardsolve.serving.batcher import Batcher


class Cancelled(BaseException):
    """A request was cancelled.

    Like `asyncio.CancelledError` it is no `Exception`, so that no handler on its way takes it for a failure of the
    model, and evaluates the call in another way.
    """


class Request:
    """One solve's place at a model that many solves share; made by `Batcher.request`, and called like the model.

        with batcher.request() as model:
            sol = ps.solve(ps.Denoiser(model, schedule), x, ts, integrator=ps.DDIM(), window="auto")

    A request makes one call at a time. After its context it is called like the batcher itself.

    Attributes:
        calls: calls so far.
        rows: rows of these calls.
        latest: rows of the latest call, and the processor seconds that the solve spent between it and the one before.
        steps: steps of the solve that are done, as far as the solve says so.
        late: whether others have waited for its next call in vain; nobody waits for it until it calls again.
    """

    def __init__(self, batcher: "Batcher"):
        self.calls = self.rows = self.steps = 0
        self.latest: tuple[int, float] = (0, 0.0)
        self.late = False
        self.pending: Call | None = None
        self.__wrapped__ = batcher.model  # what reads a function's signature, or what it depends on, looks there
        self._batcher = batcher
        self._cancelled = False
        self._returned: float | None = None  # when it got its latest outputs
        self._absent = 0.0  # seconds between its latest outputs and the call after them
        self._own: tuple[int, float] = (0, 0.0)  # the thread that got them, and its processor time then
        self._spent, self._width = 0.0, 1  # processor time since its latest round, and the width of that round

    def __enter__(self) -> "Request":
        self._batcher.admit(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher.dismiss(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, in company where there is any."""
        return self.call(self._batcher.model, args, kwargs)

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any, lanes: int | None = None) -> Any:
        """Call a function of the model's, in company where there is any.

        Args:
            function: what is called.
            args: its arguments by position.
            kwargs: its arguments by name.
            lanes: how many groups of rows the call has, of which each stays together: row r of lane j is row
                ``r * lanes + j``. None: every row is one.

        Raises:
            Cancelled: the request was cancelled.
            Exception: what the function raises for these arguments.
        """
        return self._batcher.answer(self, function, args, kwargs, lanes)

    def cancel(self) -> None:
        """Let the call that waits, or the next one, raise `Cancelled`; from any thread."""
        self._cancelled = True
        self._batcher.stir(self)

    def check(self) -> None:
        """Raise `Cancelled` if the request was cancelled."""
        if self._cancelled:
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """Whether the request was cancelled."""
        return self._cancelled

    # ---- how wide the solve's windows are

    def for_one_solve(self) -> AbstractContextManager["Request"]:
        """The request itself, which its user enters and leaves."""
        return nullcontext(self)

    def pace(self, most: int, steps: int, rows: int = 1) -> LoadPace:
        """What chooses the width of the solve's windows by the load of the model.

        Args:
            most: the largest width.
            steps: of the whole solve.
            rows: of one step.
        """
        return LoadPace(self._batcher.load, most, steps, lambda: self._batcher.company, self._told, rows)

    def _told(self, width: int, usual: bool) -> None:
        if self._spent and usual:
            self._batcher.load.between.note(self._width, self._spent)
        self._spent, self._width = 0.0, width

    # ---- for the batcher, which holds its lock meanwhile

    def arrive(self, call: Call) -> None:
        """The solve has made a call."""
        own = 0.0
        if self._returned is not None:
            self._absent = monotonic() - self._returned
            own = thread_time() - self._own[1] if self._own[0] == get_ident() else self._absent
        self.pending, self.late = call, False
        self.calls += 1
        rows = call.lanes * call.form.block
        self.latest, self.rows, self._spent = (rows, own), self.rows + rows, self._spent + own

    def leave(self) -> None:
        """The call is over."""
        self.pending, self._returned, self._own = None, monotonic(), (get_ident(), thread_time())

    def is_expected(self, within: float) -> bool:
        """Whether its next call is likely to come within some seconds after its latest."""
        return self.pending is None and not self.late and self._absent <= within

    def is_under_way(self, patience: float) -> bool:
        """Whether it makes calls, or has been gone for hardly longer than the last time."""
        if self.pending is not None or self._returned is None:
            return not self.late
        return monotonic() - self._returned <= 2 * self._absent + patience
