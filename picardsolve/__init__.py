"""Solve ODEs and SDEs in parallel over time."""

from picardsolve import grids, presets, schedules
from picardsolve.brownian import BrownianPath
from picardsolve.guesses import Copy, FrozenOutput, FrozenSample, Guess
from picardsolve.history import Round
from picardsolve.integrators import DDIM, DDPM, RK4, DPMSolver, Euler, EulerMaruyama, Heun, Integrator
from picardsolve.iterations import Exponential, Iteration, Jacobi, Parareal, Picard, Secant
from picardsolve.solution import Result, Solution, SolveError, Stats
from picardsolve.solve import odeint, sequential, solve
from picardsolve.terms import ODE, SDE, Denoiser

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "ODE",
    "RK4",
    "SDE",
    "BrownianPath",
    "Copy",
    "DPMSolver",
    "Denoiser",
    "Euler",
    "EulerMaruyama",
    "Exponential",
    "FrozenOutput",
    "FrozenSample",
    "Guess",
    "Heun",
    "Integrator",
    "Iteration",
    "Jacobi",
    "Parareal",
    "Picard",
    "Result",
    "Round",
    "Secant",
    "Solution",
    "SolveError",
    "Stats",
    "grids",
    "odeint",
    "presets",
    "schedules",
    "sequential",
    "solve",
]
