"""Which calls have been made before: the first of a kind in a process takes longer than all others, and tells nothing.

Libraries choose algorithms, compile, start threads and reserve memory when they first see a network, and again when
they first see a shape.
"""

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

_CALLED: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()


def called_before(called: Any, form: Hashable) -> bool:
    """Whether something was called in this form before in this process; from now on it was.

    Args:
        called: a module or function; False of what cannot be remembered.
        form: what tells its calls apart: shapes, types, devices.
    """
    try:
        forms = _CALLED.setdefault(called, set())
    except TypeError:
        return False
    before = form in forms
    forms.add(form)
    return before
