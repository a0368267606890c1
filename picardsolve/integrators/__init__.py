"""Integrators: each one makes a chain of steps from a term and a grid."""

from picardsolve.integrators.backward_euler import BackwardEuler
from picardsolve.integrators.base import Chain, DriftChain, Integrator, Rows
from picardsolve.integrators.diffusion import DDIM, DDPM
from picardsolve.integrators.dpm_solver import DPMSolver
from picardsolve.integrators.edm import StochasticEDM
from picardsolve.integrators.etd import ETD1, ETDRK2, ETDRK4
from picardsolve.integrators.ito import SRA1, SRID2, EulerMaruyama, Milstein
from picardsolve.integrators.runge_kutta import RK4, Euler, Heun, Midpoint
from picardsolve.integrators.step_maps import AffineSteps, Steps
from picardsolve.integrators.stratonovich import StochasticHeun, StochasticMidpoint

__all__ = [
    "DDIM",
    "DDPM",
    "ETD1",
    "ETDRK2",
    "ETDRK4",
    "RK4",
    "SRA1",
    "SRID2",
    "AffineSteps",
    "BackwardEuler",
    "Chain",
    "DPMSolver",
    "DriftChain",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Integrator",
    "Midpoint",
    "Milstein",
    "Rows",
    "Steps",
    "StochasticEDM",
    "StochasticHeun",
    "StochasticMidpoint",
]
