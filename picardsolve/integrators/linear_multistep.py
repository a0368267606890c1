"""The linear multistep step, shared by diffusion samplers, plans of robots and the tables of schedulers."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Visit: TypeAlias = tuple[Tensor, Tensor]  # the state and the output at one step, (B, D) each


def linear_multistep(
    p: Sequence[Tensor | None],
    x: Tensor,
    q: Sequence[Tensor | None],
    outputs: Tensor,
    *inputs: tuple[Tensor, Tensor | None],
    past: Sequence[Visit] = (),
) -> Tensor:
    """All steps of a window, each from its own state.

    ``x'[j] = sum_k p[k][j] x[j - k] + sum_k q[k][j] outputs[j - k] + sum_i weight_i[j] input_i[j]``.

    Args:
        p: weights ``(W, B or 1, 1)`` of the state and of the states before it; None for zero, but not at ``p[0]``.
        x: ``(W, B, D)`` states that the steps leave from.
        q: weights of the output and of the outputs before it, in the same way.
        outputs: ``(M + W, B, D)``: the outputs of the M steps before the window, then those of the window.
        *inputs: further pairs of a weight and a tensor ``(W, B, D)``, such as the noise; a tensor None is skipped.
        past: what precedes ``x`` and ``outputs``, the latest last. What is older counts as zero.

    Returns:
        The step map's values, ``(W, B, D)``, in memory of their own.
    """
    assert p[0] is not None
    values = p[0] * x
    _add_history(values, q, outputs, [output for _, output in past])
    _add_history(values, [None, *p[1:]], x, [state for state, _ in past])
    for weight, given in inputs:
        if given is not None:
            values.addcmul_(weight, given)
    return values


def linear_multistep_alone(
    p: Sequence[float], q: Sequence[float], visits: Sequence[Visit], *inputs: tuple[float, Tensor | None], out: Tensor
) -> Tensor:
    """One step from the latest of ``visits``, with numbers as weights; written to ``out``, ``(B, D)``."""
    torch.mul(visits[-1][0], p[0], out=out)
    out.add_(visits[-1][1], alpha=q[0])
    for age in range(1, min(len(p), len(visits))):
        state, output = visits[-1 - age]
        out.add_(state, alpha=p[age]).add_(output, alpha=q[age])
    for weight, given in inputs:
        if given is not None:
            out.add_(given, alpha=weight)
    return out


def _add_history(total: Tensor, weights: Sequence[Tensor | None], values: Tensor, past: Sequence[Tensor]) -> None:
    """Add ``sum_k weights[k][j] values[known + j - k]`` to ``total[j]``, where ``known`` values precede the window."""
    rows, most = total.shape[0], values.shape[0]  # len() of a tensor takes a microsecond
    known, earlier = most - rows, None
    for age, weight in enumerate(weights):
        if weight is None:
            continue
        missing = min(max(0, age - known), rows)  # the first rows, whose value is in `past`
        if missing < rows:
            whole = not (missing or age or known)
            part, factor, terms = total, weight, values
            if not whole:
                part, factor, terms = total[missing:], weight[missing:], values[known + missing - age : most - age]
            part.addcmul_(factor, terms)
        oldest = max(0, age - known - len(past))  # what precedes the past counts as zero
        if oldest < missing:
            earlier = torch.stack(list(past)) if earlier is None else earlier
            begin = len(past) + known + oldest - age
            total[oldest:missing].addcmul_(weight[oldest:missing], earlier[begin : begin + missing - oldest])
