"""Checks of arguments. A message names the argument, what it was, and what to pass instead."""


def check_callable(name: str, value: object) -> None:
    """Refuse an object that cannot be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {type(value).__name__}.")


def check_positive_integer(name: str, value: object) -> None:
    """Refuse all but integers from 1."""
    _check_integer(name, value, 1)


def check_optional_positive_integer(name: str, value: object) -> None:
    """Refuse all but None and integers from 1."""
    if value is not None:
        check_positive_integer(name, value)


def check_type(name: str, value: object, kind: type, instead: str) -> None:
    """Refuse an object of another kind."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected {kind.__name__}, got {given}; pass {instead}.")


def check_flag(name: str, value: object) -> None:
    """Refuse all but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_width(width: object) -> None:
    """Refuse all but "auto" and integers from 1 as the window."""
    if width == "auto":
        return
    if type(width) is not int or width < 1:
        kind = TypeError if type(width) is not int and not isinstance(width, str) else ValueError
        raise kind(f'window: expected an integer >= 1 or "auto", got {width!r}.')


def check_not_negative(name: str, value: object) -> None:
    """Refuse all but numbers from 0; infinity is one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number >= 0, got {value!r}.")
    if not value >= 0:
        raise ValueError(f"{name}: expected a number >= 0, got {value!r}.")


def check_count(name: str, value: object) -> None:
    """Refuse all but integers from 0."""
    _check_integer(name, value, 0)


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer >= {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}.")
