"""Discrete chains of the user's own, solved by the machinery of `solve`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from picardsolve.fixed_point.guesses import Guess
from picardsolve.fixed_point.iterations import Method
from picardsolve.integrators.map_steps import MapSteps
from picardsolve.problem.checks import check_positive_integer
from picardsolve.problem.map import Map
from picardsolve.results.solution import Solution
from picardsolve.solve import Save, solve


def solve_chain(
    step: Callable[..., Any],
    x0: Any,
    n_steps: int,
    *,
    vectorized: bool = True,
    iteration: Method | None = None,
    guess: Guess | Callable[[Tensor, Any], Any] | None = None,
    window: int | Literal["auto"] | None = None,
    tol: float | Tensor | None = None,
    rtol: Any = None,
    atol: Any = None,
    args: Sequence[Any] = (),
    batch_dims: int | None = None,
    max_batch: int | None = None,
    max_rounds: int | None = None,
    save: Save = "all",
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Solve a chain of your own, ``x[n + 1] = step(n, x[n])``, a window of steps at a time.

        cell, inputs = torch.nn.GRUCell(8, 16), torch.randn(1000, 8)
        sol = ps.solve_chain(lambda n, h: cell(inputs[n], h), torch.zeros(16), 1000, window=1000)   # sol.ys: (1001, 16)

    A recurrent network, or moves of a sampler whose noise was drawn before: ``noise[n]``. The step has one value at one
    state. Arguments that are not described here are those of `solve`, and so are the gradients, with respect to x0,
    args and what the step closes over. See docs/chains.md. Newton's method on discrete chains: Lim et al. 2024 (DEER),
    Gonzalez et al. 2024.

    Args:
        step: called as ``step(n, x, *args)``. With ``vectorized=True`` it gets many states at once: ``x`` of shape
            ``(rows, *state)`` and the numbers ``n`` of their steps, ``(rows,)`` int64, by which inputs and noise are
            indexed. It returns the shape of ``x``.
        x0: first state, as ``y0`` of `solve`.
        n_steps: number of steps, at least 1.
        vectorized: False: the step is written for one state and a 0-d ``n``, and is lifted by ``torch.func.vmap``.
        iteration: by default `Newton` with the whole Jacobian for states of at most 64 numbers, else `Secant`. `Newton`
            needs a step that `torch.func.jvp` differentiates; `Jacobi` and `Secant` need nothing.
        guess: as for `solve`; copies of the last state by default.
        window: number of steps solved at once; by default as many as a few million numbers hold, for every window
            takes as many rounds, however long it is. 1 takes one step after the other; "auto" as for `solve`.
        tol: of the distance to the loop, relative to ``1 + |x|`` elementwise; 1e-5 by default, more in half precision.
            A step that jumps, such as one that accepts or rejects, needs 0 to be sure: where a state is within the
            tolerance of a jump, it may take the other side.
        rtol: as for `solve`.
        atol: as for `solve`.
        args: passed to the step after ``n, x``; with ``batch_dims=1`` tensors hold an entry per sample.
        batch_dims: 1: ``x0[i]`` are independent samples. 0, the default: one system.
        max_batch: as for `solve`.
        max_rounds: as for `solve`.
        save: as for `solve`.
        progress: as for `solve`.
        throw: as for `solve`.

    Returns:
        A `Solution`; its ``ts`` are the numbers of the states, 0 to ``n_steps``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a wrong value or shape, or the step breaks its contract, or `Newton` cannot
            differentiate it.
        SolveError: a state is not finite, or ``max_rounds`` was reached. It carries the partial solution.
    """
    check_positive_integer("n_steps", n_steps)
    with _named_x0():
        return solve(
            Map(step, vectorized),
            x0,
            torch.arange(n_steps + 1, dtype=torch.float64),
            integrator=MapSteps(),
            iteration=iteration,
            guess=guess,
            window=window,
            tol=tol,
            rtol=rtol,
            atol=atol,
            certify=True,
            args=args,
            batch_dims=batch_dims,
            max_batch=max_batch,
            max_rounds=max_rounds,
            save=save,
            progress=progress,
            throw=throw,
        )


@contextmanager
def _named_x0() -> Iterator[None]:
    """In messages about the first state, call it what it is called here."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not str(error).startswith("y0: "):
            raise
        raise type(error)(str(error).replace("y0", "x0")) from None
