"""What a plan starts from: the one before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from picardsolve.fixed_point.guesses import Entering, FrozenSample, Guess
from picardsolve.integrators.base import Evaluated


@dataclass(frozen=True)
class Towards(Guess):
    """All states lie on the way from the first one to a plan that is expected, with the noise that is known.

    Attributes:
        plan: ``(B, D)``.
        expected: ``(B,)`` booleans: whose plan is; the others' states start from what is known before any plan. None:
            all.
    """

    plan: Tensor
    expected: Tensor | None = None

    def first(self, entering: Entering) -> Tensor | None:
        """The way to the plan."""
        way, without = self._way(entering, self.plan), FrozenSample().first(entering)
        if self.expected is None or without is None:
            return way
        return torch.where(self.expected[:, None], way, without)

    def ahead(self, entering: Entering) -> Tensor:
        """The way to the last predicted sample."""
        assert entering.source is not None
        return self._way(entering, entering.source.output)

    @staticmethod
    def _way(entering: Entering, plan: Tensor) -> Tensor:
        source = Evaluated(entering.n[:1], entering.start, plan)
        return entering.chain.extend(entering.n, "sample", entering.start, source, entering.noise)
