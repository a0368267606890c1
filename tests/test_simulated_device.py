"""The simulated device catches what a GPU refuses and counts what a GPU would do."""

import pytest
import torch
from simulated_device import DEVICE, SimulatedDevice
from tally import KINDS, Tally


@pytest.fixture
def device():
    with SimulatedDevice() as device:
        yield device


def counts(device: SimulatedDevice) -> dict[str, int]:
    return {kind: device.tally.of(kind) for kind in KINDS if device.tally.of(kind)}


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype).to(DEVICE)


def test_values_are_those_of_the_cpu(device):
    x = torch.arange(12.0).reshape(3, 4)
    y = x.to(DEVICE)
    assert y.device == DEVICE
    assert type(y) is torch.Tensor
    for operation in (
        lambda x: x.cumsum(0) @ x.T,
        lambda x: torch.linalg.solve_triangular(x[:, :3].tril() + torch.eye(3, device=x.device), x, upper=False),
        lambda x: torch.linalg.cholesky(x @ x.T + 3 * torch.eye(3, device=x.device)),
        lambda x: x.index_select(0, torch.arange(2, device=x.device)),
        lambda x: torch.zeros_like(x).scatter(1, torch.zeros_like(x, dtype=torch.long)[:, :1], x),
        lambda x: torch.stack([x.amax(0), x.new_tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1], device=x.device)]),
        lambda x: torch.from_numpy(x.cpu().numpy()).to(x.device) + torch.tensor(2.0),
        lambda x: (x.half() * 0.1).double(),
        lambda x: torch.add(x, 1, out=torch.empty_like(x)),
        lambda x: torch.matmul(x, x.T, out=torch.empty(0, device=x.device)),
        lambda x: torch.topk(x, 2)[0],
        lambda x: x[x > 3],
        lambda x: x.clone().unsqueeze_(0),
    ):
        torch.testing.assert_close(operation(y).cpu(), operation(x), rtol=0, atol=0)
    assert y[1].tolist() == [4, 5, 6, 7]


def test_views_see_what_is_written_and_the_other_way_round(device):
    x = torch.zeros(6, device=DEVICE)
    view, again = x[1:5].view(2, 2), x.detach()
    view[:, 1] += 2
    x[3] = 5
    view.copy_(view + 1)
    x.mul_(2)
    view[0] = torch.tensor([7.0, 8.0], device=DEVICE)
    torch.diagonal(view).add_(1)
    assert x.tolist() == again.tolist() == [0, 8, 8, 12, 7, 0]
    assert view.T.reshape(-1).tolist() == [8, 12, 8, 7]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) + x,
        lambda x: torch.tensor(0.0).add_(x[0]),
        lambda x: torch.add(x, 1, out=torch.zeros(3)),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: torch.stack([x[0], torch.tensor(1.0)]),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: torch.zeros(3).masked_fill_(x > 0, 1.0),
        lambda x: x.gather(0, torch.tensor([0])),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.eye(3) @ x,
        lambda x: x.numpy(),
        lambda x: torch.randn(3, generator=torch.Generator(), device=DEVICE),
        lambda x: x.normal_(generator=torch.Generator()),
    ],
)
def test_two_devices_do_not_mix(device, mixed):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|can't convert|generator of the device"):
        mixed(torch.zeros(3, device=DEVICE))


def test_numbers_of_the_host_may_be_operands(device):
    x = torch.ones(3, device=DEVICE)
    device.tally.clear()
    x = x * torch.tensor(2.0) + 1
    x[0] = 0.0
    x.masked_fill_(x > 2, torch.tensor(4.0))
    torch.where(x > 0, x, torch.tensor(-1.0))
    assert not device.tally.of("copy to the device")
    assert not device.tally.of("wait")


def test_a_tensor_of_another_place_has_no_values():
    stray = torch.ones(3, device=DEVICE)
    with SimulatedDevice(), pytest.raises(RuntimeError, match="outside of it"):
        stray.add_(1)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda x: x[1:].view(1, 2).T.expand(2, 4), {"operation": 4}),
        (lambda x: x.reshape(-1, 1).squeeze_(1), {"operation": 2}),
        (lambda x: torch.empty_like(x), {"operation": 1}),
        (lambda x: x.mul_(2).add(1), {"operation": 2, "kernel": 2}),
        (lambda x: x.double(), {"operation": 1, "kernel": 1}),
        (lambda x: torch.arange(3, device=DEVICE), {"operation": 1, "kernel": 1}),
        (lambda x: torch.ones(3).to(DEVICE), {"operation": 1, "copy to the device": 1, "blocking copy": 1}),
        (lambda x: torch.ones(3).to(DEVICE, non_blocking=True), {"operation": 1, "copy to the device": 1}),
        (lambda x: x.copy_(torch.ones(3), non_blocking=True), {"operation": 1, "copy to the device": 1}),
        (lambda x: torch.tensor([1.0], device=DEVICE), {"operation": 1, "copy to the device": 1, "blocking copy": 1}),
        (
            lambda x: x[torch.tensor([0, 2])],
            {"operation": 1, "kernel": 1, "copy to the device": 1, "blocking copy": 1},
        ),
        (lambda x: x.cpu(), {"operation": 1, "copy to the host": 1, "wait": 1}),
        (lambda x: torch.zeros(3).copy_(x), {"operation": 1, "copy to the host": 1, "wait": 1}),
        (lambda x: float(x[0]), {"operation": 2, "copy to the host": 1, "wait": 1}),
        (lambda x: torch.equal(x, x), {"operation": 1, "copy to the host": 1, "wait": 1}),
        (lambda x: x[x > 0], {"operation": 2, "kernel": 2, "wait": 1}),
        (lambda x: x.nonzero(), {"operation": 1, "kernel": 1, "wait": 1}),
        (lambda x: x.masked_select(x > 0), {"operation": 2, "kernel": 2, "wait": 1}),
        (lambda x: torch.ones(3) + 1, {}),
    ],
)
def test_counts(device, act, expected):
    x = torch.ones(3, device=DEVICE)
    device.tally.clear()
    act(x)
    assert counts(device) == expected


def test_what_the_user_does_is_counted_apart(device):
    x = torch.ones(3).to(DEVICE)
    before = Tally(device.tally)
    drift = device.counted_apart(lambda x: float((x * 2).sum()))
    drift(x + 1)
    assert device.tally.since(before).of("operation") == 1
    assert [device.user.of(kind) for kind in ("operation", "kernel", "wait")] == [3, 2, 1]
    assert before.table("copy to the device") == "       1  elsewhere"
    with pytest.raises(ValueError, match="kind"):
        before.of("launch")


def test_derivatives(device):
    a, y = on_device(3, 3), on_device(4, 3)

    def f(y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(y @ a)

    slope = 1 - f(y).square()
    tangents = torch.eye(3, device=DEVICE)
    jacobian = torch.func.vmap(lambda v: torch.func.jvp(f, (y,), (v.expand_as(y),))[1], out_dims=-1)(tangents)
    torch.testing.assert_close(jacobian.cpu(), (slope[:, :, None] * a.T).cpu())
    y.requires_grad_()
    f(y).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad.cpu(), (slope @ a.T).cpu())


def test_inference_mode(device):
    outside = torch.ones(3, device=DEVICE)
    with torch.inference_mode():
        made = torch.ones(2, 3).to(DEVICE)
        view = outside[1:]
        view.add_(1)
        product = torch.nn.functional.linear(made, made) + outside[:2]
    assert outside.tolist() == [1, 2, 2]
    assert product.tolist() == [[4, 5], [4, 5]]
