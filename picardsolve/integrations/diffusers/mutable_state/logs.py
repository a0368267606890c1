"""Whether what changes in a call is a log: numbers that the code in reach writes and never reads."""

import ast
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from picardsolve.integrations.diffusers.mutable_state.containers import Cells
from picardsolve.integrations.diffusers.mutable_state.snapshot import Holder, Snapshot, trusted

_WRITES = {"append", "appendleft", "extend", "add", "update", "insert"}
_LOOKING = {"getattr", "vars", "__dict__", "__getattribute__", "eval", "exec", "globals", "locals", "attrgetter"}
_ACCESS = {"__getattr__", "__getattribute__", "__setattr__"}
_LOGGED = (bool, int, float, str, type(None))


def logs(then: Snapshot, now: Snapshot, changes: list[Holder]) -> frozenset[Holder] | None:
    """The places that all the changes are in, if they are logs; None if one of them may be read."""
    found: set[Holder] = set()
    for change in changes:
        places = _named(now if change[0] in now.holders or change[0] in now.places else then, change)
        if places is None or not all(_is_log(now, *place) for place in places):
            return None
        found.update(place[:2] for place in places)
    return frozenset(found)


def _named(memory: Snapshot, holder: Holder) -> list[tuple[Any, Any, str]] | None:
    """By which variables and attributes code can get there: the place, its key, and the name."""
    found, todo, seen = [], [holder], set()
    while todo:
        ident, key = todo.pop()
        if (ident, key) in seen:
            continue
        seen.add((ident, key))
        kind = memory.places[ident][0] if ident in memory.places else None
        above = memory.holders.get(ident, [])
        if ident is None or (kind is None and not above):
            return None
        if kind is Cells:
            found += [(ident, key, name) for name in {str(name) for _, name in above}]
        elif kind is not None and kind.named and isinstance(key, str) and key:
            found.append((ident, key, key))
        else:
            todo += above
    return found or None


def _is_log(now: Snapshot, ident: Any, key: Any, name: str) -> bool:
    held = now.places[ident][2] if ident in now.places else {}
    if not _numbers(held.get(key)):
        return False
    run = _run(now, ident)
    if any(_looks_up(function.__code__) for function in run if not trusted(function.__module__)):
        return False
    mentioned = [function for function in run if _mentions(function.__code__, name)]
    own = [function for function in mentioned if not trusted(function.__module__)]
    return bool(own) and all(_only_writes(function, name) for function in mentioned)


def _run(now: Snapshot, ident: Any) -> list[types.FunctionType]:
    """The functions that a call may run: of a class those that another one names, or that run without being named."""
    members = now.members()
    silent = _quiet_class(now, ident)
    run = [function for function in now.functions.values() if id(function) not in members]
    waiting = [function for function in now.functions.values() if id(function) in members]
    size = -1
    while size != len(run):
        size = len(run)
        for function in list(waiting):
            cls, name = members[id(function)]
            unnamed = name == "forward" or (name.startswith("__") and (cls is not silent or name in _ACCESS))
            if unnamed or any(_mentions(other.__code__, name) for other in run):
                run.append(function)
                waiting.remove(function)
    return run


def _quiet_class(now: Snapshot, ident: Any) -> type | None:
    """The class of an object of which code only ever uses the attributes, so that ``obj()`` and the like do not run."""
    cls = now.owners.get(ident)
    if cls is None:
        return None
    holders = _named(now, now.holders[ident][0])
    if not holders or len(now.holders[ident]) > 1 or list(now.owners.values()).count(cls) > 1:
        return None
    for _, _, name in holders:
        for function in now.functions.values():
            if _mentions(function.__code__, name) and not _uses(function, name, _is_attribute):
                return None
    return cls


def _looks_up(code: types.CodeType) -> bool:
    """Whether code may find things by names that it does not spell."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return not _LOOKING.isdisjoint(code.co_names) or any(_looks_up(const) for const in inner)


def _numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_numbers(key) and _numbers(part) for key, part in value.items())
    if isinstance(value, list | tuple | set):
        return all(_numbers(part) for part in value)
    return type(value) in _LOGGED


def _mentions(code: types.CodeType, name: str) -> bool:
    if name in (*code.co_names, *code.co_freevars, *code.co_cellvars, *code.co_consts):
        return True
    return any(isinstance(const, types.CodeType) and _mentions(const, name) for const in code.co_consts)


def _only_writes(function: types.FunctionType, name: str) -> bool:
    return _uses(function, name, _writes)


def _uses(function: types.FunctionType, name: str, allowed: Callable[[ast.AST, dict], bool]) -> bool:
    """Whether a function uses a name in allowed ways only."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return False
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    spelled = any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(tree))
    uses = [node for node in ast.walk(tree) if name in (getattr(node, "id", None), getattr(node, "attr", None))]
    return not spelled and bool(uses) and all(allowed(node, above) for node in uses)


def _is_attribute(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
    """Whether an object is only asked for an attribute here."""
    return isinstance(above.get(node), ast.Attribute)


def _writes(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
    """Whether a variable or an attribute is only written to here."""
    parent = above.get(node)
    if isinstance(parent, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return isinstance(getattr(node, "ctx", None), ast.Store)
    if isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store) and parent.value is node:
        statement = above.get(parent)
        return isinstance(statement, ast.Assign | ast.AugAssign)
    if isinstance(parent, ast.Attribute) and parent.attr in _WRITES:
        call = above.get(parent)
        return isinstance(call, ast.Call) and call.func is parent and isinstance(above.get(call), ast.Expr | ast.Lambda)
    return False
