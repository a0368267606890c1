"""Checks of arguments for a pipeline or a model: unread arguments raise an error that suggests the likely one."""

import dis
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from types import CodeType
from typing import Any

from torch import nn

from picardsolve import solve

_MEANT = {name: "tolerance" for name in ("tol", "rtol", "atol", "error")} | {"width": "window", "batch": "max_batch"}
_MISSPELT = 0.85  # names at least this similar count as a misspelling
_CONDITIONING = {"args", "cond"}  # arguments of solve that models may have, too


def merged(name: str, given: Mapping[str, Any] | None, others: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a mapping together with the keyword arguments; TypeError if one is given twice."""
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise TypeError(f"{name}: expected a dict of arguments by name, got {given!r}.")
    twice = sorted(given.keys() & others.keys())
    if twice:
        raise TypeError(f"{twice[0]}: given twice, beside {name} and in it; pass it once.")
    return {**others, **given}


def refuse_unread_by_pipeline(pipe: Any, names: Iterable[str], ours: Collection[str]) -> None:
    """Raise a TypeError for arguments that a pipeline's call would accept and ignore.

    A call reads the arguments in its signature, the strings in its code (``kwargs.pop("callback")``), and the arguments
    in its docstring. A call that passes its arguments on to a base class also reads those of the base class.
    """
    known: set[str] = set()
    for call in _calls_of(type(pipe)):
        known |= _named(call) | _words(_code_of(call)) | _documented(call)
    for name in names:
        if name not in known and known:
            whose = type(pipe).__name__
            raise TypeError(
                f"{name}: neither an argument of sample nor one that {whose} reads; {_instead(name, ours, known)} "
                f"pipeline_kwargs={{{name!r}: ...}} if {whose} hands it on to something that reads it."
            )


def named_like_ours(pipe: Any, ours: Collection[str]) -> list[str]:
    """The arguments of a pipeline's call that share a name with one of ours."""
    named = set().union(*map(_named, _calls_of(type(pipe))))
    return [name for name in ours if name in named]


def refuse_unread_by_model(model: Any, names: Iterable[str], ours: Collection[str]) -> None:
    """Raise a TypeError for arguments that a model would accept and ignore.

    A model that passes on all its arguments accepts any name, except the names of arguments of `picardsolve.solve` and
    likely misspellings of our arguments.
    """
    call = _forward_of(model)
    known = _named(call)
    if not known and not _swallows(call):
        return  # the signature is unknown
    read = _reads_all(call)
    foreign = set(inspect.signature(solve).parameters) - _CONDITIONING | _MEANT.keys()
    for name in names:
        meant = name in foreign or get_close_matches(name, ours, 1, _MISSPELT)
        if name not in known and (meant or not read):
            raise TypeError(
                f"{name}: neither an argument of denoise nor one that the model reads; {_instead(name, ours, known)} "
                f"model_kwargs={{{name!r}: ...}} if the model hands it on to something that reads it."
            )


def _instead(name: str, ours: Collection[str], known: Collection[str]) -> str:
    near = _MEANT.get(name) or next(iter(get_close_matches(name, [*ours, *known], 1)), None)
    return "leave it out, or pass" if near is None else f"pass {near}=, or"


def _calls_of(kind: type) -> Iterator[Callable[..., Any]]:
    """The call of a class, and the base classes' calls that get its arguments."""
    for owner in kind.__mro__:
        call = vars(owner).get("__call__")
        if call is None:
            continue
        yield call
        code = _code_of(call)
        if not _swallows(call) or code is None or not {"super", "__call__"} & set(code.co_names):
            return


def _forward_of(model: Any) -> Callable[..., Any]:
    model = getattr(model, "_orig_mod", model)  # compiled by torch.compile
    return model.forward if isinstance(model, nn.Module) else model


def _parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return []


def _named(call: Callable[..., Any]) -> set[str]:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in _parameters(call) if p.kind not in variable}


def _swallows(call: Callable[..., Any]) -> str | None:
    """The name of a call's ``**kwargs`` parameter; None without one."""
    return next((p.name for p in _parameters(call) if p.kind is inspect.Parameter.VAR_KEYWORD), None)


def _code_of(call: Any) -> CodeType | None:
    call = inspect.unwrap(call.func if isinstance(call, partial) else call)
    if not inspect.isroutine(call):  # a callable object
        call = type(call).__call__ if callable(call) else None
    return getattr(getattr(call, "__func__", call), "__code__", None)


def _words(code: CodeType | None) -> set[str]:
    """The strings in the code of a function and its inner functions."""
    found: set[str] = set()
    for value in () if code is None else code.co_consts:
        if isinstance(value, CodeType):
            found |= _words(value)
        elif isinstance(value, tuple | frozenset):
            found |= {part for part in value if isinstance(part, str)}
        elif isinstance(value, str):
            found.add(value)
    return found


def _documented(call: Callable[..., Any]) -> set[str]:
    """The names at the start of a docstring's lines: ``name (`type`): ...`` or ``name : type``."""
    text = inspect.getdoc(call) or ""
    return set(re.findall(r"^\s*`*(\w+)`*\s*(?:\(.*\)\s*)?:", text, re.MULTILINE))


def _reads_all(call: Callable[..., Any]) -> bool:
    """Whether a call uses its ``**kwargs``; True where that is unknown."""
    collected, code = _swallows(call), _code_of(call)
    if collected is None:
        return False
    return code is None or any(_loads(code, collected))


def _loads(code: CodeType, name: str) -> Iterator[bool]:
    for instruction in dis.get_instructions(code):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        yield "LOAD" in instruction.opname and name in names
