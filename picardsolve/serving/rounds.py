"""One round: how its rows are shared out, and its evaluation, in company and alone."""

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import TypeAlias

from picardsolve.serving.calls import Call, Form, Outputs, Piece, distance, evaluated
from picardsolve.serving.load import Load
from picardsolve.serving.modes import finish

Outcome: TypeAlias = Outputs | Exception
_KEPT = 64  # forms of calls that are remembered


def shares(calls: Sequence[Call], max_rows: int) -> list[Piece]:
    """The lanes of calls that have a part in a round of at most so many rows.

    None gets more than another that still lacks some: calls with few rows never wait for the many of others. Where
    there are more calls than rows, the oldest ones get one each.

    Args:
        calls: they join; the oldest is first.
        max_rows: most rows of the round.
    """
    block = calls[0].form.block
    left, given = max(max_rows // block, 1), {}
    waiting = sorted(calls[:left], key=_missing)
    for k, call in enumerate(waiting):
        given[call] = min(_missing(call), left // (len(waiting) - k))
        left -= given[call]
    return [Piece(call, call.taken, call.taken + given[call]) for call in calls if call in given]


def _missing(call: Call) -> int:
    return call.lanes - call.taken


class Rounds:
    """Evaluates rounds.

    Attributes:
        count: calls of the model.
        rows: their rows.
        widest: most rows of a call.
        merged: calls in which more than one request had a part.
        apart: forms of calls that are given no company: the model's rows see each other, or it fails there only.
    """

    def __init__(self, load: Load):
        self.count = self.rows = self.widest = self.merged = 0
        self.apart: deque[Form] = deque(maxlen=_KEPT)
        self._proven: deque[Form] = deque(maxlen=_KEPT)  # forms whose outputs were the same in company and alone
        self._load = load

    def evaluated(self, pieces: Sequence[Piece]) -> list[Outcome]:
        """The outputs of each piece, or what it raises alone."""
        form = pieces[0].call.form
        if len(pieces) == 1 or form in self.apart:
            return [self._alone(piece) for piece in pieces]
        try:
            together = self._timed(pieces)
        except Exception:
            together = []
        if together and form in self._proven:
            return [*together]
        alone = [self._alone(piece) for piece in pieces]
        fine = [each for each in alone if not isinstance(each, Exception)]
        if len(fine) == len(alone):  # else it says nothing about company
            same = together and all(
                distance(one.leaves, other.leaves) <= 1 for one, other in zip(together, fine, strict=True)
            )
            (self._proven if same else self.apart).append(form)
        return alone

    def _alone(self, piece: Piece) -> Outcome:
        try:
            return self._timed([piece])[0]
        except Exception as error:
            return error

    def _timed(self, pieces: Sequence[Piece]) -> list[Outputs]:
        rows, began = sum(piece.rows for piece in pieces), perf_counter()
        outputs = evaluated(pieces)
        finish(pieces[0].call.parts)  # while a GPU works other calls gather; its time is the model's
        self._load.called(rows, perf_counter() - began)
        self.count, self.rows, self.widest = self.count + 1, self.rows + rows, max(self.widest, rows)
        self.merged += len(pieces) > 1
        return outputs
