"""The rounds of a solve are given back as they were noted."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from picardsolve.results.history import History


@st.composite
def rounds(draw, samples: int) -> dict:
    gen, width = np.random.default_rng(draw(st.integers(0, 99))), draw(st.integers(1, 9))
    shape = width, samples
    return {
        "counts": tuple(gen.integers(0, 50, (3, samples))),
        "increments": gen.standard_normal(shape),
        "residuals": gen.standard_normal(shape).astype(np.float32) if draw(st.booleans()) else None,
        "estimates": tuple(gen.standard_normal((3, *shape))) if draw(st.booleans()) else None,
        "step": gen.integers(0, 99, shape) if draw(st.booleans()) else None,
    }


def check(history: History, noted: list[dict]) -> None:
    assert len(history) == len(noted)
    for record, given_ in zip(history, noted, strict=True):
        for got, put in zip((record.begin, record.stride, record.width), given_["counts"], strict=True):
            assert got.tolist() == put.tolist()
        pairs = [(record.increments, given_["increments"]), (record.residuals, given_["residuals"])]
        pairs += [(record.step, given_["step"])]
        estimates = record.estimates
        if given_["estimates"] is None:
            assert estimates is None
        else:
            assert estimates is not None
            pairs += zip((estimates.excess, estimates.ratios, estimates.slopes), given_["estimates"], strict=True)
        for got, put in pairs:
            assert (got is None) == (put is None)
            assert got is None or torch.equal(got, torch.from_numpy(put).to(got.dtype))


@given(st.data())
def test_rounds_come_back_as_they_were_noted(data):
    """Whatever they have, also behind those of another solve."""
    samples = data.draw(st.integers(1, 4))
    first, second = (data.draw(st.lists(rounds(samples), max_size=6)) for _ in range(2))
    history, other = History(), History()
    for into, noted in ((history, first), (other, second)):
        for one in noted:
            into.append(**one)
    check(history, first)
    history.extend(other)
    check(history, first + second)
    check(other, second)
    if first + second:
        assert history[-1].increments.equal(history[len(history) - 1].increments)
        assert [r.begin.tolist() for r in history[1:3]] == [r.begin.tolist() for r in list(history)[1:3]]
        history.accept_last()
        assert history[-1].stride.equal(history[-1].width)


def test_rounds_share_few_arrays():
    """Small ones of their own would lie between the large ones of every round, and split the memory that they free."""
    history, counts = History(), tuple(np.ones((3, 4), dtype=np.int64))
    for _ in range(300):
        history.append(counts, np.ones((50, 4)), np.ones((50, 4)), tuple(np.ones((3, 50, 4))))
    begin = history._norms.ctypes.data
    assert all(begin <= record.increments.data_ptr() < begin + history._norms.nbytes for record in history)
