"""Solve ODEs and SDEs in parallel over time."""

from picardsolve import distributed, theory
from picardsolve.adaptive import Adaptive
from picardsolve.analysis.analysis import Analysis, Expected, analyze
from picardsolve.baselines import Anderson, Jacobi, Parareal, presets
from picardsolve.brownian.brownian_path import BrownianPath
from picardsolve.certificate.certificate import Certificate
from picardsolve.certificate.verification import Verification
from picardsolve.collocation import Collocation
from picardsolve.embedded import Dopri5, Dopri8, Tsit5
from picardsolve.fixed_point.guesses import Copy, FromTrajectory, FrozenOutput, FrozenSample, Guess, Polynomial
from picardsolve.fixed_point.iterations import (
    Exponential,
    Iteration,
    MultiSecant,
    Newton,
    Picard,
    Secant,
)
from picardsolve.integrators import (
    DDIM,
    DDPM,
    ETD1,
    ETDRK2,
    ETDRK4,
    RK4,
    SRA1,
    SRID2,
    BackwardEuler,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    Integrator,
    Midpoint,
    Milstein,
    StochasticEDM,
    StochasticHeun,
    StochasticMidpoint,
)
from picardsolve.odeint import odeint
from picardsolve.problem import grids, schedules
from picardsolve.problem.denoiser import Denoiser
from picardsolve.problem.divergence import divergence
from picardsolve.problem.linear import Diagonal, Fourier
from picardsolve.problem.reverse import reverse_sde
from picardsolve.problem.terms import ODE, SDE, SecondOrderODE, SemilinearODE
from picardsolve.results.diagnostics import ConvergenceWarning
from picardsolve.results.history import Round
from picardsolve.results.solution import Occurrences, Result, Solution, SolveError, Stats
from picardsolve.sdeint import sdeint
from picardsolve.serving.batcher import Batcher
from picardsolve.serving.request import Cancelled
from picardsolve.solve import sequential, solve
from picardsolve.solve_chain import solve_chain

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "ETD1",
    "ETDRK2",
    "ETDRK4",
    "ODE",
    "RK4",
    "SDE",
    "SRA1",
    "SRID2",
    "Adaptive",
    "Analysis",
    "Anderson",
    "BackwardEuler",
    "Batcher",
    "BrownianPath",
    "Cancelled",
    "Certificate",
    "Collocation",
    "ConvergenceWarning",
    "Copy",
    "DPMSolver",
    "Denoiser",
    "Diagonal",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EulerMaruyama",
    "Expected",
    "Exponential",
    "Fourier",
    "FromTrajectory",
    "FrozenOutput",
    "FrozenSample",
    "Guess",
    "Heun",
    "Integrator",
    "Iteration",
    "Jacobi",
    "Midpoint",
    "Milstein",
    "MultiSecant",
    "Newton",
    "Occurrences",
    "Parareal",
    "Picard",
    "Polynomial",
    "Result",
    "Round",
    "Secant",
    "SecondOrderODE",
    "SemilinearODE",
    "Solution",
    "SolveError",
    "Stats",
    "StochasticEDM",
    "StochasticHeun",
    "StochasticMidpoint",
    "Tsit5",
    "Verification",
    "analyze",
    "distributed",
    "divergence",
    "grids",
    "odeint",
    "presets",
    "reverse_sde",
    "schedules",
    "sdeint",
    "sequential",
    "solve",
    "solve_chain",
    "theory",
]
