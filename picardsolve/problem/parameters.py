"""The tensors that a function depends on: those in the graph of a call, and those that its code can reach."""

import dis
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MOST = 100_000  # largest number of objects to visit
# Modules without the user's parameters. Assertions that pytest has rewritten would lead into its whole session.
_OTHERS = {"torch", "numpy", "scipy", "_pytest", "pytest", "pluggy", "hypothesis", *sys.stdlib_module_names} - {
    "__main__"
}
_PLAIN = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Generator)


def recordable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy that autograd may save if the tensor was made in inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def detached(value: Any) -> Any:
    """A tensor without its graph; any other value unchanged."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def leaves(output: Tensor) -> tuple[Tensor, ...]:
    """The leaves of an output's graph, such as parameters in the function's closure."""
    found, seen, ahead = [], set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # only a node that accumulates gradients has a variable
        if leaf is not None and not leaf.is_inference():  # torch gives no gradient to inference tensors
            found.append(leaf)
        ahead += [following for following, _ in node.next_functions]
    return tuple(found)


def within_reach(*roots: Any) -> tuple[Tensor, ...]:
    """Leaves that require gradients and that functions can reach, even if a call does not use them."""
    found: dict[int, Tensor] = {}
    for tensor in reachable(*roots):
        if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_inference():
            found.update((id(leaf), leaf) for leaf in ((tensor,) if tensor.is_leaf else leaves(tensor)))
    return tuple(found.values())


def reachable(*roots: Any) -> Iterator[Tensor | np.ndarray]:
    """Tensors and arrays that functions can reach."""
    return (item for item in visited(*roots) if isinstance(item, Tensor | np.ndarray))


def visited(*roots: Any) -> Iterator[Any]:
    """Everything that functions can reach, but for plain values.

    The search covers modules, closures, defaults, bound objects, partial functions, containers, attributes, and the
    globals that a function's code names.
    """
    seen: dict[int, Any] = {}  # keeps the objects alive, because Python reuses ids
    ahead = list(roots)
    while ahead and len(seen) < _MOST:
        item = ahead.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen[id(item)] = item
        yield item
        if not isinstance(item, Tensor | np.ndarray):
            ahead += _inside(item)


def _inside(item: Any) -> Iterable[Any]:
    """The objects that an object refers to."""
    if isinstance(item, MethodType):
        return item.__self__, *_read(item.__func__, type(item.__self__))
    if isinstance(item, FunctionType):
        return _read(item, None)
    if isinstance(item, functools.partial):
        return item.func, *item.args, *item.keywords.values()
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset | deque):
        return list(item)
    if isinstance(item, ModuleType):
        return ()
    if "__wrapped__" in getattr(item, "__dict__", {}):  # an object that stands for a function, such as a Batcher
        return (item.__wrapped__,)
    parameters = item.parameters() if isinstance(item, torch.nn.Module) else ()
    slots = (getattr(item, name, None) for kind in type(item).__mro__ for name in _slots(kind))
    called = (getattr(type(item), name, None) for name in ("forward", "__call__"))
    code = (item_ for method in called if isinstance(method, FunctionType) for item_ in _read(method, type(item)))
    return *parameters, *getattr(item, "__dict__", {}).values(), *slots, *_of_class(type(item)), *code


def _slots(kind: type) -> Sequence[str]:
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _of_class(kind: type) -> Iterator[Any]:
    """The tensors, modules and containers among a class's attributes."""
    for base in kind.__mro__:
        if not _is_others(base):
            yield from (
                value
                for value in vars(base).values()
                if isinstance(value, Tensor | np.ndarray | torch.nn.Module | list | dict)
            )


def _read(function: FunctionType, owner: type | None) -> Iterator[Any]:
    """The objects that a function's code can read: closure, defaults, named globals, and methods of its owner."""
    if _is_others(function):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty cell
            continue
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values())
    names, attributes = _names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _OTHERS:
            yield from (vars(value)[attribute] for attribute in attributes if attribute in vars(value))
        else:
            yield value
    methods = (getattr(owner, attribute, None) for attribute in attributes) if owner else ()
    yield from (method for method in methods if isinstance(method, FunctionType | MethodType))


@functools.lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[list[str], list[str]]:
    """Names of the globals and attributes that a code object and its inner functions read."""
    names, attributes, ahead = [], [], [code]
    while ahead:
        at = ahead.pop()
        for instruction in dis.get_instructions(at):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.append(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.append(instruction.argval)
        ahead += [constant for constant in at.co_consts if isinstance(constant, CodeType)]
    return names, attributes


def _is_others(thing: Any) -> bool:
    """Whether a class or function belongs to another library."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in _OTHERS
