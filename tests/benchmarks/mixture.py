"""A diffusion chain with an exact score: a Gaussian mixture with an image-like spectrum.

Ten components in 64 dimensions (8x8 pixels), power-law spectrum, a random rotation of each component's covariance, on
Stable Diffusion's scaled-linear schedule. It reproduces the round counts of the literature without any network.
"""

import numpy as np
import torch
from torch import Tensor

import picardsolve as ps

DIM = 64


def _cosine_basis(n: int) -> np.ndarray:
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    basis = np.cos(np.pi * (i + 0.5) * k / n) * np.sqrt(2 / n)
    basis[0] /= np.sqrt(2)
    return basis


class Mixture:
    """The mixture's density at any signal and noise level."""

    def __init__(self, components: int = 10, slope: float = 1.5, within: float = 0.3, seed: int = 0):
        rng, side = np.random.default_rng(seed), 8
        basis = np.kron(_cosine_basis(side), _cosine_basis(side))
        frequency = np.sqrt(np.arange(side)[:, None] ** 2 + np.arange(side)[None] ** 2).ravel()
        spectrum = 1 / (1 + frequency) ** (2 * slope)
        spectrum /= spectrum.mean()
        means = (rng.standard_normal((components, DIM)) * np.sqrt(spectrum * (1 - within))) @ basis
        axes, variances = [], []
        order = np.argsort(frequency)
        for _ in range(components):
            variances.append(spectrum * within * np.exp(0.5 * rng.standard_normal(DIM)))
            rotation = np.eye(DIM)
            for block in range(0, DIM, 16):
                index = order[block : block + 16]
                rotation[np.ix_(index, index)] = np.linalg.qr(rng.standard_normal((len(index),) * 2))[0]
            axes.append(rotation @ basis)
        self.means, self.axes, self.variances = (torch.tensor(np.array(v)) for v in (means, axes, variances))

    def epsilon(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The exact predicted noise, ``-sigma`` times the score; x is (rows, 64), levels are (rows,)."""
        centred = x[None] - alpha[None, :, None] * self.means[:, None]
        rotated = centred @ self.axes.transpose(1, 2)
        variance = alpha[None, :, None] ** 2 * self.variances[:, None] + sigma[None, :, None] ** 2
        log_weight = -0.5 * (rotated**2 / variance).sum(-1) - 0.5 * variance.log().sum(-1)
        scores = -(rotated / variance) @ self.axes
        return -sigma[:, None] * (torch.softmax(log_weight, 0)[..., None] * scores).sum(0)


def denoiser() -> ps.Denoiser:
    """The mixture as a denoiser on Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule, mixture = ps.schedules.from_betas(betas), Mixture()
    return ps.Denoiser(lambda x, t: mixture.epsilon(x, schedule.alpha(t), schedule.sigma(t)), schedule)


def grid(steps: int) -> Tensor:
    """Leading spacing, offset one, and the clean sample at the end."""
    offset = 1 if steps < 1000 else 0
    return ps.grids.given([*(n * (1000 // steps) + offset for n in reversed(range(steps))), -1])
