"""Makes `tests/data/references.json`: run by hand, ``python tests/references.py [name ...]``; no test runs it.

Each problem is solved twice in 80-bit arithmetic (`numpy.longdouble`, x86 only) by collocation: on Radau's nodes, and
on Gauss's with another number of nodes and another step control. How far the two are apart is the accuracy that is
stored. The right-hand sides are the very functions that the tests solve: `Long` has torch act on numpy's arrays.
"""

import json
import operator
import sys
import time
from dataclasses import dataclass

import mpmath
import numpy as np
import torch
from problems import DATA, PROBLEMS, REFERENCES, Problem

long = np.longdouble
UNIT = float(np.finfo(long).eps)
NUMPY = {
    "stack": lambda parts, dim: np.stack(parts, dim),
    "cat": lambda parts, dim: np.concatenate(parts, dim),
    "roll": lambda x, shift, dim: np.roll(x, shift, dim),
    "to": lambda x, like: x,
    "tensor_pow": operator.pow,
}


def raw(value):
    if isinstance(value, list | tuple):
        return [raw(each) for each in value]
    if isinstance(value, torch.Tensor):
        return value.numpy().astype(long)
    return value.array if isinstance(value, Long) else value


class Long:
    """An 80-bit array that torch's functions take for a tensor."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = function.__name__
        act = NUMPY.get(name) or getattr(np, name, None) or getattr(operator, name)
        return cls(act(*map(raw, args), **(kwargs or {})))

    @property
    def T(self):
        return Long(self.array.T)

    def __getitem__(self, index):
        return Long(self.array[index])

    def unbind(self, dim):
        return [Long(each) for each in np.moveaxis(self.array, dim, 0)]

    def sum(self, dim):
        return Long(self.array.sum(dim))

    def __neg__(self):
        return Long(-self.array)


for name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    act = getattr(operator, name)
    setattr(Long, f"__{name}__", lambda a, b, act=act: Long(act(a.array, raw(b))))
    setattr(Long, f"__r{name}__", lambda a, b, act=act: Long(act(raw(b), a.array)))


# ---- collocation


@dataclass(frozen=True)
class Nodes:
    """Nodes in (0, 1), integration matrices to them and to 1, and that from nodal values to Legendre coefficients."""

    at: np.ndarray
    to_nodes: np.ndarray
    to_end: np.ndarray
    legendre: np.ndarray
    count: int


def nodes(count: int, family: str) -> Nodes:
    """Gauss: zeros of P_n. Radau: zeros of P_n - P_{n-1}, the last of them 1. In 50 digits, then rounded."""
    mpmath.mp.dps = 50
    power = [mpmath.taylor(lambda x, n=n: mpmath.legendre(n, x), 0, n)[::-1] for n in range(count + 1)]
    polynomial = power[count]
    if family == "radau":
        polynomial = [a - b for a, b in zip(power[count], [mpmath.mpf(0), *power[count - 1]], strict=True)]
    x = sorted(mpmath.re(root) for root in mpmath.polyroots(polynomial, maxsteps=500, extraprec=400))
    values = mpmath.matrix(count, count)  # of P_j at x_i
    integrals = mpmath.matrix(count + 1, count)  # of P_j from -1 to x_i, and to 1
    for j in range(count):
        for i, place in enumerate([*x, mpmath.mpf(1)]):
            if i < count:
                values[i, j] = mpmath.polyval(power[j], place)
            after, before = mpmath.polyval(power[j + 1], place), mpmath.polyval(power[j - 1], place) if j else -1
            integrals[i, j] = (after - before) / (2 * j + 1) if j else place + 1
    legendre = values**-1
    integrate = integrals * legendre / 2

    def rounded(matrix) -> np.ndarray:
        return np.array([[long(mpmath.nstr(matrix[i, j], 30)) for j in range(matrix.cols)] for i in range(matrix.rows)])

    integrate = rounded(integrate)
    at = np.array([long(mpmath.nstr((place + 1) / 2, 30)) for place in x])
    return Nodes(at, integrate[:count], integrate[count], rounded(legendre), count)


def evaluate(f, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    return f(Long(t[:, None]), Long(y)).array


def newton_solve(problem: Problem, t: np.ndarray, y: np.ndarray, step: np.ndarray, set_: Nodes):
    """Solves with the Newton matrix in double precision, which is enough: the residual is in 80 bits."""
    count, d = y.shape
    jacobian = torch.func.vmap(torch.func.jacfwd(problem.f, argnums=1))(
        torch.tensor(t[:, None].astype(float)), torch.tensor(y.astype(float))
    ).numpy()
    matrix = np.einsum("ij,jkl->ikjl", float(step) * set_.to_nodes.astype(float), jacobian)
    inverse = np.linalg.inv(np.eye(count * d) - matrix.reshape(count * d, count * d))
    return lambda residual: (inverse @ residual.astype(float).ravel()).reshape(count, d)


def segment(problem: Problem, start: np.ndarray, t0, step, set_: Nodes, scale: np.ndarray):
    """Nodal and end values of one step, or None where the iteration fails."""
    t = t0 + step * set_.at
    y = np.repeat(start[None], set_.count, 0)
    newton, last, stalls = len(start) <= 12, np.inf, 0
    for round_ in range(200):
        drift = evaluate(problem.f, t, y)
        residual = start + step * (set_.to_nodes @ drift) - y
        if newton and round_ < 8:
            solve = newton_solve(problem, t, y, step, set_)
        change = solve(residual) if newton else residual
        y = y + change
        size = float(np.max(np.abs(change) / scale))
        if not np.isfinite(size) or size > 1e6:
            return None
        stalls += size > 0.5 * last
        if size < 4 * UNIT or (stalls >= 3 and size < 1e-16):
            drift = evaluate(problem.f, t, y)
            return y, start + step * (set_.to_end @ drift)
        if stalls >= 5:
            return None
        last = size
    return None


def solve(problem: Problem, y0: np.ndarray, set_: Nodes, tail: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The state at the end, the largest magnitudes, and the number of steps.

    A step stands where the last two Legendre coefficients of the state, relative to its largest values so far, are
    below ``tail``: the end values are good to about its square where no stiffness holds that back.
    """
    t, t1 = long(problem.span[0]), long(problem.span[1])
    y, largest, taken = y0.astype(long), np.abs(y0).astype(long), 0
    step = (t1 - t) * long(1e-3 if not problem.stiff else 1e-9)
    while t < t1:
        step = min(step, t1 - t)
        first = np.abs(evaluate(problem.f, np.array([t]), y[None])[0]) * step
        scale = np.maximum(largest, np.minimum(first, 1e3 * largest.max())) + long(1e-30)
        found = segment(problem, y, t, step, set_, scale)
        if found is None:
            step = step / 3
            continue
        inside, end = found
        scale = np.maximum(scale, np.abs(inside).max(0))
        ratio = float(np.max(np.abs(set_.legendre[-2:] @ inside) / scale)) / tail
        if ratio > 1:
            step = step * max(0.3, 0.8 * ratio ** (-1 / (set_.count - 2)))
            continue
        t, y, taken = (t1 if t + step >= t1 else t + step), end, taken + 1
        largest = np.maximum(largest, np.abs(inside).max(0))
        step = step * min(2.0, 0.8 * max(ratio, 1e-30) ** (-1 / (set_.count - 2)))
    return y, largest, taken


