"""A tensor that carries many through code written for one does to each what the code does to it alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import generator

from picardsolve.integrations.diffusers.run.timesteps import Timesteps
from picardsolve.integrations.diffusers.run.window_tensor import (
    LaneMode,
    Lanes,
    WindowTensor,
    WithoutLoopMode,
    find,
    pick,
)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def window_of(items: list[torch.Tensor]) -> tuple[WindowTensor, Lanes]:
    lanes = Lanes(len(items))
    return lanes.tensor(items), lanes


OPERATIONS = {
    "arithmetic": lambda x, other: 2.0 * x + other * x - x / 3 + 1,
    "other on the left": lambda x, other: other - x,
    "numbers on the left": lambda x, other: 1 - 2 * x,
    "other of fewer dimensions": lambda x, other: x * other[0, 0] + other[0],
    "other of more dimensions": lambda x, other: x[0] * other[:, None] - x,
    "a time": lambda x, other: other / x[0, 0, 0] + x[0, 0, 0].expand(2)[:, None, None],
    "a time of another type": lambda x, other: other.float() * x[0, 0, 0],
    "a time of another type in a window": lambda x, other: x.half() * x[0, 0, 0].float(),
    "guidance": lambda x, other: guided(torch.cat([x] * 2), other),
    "cat behind": lambda x, other: torch.cat([x, 2 * x], dim=-1).chunk(3, -1)[2],
    "cat by name": lambda x, other: torch.concat(tensors=(x, x), dim=1),
    "picking": lambda x, other: x[..., None, 1:2] + x[0],
    "expand known sizes": lambda x, other: x[:1].expand(5, -1, -1),
    "power and comparison": lambda x, other: (x**2 > other).to(x.dtype),
    "matrix product": lambda x, other: x.flatten(1) @ other.flatten(1).T,
    "cat": lambda x, other: torch.cat([x, x, other]),
    "stack": lambda x, other: torch.stack((other, x)),
    "chunk": lambda x, other: x.chunk(2, dim=1)[1],
    "unpacking": lambda x, other: [part + 1 for part in x.unbind(0)],
    "indexing": lambda x, other: x[:, 1:, None],
    "index by a mask": lambda x, other: x[other > 0],
    "expand": lambda x, other: x[0].expand(3, *x.shape[1:]),
    "norm": lambda x, other: x.norm(dim=(1, 2), keepdim=True),
    "named tuple": lambda x, other: x.max(dim=1).values,
    "dtype": lambda x, other: x.to(torch.float32),
    "where": lambda x, other: torch.where(other > 0, x, other),
    "clone in place": lambda x, other: x.clone().mul_(other).add_(1),
    "in place": lambda x, other: other.clone().copy_(x),
    "into a part": lambda x, other: written(other.clone(), x),
    "out": lambda x, other: torch.add(x, 1, out=other.clone()),
    "assignment": lambda x, other: assigned(x.clone()),
}


def guided(doubled, other):
    uncond, text = doubled.chunk(2)
    return uncond + 7.5 * (text * other - uncond)


def written(buffer, x):
    """As pipelines that put tiles together do."""
    buffer[:, 1:3] = x[:, 1:3]
    buffer[:, :2] += x[:, :2]
    return buffer


def assigned(x):
    x[:, 0] = 7.0
    x += 1
    return x


@pytest.mark.parametrize("name", OPERATIONS)
@given(count=st.integers(1, 5), seed=st.integers(0, 100), together=st.booleans())
def test_operations_apply_to_every_item(name, count, seed, together):
    items, other = list(randn(seed, count, 2, 4, 3)), randn(seed + 1, 2, 4, 3)
    lanes = Lanes(count)
    window = lanes.tensor(torch.stack(items) if together else items)
    result = OPERATIONS[name](window, other)
    expected = [OPERATIONS[name](item, other) for item in items]
    for j in range(count):
        torch.testing.assert_close(pick(result, j), expected[j], rtol=0, atol=0)
    assert len(find(result)[0].items) == count
    assert lanes.count == count


def test_in_place_operations_change_the_items():
    items = list(randn(0, 3, 4))
    expected = [2 * item for item in items]
    window, _ = window_of(items)
    window.mul_(2)
    for item, twice in zip(window.items, expected, strict=True):
        assert torch.equal(item, twice)


def test_two_windows_go_together():
    a, b = randn(0, 3, 4), randn(1, 3, 4)
    lanes = Lanes(3)
    result = torch.add(lanes.tensor(list(a)), lanes.tensor(list(b)))
    assert torch.equal(torch.stack(result.items), a + b)


LOOKS = {
    "bool": lambda x: bool(x > 5),
    "if": lambda x: 1 if x > 5 else 0,
    "item": lambda x: x.item(),
    "float": lambda x: float(x),
    "int": lambda x: int(x),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, torch.tensor(9.0)),
}


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize(("values", "agreeing"), [([9, 9, 9], 3), ([9, 9, 2], 2), ([2, 9, 2], 1), ([9], 1)])
def test_looking_at_a_value_shows_the_first_and_keeps_those_that_agree(name, values, agreeing):
    window, lanes = window_of([torch.tensor(float(value)) for value in values])
    assert LOOKS[name](window) == LOOKS[name](torch.tensor(float(values[0])))
    assert lanes.count == agreeing


def test_nested_containers():
    items = list(randn(0, 3, 4))
    window, _ = window_of(items)
    nested = {"a": [window, (1, window)], "b": {"c": window, "d": "text"}}
    assert len(find(nested)) == 3
    for j, item in enumerate(items):
        assert pick(nested, j) == {"a": [item, (1, item)], "b": {"c": item, "d": "text"}}


@pytest.mark.parametrize("look", [lambda x: x.numpy(), lambda x: x[x > 0].shape, lambda x: (x > 0).nonzero().tolist()])
def test_what_lanes_cannot_share_is_the_first_ones(look):
    items = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0]), torch.tensor([1.0, 2.0])]
    window, lanes = window_of(items)
    assert np.array_equal(look(window), look(items[0]))
    assert lanes.count == 1


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like, lambda x: torch.bernoulli(x.abs().clamp(max=1))])
def test_random_numbers_are_drawn_once(draw):
    items = [torch.ones(3)] * 4
    window, _ = window_of(items)
    torch.manual_seed(0)
    expected, after = draw(items[0]), torch.get_rng_state()
    torch.manual_seed(0)
    drawn = draw(window)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(item, expected) for item in drawn.items)


def test_a_plain_tensor_that_is_written_to_keeps_the_first_lane():
    buffer, items = torch.zeros(4), list(randn(0, 3, 4, dtype=torch.float32))
    window, lanes = window_of(items)
    same = buffer
    buffer += window
    buffer[0] = 5.0
    assert torch.equal(buffer.items[2], torch.cat([torch.tensor([5.0]), items[2][1:]]))
    lanes.close()
    assert type(same) is torch.Tensor
    assert torch.equal(same, torch.cat([torch.tensor([5.0]), items[0][1:]]))


def test_closed_lanes_leave_plain_tensors_of_the_first():
    items = list(randn(0, 3, 4))
    window, lanes = window_of(items)
    kept = [window, 2 * window, window[1:]]
    lanes.close()
    for tensor, expected in zip(kept, [items[0], 2 * items[0], items[0][1:]], strict=True):
        assert type(tensor) is torch.Tensor
        assert vars(tensor) == {}
        assert torch.equal(tensor, expected)


MAKERS = {
    "tensor": lambda t: torch.tensor([t / 10]),
    "tensor of many": lambda t: torch.tensor([t] * 3, dtype=torch.float64),
    "as_tensor": lambda t: torch.as_tensor(t),
    "full": lambda t: torch.full((2, 2), t),
    "nothing of ours": lambda t: torch.tensor([1.0]) + t,
}


@pytest.mark.parametrize("name", MAKERS)
def test_tensors_can_be_made_of_window_tensors_in_lane_mode(name):
    items = [torch.tensor(float(k)) for k in range(3)]
    window, lanes = window_of(items)
    with LaneMode():
        made = MAKERS[name](window)
        for item, made_of in zip(made.items, items, strict=True):
            assert torch.equal(item, MAKERS[name](made_of))
        with WithoutLoopMode():
            assert type(torch.tensor([window])) is torch.Tensor
    assert lanes.count == 1  # for the look outside the mode


def test_watched_timesteps_take_part():
    items = [torch.tensor(k) for k in (30, 20)]
    window, lanes = window_of(items)
    watched = Timesteps.of(torch.tensor([30, 20, 10]), iter)
    found = (watched == window).nonzero()
    assert [item.tolist() for item in found.items] == [[[0]], [[1]]]
    assert lanes.count == 2
