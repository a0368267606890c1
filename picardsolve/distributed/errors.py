"""What is raised where a rank cannot go on."""

from typing import Any


class RankError(Exception):
    """A rank died, raised an error, did not answer in time, or runs with other arguments, code or weights.

    Attributes:
        report: of the run of a pipeline, with its last state; else None.
    """

    report: Any = None
