"""Whether what a call changes is a log: numbers that the code in reach writes and never reads.

A log changes in every call and no output depends on it. To tell one from a state that matters, the source of all
functions that a call may run is searched for the log's name.
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from picardsolve.integrations.diffusers.mutable_state.reachable import Holder, Reachable, trusted

_WRITES = {"append", "appendleft", "extend", "add", "update", "insert"}
_LOOKUPS = {"getattr", "vars", "__dict__", "__getattribute__", "eval", "exec", "globals", "locals", "attrgetter"}
_ACCESS = {"__getattr__", "__getattribute__", "__setattr__"}
_LOGGED = (bool, int, float, str, type(None))

_Parents = dict[ast.AST, ast.AST]  # of the nodes of a tree


def logs_in(then: Reachable, now: Reachable, changes: list[Holder]) -> frozenset[Holder] | None:
    """The logs that all the changes are in; None if one of the changes may be read."""
    found: set[Holder] = set()
    for change in changes:
        variables = _variables(now if change[0] in now.holders or change[0] in now.places else then, change)
        if variables is None or not all(_is_log(now, *variable) for variable in variables):
            return None
        found.update(variable[:2] for variable in variables)
    return frozenset(found)


def _variables(reach: Reachable, holder: Holder) -> list[tuple[Any, Any, str]] | None:
    """The variables and attributes by which code gets to something: the place, the key in it, and the name."""
    found, todo, seen = [], [holder], set()
    while todo:
        ident, key = todo.pop()
        if (ident, key) in seen:
            continue
        seen.add((ident, key))
        place, above = reach.places.get(ident), reach.holders.get(ident, [])
        if ident is None or (place is None and not above):
            return None
        if place is not None and place.kind.named_by == "holder":
            found += [(ident, key, name) for name in {str(name) for _, name in above}]
        elif place is not None and place.kind.named_by == "key" and isinstance(key, str) and key:
            found.append((ident, key, key))
        else:
            todo += above
    return found or None


def _is_log(now: Reachable, ident: Any, key: Any, name: str) -> bool:
    held = now.places[ident].held if ident in now.places else {}
    if not _numbers(held.get(key)):
        return False
    run = _functions_run(now, ident)
    if any(_looks_up(function.__code__) for function in run if not trusted(function.__module__)):
        return False
    mentioned = [function for function in run if _mentions(function.__code__, name)]
    own = [function for function in mentioned if not trusted(function.__module__)]
    return bool(own) and all(_uses(function, name, _writes) for function in mentioned)


def _functions_run(now: Reachable, ident: Any) -> list[types.FunctionType]:
    """The functions that a call may run; of methods those that another function names, or that run without a name."""
    methods = now.methods()
    quiet = _quiet_class(now, ident)
    run = [function for function in now.functions.values() if id(function) not in methods]
    waiting = [function for function in now.functions.values() if id(function) in methods]
    size = -1
    while size != len(run):
        size = len(run)
        for function in list(waiting):
            cls, name = methods[id(function)]
            unnamed = name == "forward" or (name.startswith("__") and (cls is not quiet or name in _ACCESS))
            if unnamed or any(_mentions(other.__code__, name) for other in run):
                run.append(function)
                waiting.remove(function)
    return run


def _quiet_class(now: Reachable, ident: Any) -> type | None:
    """The class of an object whose attributes are used and nothing else: its ``__call__`` and the like do not run."""
    cls = now.owners.get(ident)
    if cls is None or len(now.holders[ident]) > 1 or list(now.owners.values()).count(cls) > 1:
        return None
    variables = _variables(now, now.holders[ident][0])
    for _, _, name in variables or ():
        for function in now.functions.values():
            if _mentions(function.__code__, name) and not _uses(function, name, _is_attribute):
                return None
    return cls if variables else None


def _numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_numbers(key) and _numbers(part) for key, part in value.items())
    if isinstance(value, list | tuple | set):
        return all(_numbers(part) for part in value)
    return type(value) in _LOGGED


def _looks_up(code: types.CodeType) -> bool:
    """Whether code may find things by names that it does not spell."""
    return not _LOOKUPS.isdisjoint(code.co_names) or any(_looks_up(inner) for inner in _codes_in(code))


def _mentions(code: types.CodeType, name: str) -> bool:
    names = (*code.co_names, *code.co_freevars, *code.co_cellvars, *code.co_consts)
    return name in names or any(_mentions(inner, name) for inner in _codes_in(code))


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]


def _uses(function: types.FunctionType, name: str, allowed: Callable[[ast.AST, _Parents], bool]) -> bool:
    """Whether a function uses a name, and in allowed ways only."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return False
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    spelled = any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(tree))
    uses = [node for node in ast.walk(tree) if name in (getattr(node, "id", None), getattr(node, "attr", None))]
    return not spelled and bool(uses) and all(allowed(node, parents) for node in uses)


def _is_attribute(node: ast.AST, parents: _Parents) -> bool:
    """Whether an object is only asked for an attribute here."""
    return isinstance(parents.get(node), ast.Attribute)


def _writes(node: ast.AST, parents: _Parents) -> bool:
    """Whether a variable or an attribute is only written to here."""
    parent = parents.get(node)
    if isinstance(parent, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return isinstance(getattr(node, "ctx", None), ast.Store)
    if isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store) and parent.value is node:
        return isinstance(parents.get(parent), ast.Assign | ast.AugAssign)
    call = parents.get(parent) if isinstance(parent, ast.Attribute) and parent.attr in _WRITES else None
    if isinstance(call, ast.Call) and call.func is parent:
        return isinstance(parents.get(call), ast.Expr | ast.Lambda)  # what it returns is not used
    return False
