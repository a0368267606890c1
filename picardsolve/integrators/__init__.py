"""What makes a chain of steps: each integrator says its order and what terms it takes."""

from picardsolve.integrators.backward_euler import BackwardEuler
from picardsolve.integrators.base import Chain, DriftChain, Integrator, Rows
from picardsolve.integrators.diffusion import DDIM, DDPM
from picardsolve.integrators.dpm_solver import DPMSolver
from picardsolve.integrators.etd import ETD1, ETDRK2, ETDRK4
from picardsolve.integrators.euler_maruyama import EulerMaruyama
from picardsolve.integrators.milstein import Milstein
from picardsolve.integrators.roessler import SRA1, SRID2
from picardsolve.integrators.runge_kutta import RK4, Euler, Heun
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
    "Milstein",
    "Rows",
    "Steps",
    "StochasticHeun",
    "StochasticMidpoint",
]
