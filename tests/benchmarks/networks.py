"""Small denoisers, trained here and kept in a folder for temporary files: what trust is measured on.

``python tests/benchmarks/networks.py`` trains all of them, minutes each on one core. Data ship with scikit-learn.
No constant of the package was chosen on those in `HELD_OUT`.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from sklearn import datasets
from torch import Tensor, nn

import picardsolve as ps

FOLDER = Path(tempfile.gettempdir()) / "picardsolve-networks"
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)
STEPS, BATCH, RATE = 3000, 256, 2e-3
DROPPED = 0.15  # of the labels, for guidance


class Times(nn.Module):
    """Sines and cosines of a time, and a layer."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("rates", torch.exp(torch.linspace(0, -math.log(1000), width // 2)))
        self.layer = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = t.reshape(-1, 1) * self.rates
        return nn.functional.silu(self.layer(torch.cat([angle.sin(), angle.cos()], -1)))


class MLP(nn.Module):
    """Residual layers."""

    def __init__(self, size: int, width: int = 128, depth: int = 4):
        super().__init__()
        self.times, self.enter, self.leave = Times(width), nn.Linear(size, width), nn.Linear(width, size)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, time = self.enter(x), self.times(t)
        for layer in self.layers:
            h = h + nn.functional.silu(layer(h + time))
        return self.leave(h)


class Convolutional(nn.Module):
    """Residual convolutions of 8x8 images; one label of eleven, the last for none."""

    def __init__(self, width: int = 32, depth: int = 4):
        super().__init__()
        self.times, self.labels = Times(width), nn.Embedding(11, width)
        self.enter, self.leave = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * depth))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2 * depth))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h, added = self.enter(x.reshape(-1, 1, 8, 8)), (self.times(t) + self.labels(label))[..., None, None]
        for one, two, first, second in zip(
            self.layers[::2], self.layers[1::2], self.norms[::2], self.norms[1::2], strict=True
        ):
            h = h + two(nn.functional.silu(second(one(nn.functional.silu(first(h))) + added)))
        return self.leave(nn.functional.silu(h)).reshape(x.shape)


class Transformer(nn.Module):
    """Attention over the sixteen patches of 8x8 images."""

    def __init__(self, width: int = 64, depth: int = 3):
        super().__init__()
        self.times, self.places = Times(width), nn.Parameter(0.1 * torch.randn(16, width))
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        patches = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        h = self.enter(patches) + self.places + self.times(t)[:, None]
        for layer in self.layers:
            h = layer(h)
        return self.leave(h).reshape(-1, 4, 4, 2, 2).transpose(2, 3).reshape(x.shape)


def _digits() -> tuple[Tensor, Tensor]:
    data = datasets.load_digits()
    return torch.tensor(data.data).float() / 8 - 1, torch.tensor(data.target)


def _cancer() -> tuple[Tensor, Tensor]:
    x = torch.tensor(datasets.load_breast_cancer().data).float().log1p()
    return (x - x.mean(0)) / x.std(0), torch.zeros(len(x), dtype=torch.int64)


def _moons() -> tuple[Tensor, Tensor]:
    x = torch.tensor(datasets.make_moons(4000, noise=0.05, random_state=0)[0]).float()
    return (x - x.mean(0)) / x.std(0), torch.zeros(len(x), dtype=torch.int64)


def _roll() -> tuple[Tensor, Tensor]:
    x = torch.tensor(datasets.make_swiss_roll(4000, noise=0.2, random_state=0)[0]).float()
    return (x - x.mean(0)) / x.std(0), torch.zeros(len(x), dtype=torch.int64)


@dataclass(frozen=True)
class Kind:
    """A network, its data, and whether it takes labels."""

    network: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    labelled: bool = False


KINDS = {
    "cancer-mlp": Kind(lambda: MLP(30), _cancer),
    "digits-convolutional": Kind(Convolutional, _digits, True),
    "digits-transformer": Kind(Transformer, _digits),
    "moons-mlp": Kind(lambda: MLP(2), _moons),
    "roll-mlp": Kind(lambda: MLP(3), _roll),
}
HELD_OUT = ("digits-transformer", "roll-mlp")


def _batches(x: Tensor, label: Tensor, levels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    for _ in range(STEPS):
        at = torch.randint(len(x), (BATCH,), generator=generator)
        t = torch.randint(len(levels), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, x.shape[1], generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED
        level = levels[t][:, None]
        yield level.sqrt() * x[at] + (1 - level).sqrt() * noise, noise, t.float(), label[at].where(~dropped, 10)


def _train(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    network, levels = kind.network(), (1 - BETAS).cumprod(0)
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for x, noise, t, label in _batches(*kind.data(), levels, torch.Generator().manual_seed(0)):
        found = network(x, t, label) if kind.labelled else network(x, t)
        optimiser.zero_grad()
        (found - noise).square().mean().backward()
        optimiser.step()
        decay.step()
    return network


@cache
def network(name: str) -> nn.Module:
    """A trained network, in evaluation mode."""
    path, kind = FOLDER / f"{name}.pt", KINDS[name]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        began = time.perf_counter()
        torch.save(_train(kind).state_dict(), path)
        print(f"trained {name} in {time.perf_counter() - began:.0f} s", flush=True)
    made = kind.network()
    made.load_state_dict(torch.load(path, weights_only=True))
    return made.eval().requires_grad_(False)


def denoiser(name: str, guidance: float = 0.0) -> tuple[ps.Denoiser, int]:
    """The network as a `Denoiser` of states in float64, and the size of a state.

    Args:
        name: of `KINDS`.
        guidance: towards the label in ``cond``, where the network takes labels.
    """
    model, kind = network(name), KINDS[name]

    def predict(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        rows, times = x.float(), t.float().reshape(-1)
        if not kind.labelled:
            return model(rows, times).double()
        none = torch.full((len(x),), 10)
        free = model(rows, times, none)
        if label is None:
            return free.double()
        return (free + guidance * (model(rows, times, label) - free)).double()

    return ps.Denoiser(predict, ps.schedules.from_betas(BETAS)), kind.data()[0].shape[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in KINDS:
        network(each)
