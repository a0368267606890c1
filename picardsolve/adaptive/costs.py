"""What a solve by steps and a solve by collocation are expected to cost, in seconds."""

from dataclasses import dataclass

# Measured on one core, on thirteen equations, batches of 1, 16 and 128 samples, tolerances 1e-3, 1e-5 and 1e-8
_CALL = 2.5e-4  # of a stage of a step, beside the drift
_ROUND = 1.3e-3  # of a round of collocation, beside the drift: by itself,
_ROW = 8e-7  # a row,
_NUMBER = 9e-8  # and a number of a row
_NODES = 24
_MORE = 1.8  # segments in flight in a usual round
_SMALL = 10  # numbers of a state up to which Jacobians are taken at all nodes;
_CHECKED = 64  # up to which they are taken to check segments,
_PART = 12  # at one of so many nodes
_LEAST_ROUNDS = 2.0
_PIECES = 3.0  # first segments to a step of a method at a tolerance of 1
_ROUNDS = 3.8  # times the root of the steps that a method of order 8 takes at a tolerance of 1


@dataclass(frozen=True)
class Costs:
    """Of one problem.

    Attributes:
        samples: how many march together.
        numbers: of the state of one.
        tolerance: relative.
    """

    samples: int
    numbers: int
    tolerance: float

    @property
    def stage_itself(self) -> float:
        """Of a stage of a step, beside the drift."""
        return _CALL

    @property
    def round_itself(self) -> float:
        """Of a usual round of collocation, beside the drift."""
        rows = self.samples * _NODES * _MORE * (1 + self._of_jacobians)
        return _ROUND + rows * (_ROW + self.numbers * _NUMBER)

    @property
    def _of_jacobians(self) -> float:
        """Rows of Jacobians for a row."""
        if self.numbers <= _SMALL:
            return self.numbers
        return self.numbers / _PART if self.numbers <= _CHECKED else 0.0

    def rounds(self, steps: float, order: int) -> float:
        """How many rounds collocation is expected to take where so many steps of an order are due."""
        at_one = steps * self.tolerance ** (1 / order)
        return _LEAST_ROUNDS + _ROUNDS * at_one**0.5

    def steps(self, pieces: float, order: int) -> float:
        """How many steps of an order are expected over a span of so many first segments."""
        return pieces / _PIECES * self.tolerance ** (-1 / order)
