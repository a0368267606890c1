"""Train the small pretrained pipeline that ships in ``examples/digits``: a DDPM on scikit-learn's real 8x8 digits.

Run with ``python examples/train_digits.py``; about twenty-five minutes on one CPU core. The result is an ordinary
diffusers pipeline, loaded by ``DDPMPipeline.from_pretrained("examples/digits")``.
"""

import argparse
import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from tqdm import trange


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1797 images in [-1, 1], shape (1797, 1, 8, 8), and their classes."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)


def denoiser() -> UNet2DModel:
    """Two resolutions, 32 and 64 channels, attention at the lower one: 0.7 M parameters."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def fit(net: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int, lr: float) -> torch.nn.Module:
    """Minimise ``loss()``, of a batch drawn anew in every call, by ``net``; its averaged weights."""
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-3)
    progress, loss_mean = trange(steps), 1.0
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(weight.detach(), max(0.001, 1 / (step + 1)))
        loss_mean += 0.02 * (value.item() - loss_mean)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss_mean:.4f}")
    return average.eval()


def train(steps: int, batch: int, lr: float, seed: int) -> tuple[UNet2DModel, DDPMScheduler]:
    """Noise-prediction training (Ho et al. 2020, algorithm 1) with a cosine learning rate and averaged weights."""
    torch.manual_seed(seed)
    images, _ = digits()
    net, scheduler = denoiser(), DDPMScheduler()

    def loss() -> torch.Tensor:
        clean = images[torch.randint(len(images), (batch,))]
        noise, t = torch.randn_like(clean), torch.randint(len(scheduler.betas), (batch,))
        return (net(scheduler.add_noise(clean, noise, t), t).sample - noise).square().mean()

    return fit(net, loss, steps, lr), scheduler


@functools.cache
def classifier() -> tuple[MLPClassifier, np.ndarray, np.ndarray]:
    """A small network trained on four fifths of the digits, and the images and classes of the last fifth."""
    images, classes = digits()
    x, y = images.flatten(1).numpy(), classes.numpy()
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return MLPClassifier((64,), max_iter=500, random_state=0).fit(train_x, train_y), test_x, test_y


class Confidence(NamedTuple):
    """What a classifier of the real digits says of samples.

    Attributes:
        confident: fraction of the samples that it puts into one class with at least the asked probability.
        real: the same fraction of real digits that it was not trained on.
        accuracy: of the classifier on those.
        classes: of the samples.
    """

    confident: float
    real: float
    accuracy: float
    classes: np.ndarray


def confidence(samples: torch.Tensor, threshold: float = 0.9) -> Confidence:
    """Classify ``samples``, shape (n, 1, 8, 8) in [-1, 1], by ``classifier()``."""
    network, test_x, test_y = classifier()
    sampled = network.predict_proba(samples.clamp(-1, 1).flatten(1).numpy())
    real = network.predict_proba(test_x)
    return Confidence(
        float((sampled.max(1) >= threshold).mean()),
        float((real.max(1) >= threshold).mean()),
        float((real.argmax(1) == test_y).mean()),
        sampled.argmax(1),
    )


def main() -> None:
    """Train, save, sample and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits")
    args = parser.parse_args()
    pipe = DDPMPipeline(*train(args.steps, args.batch, args.lr, args.seed))
    pipe.save_pretrained(args.out)
    pipe.set_progress_bar_config(disable=True)
    samples = pipe(batch_size=200, generator=torch.Generator().manual_seed(1), output_type="np").images
    found = confidence(torch.from_numpy(samples).permute(0, 3, 1, 2) * 2 - 1)
    print(
        f"samples with a class of probability >= 0.9: {found.confident:.1%} of {len(samples)}; of real digits held out "
        f"{found.real:.1%}; the classifier's accuracy on those {found.accuracy:.1%}"
    )


if __name__ == "__main__":
    main()
