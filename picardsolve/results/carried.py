"""Values that are pickled with a solution where they can be: the user's functions, and what they hold."""

import io
import pickle
from dataclasses import dataclass
from typing import Any


class _Full(Exception):
    """The bytes do not fit."""


class _Room(io.BytesIO):
    """A buffer of limited size, so that weights that are too large are not copied before they are refused."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > self.most:
            raise _Full
        return super().write(data)


@dataclass(frozen=True)
class Carried:
    """A value that a pickle may lose without losing the object that holds it.

    The value is pickled into bytes of its own, which are read when it is used. So a process that cannot import a
    function can still read the rest. A deep copy shares the value.

    Attributes:
        value: the value.
        room: the largest number of bytes that it may take in a pickle.
    """

    value: Any
    room: int

    def get(self, asked_by: str) -> Any:
        """The value.

        Args:
            asked_by: what needs the value, for the message where it was lost.
        """
        return self.value

    def __deepcopy__(self, memo: Any) -> "Carried":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        room = _Room(self.room)
        try:
            pickle.Pickler(room, pickle.HIGHEST_PROTOCOL).dump(self.value)
        except _Full:
            why = f"what they hold is more than {self.room / 2**20:.3g} MB"
        except Exception as error:  # functions and objects of the user may raise any
            why = f"{type(error).__name__}: {error}"
        else:
            return Packed, (room.getvalue(), "")
        return Packed, (None, why)


@dataclass(frozen=True)
class Packed:
    """A `Carried` value that has been pickled.

    Attributes:
        stored: its bytes; None where it could not be pickled.
        why: why it could not be pickled.
    """

    stored: bytes | None
    why: str

    def get(self, asked_by: str) -> Any:
        """The value, unpickled.

        Raises:
            ValueError: it was not pickled, or cannot be read here.
        """
        if self.stored is None:
            raise ValueError(f"{asked_by}: {_LEFT} did not go along ({self.why}); {_INSTEAD}")
        try:
            return pickle.loads(self.stored)
        except Exception as error:  # a module that is not there, a device, another version
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{asked_by}: {_LEFT} cannot be read here ({said}); {_INSTEAD}") from error


_LEFT = "this solution was pickled, and the functions it was computed by"
_INSTEAD = "solve again, or compare its ys with those of picardsolve.sequential()."