def reference(problem: Problem) -> tuple[dict, str]:
    """What is stored, and what is printed."""
    y0 = problem.y0.numpy().astype(long)
    tails = (1e-16, 1e-17) if problem.stiff else (1e-13, 1e-14)
    first, largest, taken = solve(problem, y0, RADAU, tails[0])
    second, _, more = solve(problem, y0, GAUSS, tails[1])
    apart = float(np.max(np.abs(first - second) / largest))
    moved = np.random.RandomState(0).standard_normal(len(y0)) * largest
    moved = moved * (long(1e-9) / np.max(np.abs(moved) / largest))
    third, _, _ = solve(problem, y0 + moved, RADAU, tails[0])
    growth = float(np.max(np.abs(third - first) / largest)) / 1e-9
    return {
        "accuracy": float(f"{max(apart, 1.2e-16):.1e}"),
        "growth": float(f"{growth:.1e}"),
        "state": [float(each) for each in second],
        "scale": [float(f"{each:.2e}") for each in largest.astype(float)],
    }, f"apart {apart:.1e}, growth {growth:.1g}, {taken} and {more} steps"


RADAU, GAUSS = nodes(15, "radau"), nodes(18, "gauss")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or [name for name in PROBLEMS if name not in REFERENCES]:
        began = time.perf_counter()
        REFERENCES[name], report = reference(PROBLEMS[name])
        print(f"{name}: {report}, {time.perf_counter() - began:.0f} s", flush=True)
        DATA.parent.mkdir(exist_ok=True)
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in REFERENCES.items() if key in PROBLEMS]
        DATA.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
