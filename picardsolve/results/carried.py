"""What goes along into a pickle where it can: functions of a user's, and what they hold."""

import io
import pickle
from dataclasses import dataclass
from typing import Any


class _Full(Exception):
    """There is no room for more."""


class _Room(io.BytesIO):
    """Takes so many bytes and no more, so that weights that are too heavy are not copied first."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > self.most:
            raise _Full
        return super().write(data)


@dataclass(frozen=True)
class Carried:
    """A value that may be lost on the way through a pickle, without what holds it being lost too.

    It is pickled by itself: into bytes that are read when the value is asked for, so that a process that cannot import
    a function can still read the rest. A deep copy shares the value.

    Attributes:
        value: what is carried.
        room: bytes that it may take in a pickle.
    """

    value: Any
    room: int

    def get(self, asked_by: str) -> Any:
        """The value.

        Args:
            asked_by: begins the message.
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
        except Exception as error:  # of whatever functions and objects the user has
            why = f"{type(error).__name__}: {error}"
        else:
            return Packed, (room.getvalue(), "")
        return Packed, (None, why)


@dataclass(frozen=True)
class Packed:
    """A `Carried` value that has been pickled.

    Attributes:
        stored: its bytes; None where it could not be.
        why: why not.
    """

    stored: bytes | None
    why: str

    def get(self, asked_by: str) -> Any:
        """The value, unpickled.

        Raises:
            ValueError: it is not there, or cannot be read here.
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
