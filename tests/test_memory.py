"""Memory that grows linearly with the state: of states that are large no matrix is made, forward or backward."""

import gc
import tracemalloc
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import picardsolve as ps

NODES = 21  # of a segment of the default order, and its start
ARRAYS = 45  # as large as the states at the nodes, that may be kept at once
SMALL = 2**21  # bytes of whatever does not grow with the state


class Largest(TorchDispatchMode):
    """Notes the largest memory of a tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("d", [65, 1000, 8000])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-3), (torch.float64, 1e-3), (torch.float64, 1e-10)])
@pytest.mark.parametrize("method", [None, "picard"])
def test_memory_is_linear_in_the_state(d, dtype, tol, method):
    weight = torch.tensor([0.9, 1.1, 0.4], dtype=dtype, requires_grad=True)
    y0 = torch.linspace(-1, 1, d, dtype=dtype).cos().requires_grad_()

    def drift(t, y):
        return (weight[0] * y.roll(1, -1)).tanh() * weight[1] - weight[2] * y

    def run(start: Tensor) -> ps.Solution:
        t = torch.tensor([0.0, 2.0])
        ys, sol = ps.odeint(drift, start, t, rtol=tol, atol=tol, method=method, options={"full_output": True})
        (ys[-1] ** 2).sum().backward()
        return sol

    with Largest():  # modules are imported, and tables of nodes made, once
        run(torch.ones(66, dtype=dtype))
    gc.collect()
    with Largest() as largest:
        tracemalloc.start()
        try:
            sol = run(y0)
            assert sol.certificate.error.isfinite().all()
            host = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    nodes = 8 * d * NODES * (sol.stats.steps + 1)
    assert host <= ARRAYS * nodes + SMALL
    assert largest.bytes <= 3 * max(nodes, 8 * d * sol.stats.max_width) + SMALL


class Block(nn.Module):
    """torchdiffeq's of its MNIST example."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(min(32, channels), channels) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, 1, 1) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for norm, convolution in zip(self.norms[:2], self.convolutions, strict=True):
            x = norm(x).relu()
            x = convolution(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))
        return self.norms[2](x)


@pytest.mark.parametrize("images", [2, 5])
def test_a_block_of_images_is_torchdiffeqs(images):
    """States and gradients. The corners of its rectifiers are smooth to neither: errors are seen to a factor of two."""
    torch.manual_seed(0)
    block, y0, t = Block(16), torch.randn(images, 16, 6, 6, requires_grad=True), torch.tensor([0.0, 1.0])
    by = (y0, *block.parameters())
    ours = ps.odeint(block, y0, t, rtol=1e-3, atol=1e-3)
    theirs = torchdiffeq.odeint(block, y0, t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    for some in (by[:1], by[1:]):
        mine, other = (
            torch.cat([g.flatten() for g in torch.autograd.grad((ys[-1] ** 2).sum(), some, retain_graph=True)])
            for ys in (ours, theirs)
        )
        assert (mine - other).norm() <= 0.05 * other.norm()
