"""A solve whose term has a batcher among its functions is one request of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from functools import partial, wraps
from typing import Any, TypeVar

from picardsolve.fixed_point.automatic_width import ChoosesWidth, Pace

Solver = TypeVar("Solver", bound=Callable[..., Any])


def as_one_request(solver: Solver) -> Solver:
    """The same solver, in whose term a request stands for each batcher while it runs."""

    @wraps(solver)
    def solved(term: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            requests = {name: stack.enter_context(shared.for_one_solve()) for name, shared in _shared(term)}
            return solver(replace(term, **requests) if requests else term, *args, **kwargs)

    return solved  # type: ignore[return-value]


def pace_of(term: Any, rows: int, steps: int) -> Callable[[int], ChoosesWidth]:
    """What makes the choice of a window's width from the largest one: by the load of a model that others share, too.

    Args:
        term: what is solved.
        rows: of one step.
        steps: of the whole solve.
    """
    for _, request in _shared(term):
        return partial(request.pace, steps=steps, rows=rows)
    return Pace


def refuse_several_devices(term: Any) -> None:
    """Refuse a term that has a batcher among its functions: it gathers rows in this process, for one device.

    Raises:
        ValueError: it has.
    """
    for name, _ in _shared(term):
        raise ValueError(f"{name}: a Batcher gathers rows in one process; leave mesh and devices out.")


def _shared(term: Any) -> Iterator[tuple[str, Any]]:
    """The functions of a term that others share, by name."""
    for each in fields(term) if is_dataclass(term) and not isinstance(term, type) else ():
        function = getattr(term, each.name)
        if hasattr(function, "for_one_solve"):
            yield each.name, function
