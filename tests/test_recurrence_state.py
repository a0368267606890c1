"""The linear recurrence against a plain loop, the layout of a state, and when a change is within tolerance."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picardsolve.problem.chunked_recurrence import ChunkedRecurrence
from picardsolve.problem.recurrence import WIDE, linear_sweep, recurrence
from picardsolve.problem.state import Layout
from picardsolve.problem.tolerances import Tolerance

NAN, INF = float("nan"), float("inf")

# ---- the recurrence


@st.composite
def systems(draw, integers=True):
    """``a``, ``c`` and ``start`` of a narrow or a wide recurrence; of small integers every sum is exact."""
    steps, batch = draw(st.integers(1, 17)), draw(st.integers(1, 3))
    size = draw(st.sampled_from([1, 2, 5, -(-WIDE // batch)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(low, high, *shape):
        if integers:
            return torch.randint(low, high + 1, shape, generator=generator).double()
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    lead = draw(st.sampled_from([None, batch, 1]))
    a = None if lead is None else numbers(-2, 2, steps, lead, 1)
    start = numbers(-9, 9, batch, size) if draw(st.booleans()) else None
    return a, numbers(-9, 9, steps, batch, size), start


def solved(a, c, start=None):
    """The recurrence, which may overwrite what it is given."""
    return recurrence(a, c.clone(), start)


def plain_loop(a, c, start):
    y, rows = (torch.zeros_like(c[0]) if start is None else start), []
    for j in range(len(c)):
        y = (y if a is None else a[j] * y) + c[j]
        rows.append(y)
    return torch.stack(rows)


@settings(max_examples=80, deadline=None)
@given(systems())
def test_recurrence_is_the_plain_loop(system):
    before = [None if part is None else part.clone() for part in system]
    assert torch.equal(solved(*system), plain_loop(*system))
    for part, copy in zip(system, before, strict=True):
        assert part is copy or torch.equal(part, copy)  # nothing that was given is written to


@settings(max_examples=50, deadline=None)
@given(systems(integers=False))
def test_recurrence_is_the_plain_loop_to_rounding(system):
    expected = plain_loop(*system)
    scale = plain_loop(*(None if part is None else part.abs() for part in system))
    assert bool(((solved(*system) - expected).abs() <= 1e-14 * scale).all())


@pytest.mark.parametrize("size", [3, WIDE])
def test_both_branches_are_tested(size):
    """The narrow branch rounds as the wide one on integers, whatever the factors."""
    a, c = torch.full((6, 1, 1), -2.0), torch.ones(6, 1, size)
    assert solved(a, c)[:, 0, 0].tolist() == [1, -1, 3, -5, 11, -21]
    assert solved(None, c, 4 * c[0])[:, 0, -1].tolist() == [5, 6, 7, 8, 9, 10]


@settings(max_examples=50, deadline=None)
@given(systems(integers=False), st.data())
def test_zeros_stay_exact_up_to_the_first_increment(system, data):
    a, c, _ = system
    zeros = data.draw(st.integers(0, len(c)))
    c[:zeros] = 0
    y = solved(a, c, data.draw(st.sampled_from([None, torch.zeros_like(c[0])])))
    assert bool((y[:zeros] == 0).all())
    assert zeros == len(c) or torch.equal(y[zeros], c[zeros])


@pytest.mark.parametrize("size", [2, WIDE])
@pytest.mark.parametrize("factor", [1e3, 1e10, 1e20])
def test_zeros_stay_exact_under_factors_whose_product_overflows(size, factor):
    a, c = torch.full((16, 1, 1), factor), torch.zeros(16, 1, size)
    c[-1] = 1.0
    assert torch.equal(solved(a, c), c)


@settings(max_examples=50, deadline=None)
@given(systems(), st.data(), st.sampled_from([NAN, INF]))
def test_what_is_not_finite_does_not_reach_back(system, data, bad):
    a, c, start = system
    step = data.draw(st.integers(0, len(c) - 1))
    expected = plain_loop(a, c, start)
    c[step] = bad
    y = solved(a, c, start)
    assert torch.equal(y[:step], expected[:step])
    assert not bool(y[step].isfinite().any())


@settings(max_examples=50, deadline=None)
@given(systems())
def test_one_sample_does_not_touch_another(system):
    a, c, start = system
    expected = solved(a, c, start)
    c[:, 0] = NAN
    assert torch.equal(solved(a, c, start)[:, 1:], expected[:, 1:])


# ---- the recurrence in chunks, as devices solve it


@st.composite
def long_systems(draw):
    """``a`` and ``c``, of up to three levels of chunks."""
    steps, batch, size = draw(st.sampled_from([1, 2, 17, 64, 65, 200, 4100])), draw(st.integers(1, 2)), 2
    shape = draw(st.sampled_from([(1, 1), (batch, 1), (batch, size)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    a = torch.rand(steps, *shape, generator=generator, dtype=torch.float64) * 2 - 1
    return a, torch.rand(steps, batch, size, generator=generator, dtype=torch.float64) - 0.5


def in_chunks(a, c):
    return ChunkedRecurrence(a, c.numel())(c.clone())


@settings(max_examples=30, deadline=None)
@given(long_systems(), st.data())
def test_chunks_are_the_plain_loop_to_rounding(system, data):
    a, c = system
    zeros = data.draw(st.sampled_from([0, 1, len(c) // 2, len(c)]))
    c[:zeros] = 0
    y = in_chunks(a, c)
    assert bool(((y - plain_loop(a, c, None)).abs() <= 1e-14 * plain_loop(a.abs(), c.abs(), None)).all())
    assert bool((y[:zeros] == 0).all())


@pytest.mark.parametrize("steps", [16, 64, 65, 700])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("factor", [1.3, 2.0, -1e3, 1e20])
def test_zeros_stay_exact_in_chunks_under_factors_whose_product_overflows(steps, size, factor):
    a, c = torch.full((steps, 1, size), factor), torch.zeros(steps, 1, 2)
    c[-1] = 1.0
    assert torch.equal(in_chunks(a, c), c)


@settings(max_examples=30, deadline=None)
@given(long_systems(), st.data(), st.sampled_from([NAN, INF]))
def test_what_is_not_finite_does_not_reach_back_in_chunks_nor_to_another_sample(system, data, bad):
    a, c = system
    step = data.draw(st.integers(0, len(c) - 1))
    expected = in_chunks(a, c)
    c[step, 0] = bad
    y = in_chunks(a, c)
    assert torch.equal(y[:step], expected[:step])
    assert torch.equal(y[:, 1:], expected[:, 1:])
    assert not bool(y[step, 0].isfinite().any())


# ---- the sweep


@settings(max_examples=80, deadline=None)
@given(systems(), st.integers(0, 2**32))
def test_linear_sweep_is_the_formula(system, seed):
    factor, images, _ = system
    x = torch.randint(-9, 10, (len(images) + 1, *images.shape[1:]), generator=torch.Generator().manual_seed(seed))
    x = x.double()
    before = x.clone()
    y, change, residual = linear_sweep(images.clone(), factor, x, torch.empty_like(images))
    state = x[0]
    for n, image in enumerate(images):
        state = image + (1 if factor is None else factor[n]) * (state - x[n])
        assert torch.equal(y[n], state)
        assert torch.equal(change[n], state - x[n + 1])
        assert torch.allclose(residual[n], (image - x[n + 1]).square().mean(-1).sqrt())
    assert torch.equal(x, before)


@settings(max_examples=50, deadline=None)
@given(systems(integers=False), st.data())
def test_behind_states_that_did_not_change_the_sweep_gives_the_images(system, data):
    """Bit for bit: that makes the first k states of a window the sequential ones."""
    factor, images, _ = system
    x = data.draw(st.sampled_from([1e-8, 1.0, 1e8])) * torch.cat([images[:1], images]).roll(1, -1)
    fixed = data.draw(st.integers(0, len(images)))
    x[1 : fixed + 1] = images[:fixed]
    y, change, _ = linear_sweep(images.clone(), factor, x, torch.empty_like(images))
    assert torch.equal(y[: fixed + 1], images[: fixed + 1])
    assert bool((change[:fixed] == 0).all())


# ---- the layout

Pair = namedtuple("Pair", ["first", "second"])


def nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("zyxab"), inner, min_size=1, max_size=3),
            st.builds(Pair, inner, inner),
        ),
        max_leaves=5,
    )


def walk(make, structure):
    """Replace the leaves of a structure, in order, without the library's help. Shapes are `torch.Size`, so leaves."""
    if isinstance(structure, torch.Size | torch.Tensor):
        return make(structure)
    if isinstance(structure, dict):
        return {key: walk(make, value) for key, value in structure.items()}
    parts = [walk(make, part) for part in structure]
    return Pair(*parts) if isinstance(structure, Pair) else type(structure)(parts)


