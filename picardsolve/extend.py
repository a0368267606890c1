"""The vocabulary of subclasses and adapters, beneath the public names of `picardsolve`; see docs/extending.md.

* Chains. An `Integrator` makes a `DriftChain` from a `Problem` and checks the term with `accepted_term`. The chain
  evaluates `Rows` and turns outputs into step maps, `Steps`, often `AffineSteps`, with the numbers of each step in a
  `StepTable`. A `RungeKutta` method has a `Tableau`, which its `RungeKuttaChain` takes. `Chain` is a chain whose drift
  somebody else calls, `Evaluated` one evaluation held fixed, `Index` an array of step numbers.
* Iterations. An `Iteration` returns a `Swept` from a sweep and gets its `Memory` back. `linear_sweep`, `matrix_sweep`,
  `recurrence`, `matrix_recurrence`, `arriving` and `rms` are the algebra of sweeps, `without_autocast` its precision.
* Guesses. A `Guess` fills the states that are `Entering`, from a `Trail` of states behind them.
* Stopping rules. A `Stopping` judges a `Swept` by a `Tolerance`; `Increment`, `Residuals` and `ErrorEstimate` are the
  built-in ones.
* Collocation. `March` is its machine, of the samples of an `InitialValueProblem`, whose states are those of
  `NumpyArrays`; `CheckedSegment` is a segment that met the tolerance,
  `Stuck` a failure of a march, and `rounds_if_stiff` the rounds that it is predicted to take on a stiff problem.
* Adapters of schedulers. `linear_multistep` takes the steps of a window, and `linear_multistep_alone` one step, with
  `Visit` for a state and its output. `sample_map` gives the predicted sample as a linear map. `Hold` says what a guess
  holds fixed, and `Pace` finds a width by the clock.
* Reports. `Evidence` is what a `Certificate` is made from, `Carried` a value that a pickle may lose, `History` the
  rounds of a solve, which `plot_rounds` draws.
* Arguments. `check_callable`, `check_count`, `check_not_negative`, `check_optional_positive_integer`,
  `check_positive_integer` and `check_type` raise errors that name the argument.
* Machines. `drive` runs a `Machine`. A `Method` makes a `GridMachine` such as `Window`, which has `Settings`.
"""

from picardsolve.certificate.evidence import Evidence
from picardsolve.collocation.checked_segment import CheckedSegment
from picardsolve.collocation.failures import Stuck
from picardsolve.collocation.initial_value import InitialValueProblem
from picardsolve.collocation.iteration_choice import rounds_if_stiff
from picardsolve.collocation.march import March
from picardsolve.collocation.numpy_arrays import NumpyArrays
from picardsolve.fixed_point.automatic_width import Pace
from picardsolve.fixed_point.error_estimate import ErrorEstimate
from picardsolve.fixed_point.grid_machine import GridMachine
from picardsolve.fixed_point.guesses import Entering, Guess, Trail
from picardsolve.fixed_point.iterations import Iteration, Method
from picardsolve.fixed_point.stopping import Increment, Residuals, Stopping
from picardsolve.fixed_point.sweep import Memory, Swept
from picardsolve.fixed_point.window import Settings, Window
from picardsolve.integrators.base import Chain, DriftChain, Evaluated, Hold, Index, Integrator, Rows, accepted_term
from picardsolve.integrators.linear_multistep import Visit, linear_multistep, linear_multistep_alone
from picardsolve.integrators.runge_kutta import RungeKutta, RungeKuttaChain
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.step_table import StepTable
from picardsolve.integrators.tableau import Tableau
from picardsolve.problem.autocast import without_autocast
from picardsolve.problem.checks import (
    check_callable,
    check_count,
    check_not_negative,
    check_optional_positive_integer,
    check_positive_integer,
    check_type,
)
from picardsolve.problem.denoiser import sample_map
from picardsolve.problem.machine import Machine, drive
from picardsolve.problem.problem import Problem
from picardsolve.problem.recurrence import arriving, linear_sweep, matrix_recurrence, matrix_sweep, recurrence, rms
from picardsolve.problem.tolerances import Tolerance
from picardsolve.results.carried import Carried
from picardsolve.results.history import History
from picardsolve.results.plot import plot_rounds

__all__ = [
    "AffineSteps",
    "Carried",
    "Chain",
    "CheckedSegment",
    "DriftChain",
    "Entering",
    "ErrorEstimate",
    "Evaluated",
    "Evidence",
    "GridMachine",
    "Guess",
    "History",
    "Hold",
    "Increment",
    "Index",
    "InitialValueProblem",
    "Integrator",
    "Iteration",
    "Machine",
    "March",
    "Memory",
    "Method",
    "NumpyArrays",
    "Pace",
    "Problem",
    "Residuals",
    "Rows",
    "RungeKutta",
    "RungeKuttaChain",
    "Settings",
    "StepTable",
    "Steps",
    "Stopping",
    "Stuck",
    "Swept",
    "Tableau",
    "Tolerance",
    "Trail",
    "Visit",
    "Window",
    "accepted_term",
    "arriving",
    "check_callable",
    "check_count",
    "check_not_negative",
    "check_optional_positive_integer",
    "check_positive_integer",
    "check_type",
    "drive",
    "linear_multistep",
    "linear_multistep_alone",
    "linear_sweep",
    "matrix_recurrence",
    "matrix_sweep",
    "plot_rounds",
    "recurrence",
    "rms",
    "rounds_if_stiff",
    "sample_map",
    "without_autocast",
]
