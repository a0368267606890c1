"""Solve ODEs and SDEs in parallel over time."""

from picardsolve import grids, presets, schedules, theory
from picardsolve.analysis import Analysis, Expected, analyze
from picardsolve.brownian import BrownianPath
from picardsolve.certificate import Certificate, Verification
from picardsolve.collocation import Collocation
from picardsolve.diagnostics import ConvergenceWarning
from picardsolve.guesses import Coarse, Copy, FromTrajectory, FrozenOutput, FrozenSample, Guess, Polynomial
from picardsolve.history import Round
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
    Milstein,
    StochasticHeun,
    StochasticMidpoint,
)
from picardsolve.iterations import (
    Anderson,
    Exponential,
    Iteration,
    Jacobi,
    MultiSecant,
    Newton,
    Parareal,
    Picard,
    Secant,
)
from picardsolve.linear import Diagonal, Fourier
from picardsolve.odeint import odeint
from picardsolve.reverse import reverse_sde
from picardsolve.sdeint import sdeint
from picardsolve.solution import Occurrences, Result, Solution, SolveError, Stats
from picardsolve.solve import sequential, solve
from picardsolve.terms import ODE, SDE, Denoiser, SecondOrderODE, SemilinearODE

theory.analyze = analyze  # pyright: ignore[reportAttributeAccessIssue]: looked for beside the formulas, of a higher layer

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
    "Analysis",
    "Anderson",
    "BackwardEuler",
    "BrownianPath",
    "Certificate",
    "Coarse",
    "Collocation",
    "ConvergenceWarning",
    "Copy",
    "DPMSolver",
    "Denoiser",
    "Diagonal",
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
    "StochasticHeun",
    "StochasticMidpoint",
    "Verification",
    "analyze",
    "grids",
    "odeint",
    "presets",
    "reverse_sde",
    "schedules",
    "sdeint",
    "sequential",
    "solve",
    "theory",
]
