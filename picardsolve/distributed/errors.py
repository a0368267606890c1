"""What is raised where a rank cannot go on."""


class RankError(Exception):
    """A rank died, raised an error, did not answer in time, or runs with other arguments, code or weights."""
