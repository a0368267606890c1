"""The stopping rule that a solve was asked for."""

from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.stopping import Increment, MakesRule, Residuals, Stopping
from picardsolve.integrators.base import Chain
from picardsolve.problem.checks import check_type
from picardsolve.problem.tolerances import Stop, Tolerance


def stopping_of(
    stop: Stop | MakesRule, tolerance: Tolerance, chain: Chain, trusts_slopes: bool, patient: bool = False
) -> Stopping:
    """The rule of a name, or the user's own; for the last arguments see `ErrorEstimate`.

    Raises:
        TypeError: what the user gave makes no `Stopping`.
        ValueError: a rule that estimates no errors is asked to be patient.
    """
    if patient and stop != "error":
        raise ValueError(f"certify: only the rule 'error', the default, estimates errors; got stop={stop!r}.")
    if callable(stop):
        rule = stop(tolerance)
        check_type("stop", rule, Stopping, "a subclass of picardsolve.extend.Stopping, made from a tolerance")
        return rule
    if stop == "increment" or tolerance.nothing:
        return Increment(tolerance)
    if stop == "residual":
        return Residuals(tolerance)
    return ErrorEstimate(tolerance, chain.length, trusts_slopes, implicit=chain.implicit, patient=patient)