def same(one, other):
    """Whether type, structure, dtype and every bit are the same."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other) or len(one) != len(other):
        return False
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    return all(same(a, b) for a, b in zip(one, other, strict=True))


shapes = st.lists(st.integers(1, 3), max_size=3).map(torch.Size)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def filled(structure, lead, dtype):
    """A state whose numbers are all different: 1, 2, 3, ... in the order of its leaves."""
    seen = [0]

    def make(shape):
        count = torch.Size((*lead, *shape)).numel()
        seen[0] += count
        return torch.arange(seen[0] - count, seen[0]).reshape((*lead, *shape)).to(dtype)

    return walk(make, structure)


@settings(max_examples=80, deadline=None)
@given(nested(shapes), dtypes, st.integers(1, 3))
def test_a_batch_comes_back_as_it_was_packed(structure, dtype, batch):
    y0 = filled(structure, (batch,), dtype)
    layout = Layout.of(y0, 1)
    rows = layout.pack(y0)
    assert rows.shape == (layout.batch, layout.size) == (batch, layout.size)
    assert rows.dtype == layout.compute_dtype == torch.promote_types(dtype, torch.float32)
    assert same(layout.unpack(rows), y0)


@settings(max_examples=80, deadline=None)
@given(nested(shapes), dtypes)
def test_one_system_comes_back_as_it_was_packed(structure, dtype):
    y0 = filled(structure, (), dtype)
    layout = Layout.of(y0, 0)
    assert (layout.batch, layout.batched) == (1, False)
    packed = layout.pack(y0)
    assert packed.shape == (1, layout.size)
    assert same(layout.unpack(packed[0]), y0)


@settings(max_examples=50, deadline=None)
@given(nested(shapes), dtypes, st.integers(1, 4), st.sampled_from([0, 1]))
def test_a_path_is_time_first(structure, dtype, times, batch_dims):
    lead = (2,) * batch_dims
    layout = Layout.of(filled(structure, lead, dtype), batch_dims)
    states = [walk(lambda leaf, k=k: leaf + k, filled(structure, lead, dtype)) for k in range(times)]
    path = layout.unpack_path(torch.stack([layout.pack(state) for state in states]))
    for k, state in enumerate(states):
        assert same(walk(lambda leaf, k=k: leaf[k], path), state)


@settings(max_examples=50, deadline=None)
@given(nested(shapes), st.integers(2, 3))
def test_a_row_is_one_sample(structure, batch):
    """Changing one sample changes its row and no other."""
    y0 = filled(structure, (batch,), torch.float64)
    layout = Layout.of(y0, 1)
    other = walk(lambda leaf: torch.cat([leaf[:1] + 1, leaf[1:]]), y0)
    assert (layout.pack(y0) != layout.pack(other)).all(1).tolist() == [True] + [False] * (batch - 1)
    assert torch.equal(layout.pack(y0)[1:], layout.pack(other)[1:])


def test_views_and_strides_make_no_difference():
    y0 = torch.arange(12.0).reshape(3, 4).T
    layout = Layout.of(y0, 1)
    assert torch.equal(layout.pack(y0), y0.contiguous())
    assert torch.equal(layout.pack(torch.ones(1, 1).expand(4, 3)), torch.ones(4, 3))


# ---- the tolerance


@pytest.mark.parametrize(
    ("within", "given_"),
    [
        (True, {"change": 0.1, "atol": 0.1}),
        (True, {"change": -0.1, "atol": 0.1}),
        (False, {"change": 0.1001, "atol": 0.1}),
        (False, {"change": 0.1001, "atol": 0.1, "y": 1e9}),
        (True, {"change": 0.9, "rtol": 0.1, "y": 10.0}),
        (True, {"change": 0.9, "rtol": 0.1, "y": -10.0}),
        (False, {"change": 1.1, "rtol": 0.1, "y": 10.0}),
        (True, {"change": 1.9, "rtol": 0.1, "atol": 1.0, "y": 10.0}),
        (False, {"change": 2.1, "rtol": 0.1, "atol": 1.0, "y": 10.0}),
        (False, {"change": 1e-9, "rtol": 0.1, "y": 0.0}),
        (True, {"change": 0.0, "rtol": 0.1, "y": 0.0}),
        (True, {"change": 0.2, "noise": 2.0, "scale": 0.1}),
        (False, {"change": 0.21, "noise": 2.0, "scale": 0.1}),
        (True, {"change": 0.3, "noise": 2.0, "scale": 0.1, "atol": 0.1}),
        (True, {"change": 1.15, "noise": 2.0, "scale": 0.1, "rtol": 0.1, "y": 10.0}),
        (False, {"change": 1.25, "noise": 2.0, "scale": 0.1, "rtol": 0.1, "y": 10.0}),
        (False, {"change": 0.01, "noise": None, "scale": 0.1}),
        (False, {"change": 0.01, "noise": 0.0, "scale": 0.1}),
    ],
)
def test_what_is_allowed(within, given_):
    scale = given_.pop("scale", 0.0)
    change, y, noise = given_.pop("change"), given_.pop("y", 1.0), given_.pop("noise", None)
    fields = {**given_, "noise": scale}
    changes, states = (torch.full((1, 1, 4), value, dtype=torch.float64) for value in (change, y))
    std = None if noise is None else torch.tensor([[noise]], dtype=torch.float64)
    result, size = Tolerance(**fields).within(changes, states, std)
    assert result.tolist() == [[within]]
    assert float(size) == pytest.approx(abs(change))


def test_the_size_of_a_change_is_its_root_mean_square():
    change = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    for tolerance in (Tolerance(atol=3.6), Tolerance(atol=3.6, rtol=1e-9)):
        within, size = tolerance.within(change, torch.ones_like(change), None)
        assert size.tolist() == [[pytest.approx(12.5**0.5), 0.0]]
        assert within.tolist() == [[True, True]]  # in the mean, although one number moved by 4


def test_relative_means_relative_to_each_number():
    y = torch.tensor([[[1e6, 1e-6]]])
    assert Tolerance(rtol=1e-3).within(torch.tensor([[[1.0, 1e-10]]]), y, None)[0].tolist() == [[True]]
    assert Tolerance(rtol=1e-3).within(torch.tensor([[[0.0, 1e-8]]]), y, None)[0].tolist() == [[False]]


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 5),
    st.sampled_from([{}, {"rtol": torch.zeros(1)}, {"atol": torch.zeros(1)}, {"noise": torch.zeros(1)}]),
)
def test_zero_tolerance_allows_no_change_at_all(change, dtype, size, fields):
    fields = {name: value.to(dtype) for name, value in fields.items()}
    changes = torch.zeros(1, 1, size, dtype=dtype)
    changes[..., -1] = change
    for noise in (None, torch.ones(1, 1, dtype=dtype)):
        within, _ = Tolerance(**fields).within(changes, torch.ones_like(changes), noise)
        assert bool(within) == (change == 0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("fields", [{}, {"atol": 1e30}, {"rtol": 1e30}, {"atol": 1e30, "rtol": 1.0, "noise": 1e30}])
@pytest.mark.parametrize("state", [1.0, "bad"])
def test_what_is_not_finite_is_never_within(bad, fields, state):
    change = torch.zeros(1, 1, 3, dtype=torch.float64)
    y, noise = torch.ones_like(change), torch.ones(1, 1, dtype=torch.float64)
    assert Tolerance(**fields).within(change, y, noise)[0].tolist() == [[True]]
    change[0, 0, 1] = bad
    y[0, 0, 1] = bad if state == "bad" else state
    assert Tolerance(**fields).within(change, y, noise)[0].tolist() == [[False]]


def test_a_nan_is_never_within_an_infinite_tolerance():
    change = torch.full((1, 1, 1), NAN)
    for fields in ({"atol": INF}, {"atol": INF, "rtol": 1.0}):
        assert Tolerance(**fields).within(change, torch.ones_like(change), None)[0].tolist() == [[False]]


def test_a_nan_is_not_within_for_its_own_step_and_sample_only():
    change = torch.zeros(3, 2, 4)
    change[1, 0, 2] = NAN
    for tolerance in (Tolerance(atol=0.1), Tolerance(atol=0.1, rtol=0.1)):
        within, _ = tolerance.within(change, change.clone(), None)
        assert within.tolist() == [[True, True], [False, True], [True, True]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.2]), st.booleans())
def test_each_sample_is_judged_by_its_own_tolerance(seed, rtol, scale, noisy):
    """Tensors of shape (B,) give what B calls with numbers give."""
    generator = torch.Generator().manual_seed(seed)
    change, y = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    noise = torch.rand(5, 3, generator=generator, dtype=torch.float64) if noisy else None
    factor = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    tensors = Tolerance(atol=0.8 * factor, rtol=rtol * factor, noise=scale * factor)
    within, size = tensors.within(change, y, noise)
    assert within.shape == size.shape == (5, 3)
    for s, f in enumerate(factor.tolist()):
        single = Tolerance(atol=0.8 * f, rtol=rtol * f, noise=scale * f)
        sample = slice(s, s + 1)
        expected = single.within(change[:, sample], y[:, sample], None if noise is None else noise[:, sample])
        assert torch.equal(within[:, sample], expected[0])
        torch.testing.assert_close(size[:, sample], expected[1])


def test_only_one_tolerance_may_be_per_sample():
    change = torch.full((1, 2, 3), 0.1, dtype=torch.float64)
    per_sample = torch.tensor([0.0, 0.2], dtype=torch.float64)
    for fields in ({"atol": per_sample}, {"rtol": per_sample}, {"atol": per_sample, "rtol": 0.0}):
        within, _ = Tolerance(**fields).within(change, torch.ones_like(change), None)
        assert within.tolist() == [[False, True]]


def test_judging_changes_nothing():
    change, y, noise = torch.ones(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1)
    Tolerance(atol=0.1, rtol=0.1, noise=0.1).within(change, y, noise)
    assert all(bool((tensor == 1).all()) for tensor in (change, y, noise))
