"""Makes `tests/data/references.json`: run by hand, ``python tests/references.py [name ...]``; no test runs it.

Each problem is solved twice in 80-bit arithmetic (`numpy.longdouble`, x86 only) by collocation on Gauss's or Radau's
nodes, with two numbers of nodes and two step controls. How far the two are apart is the accuracy that is stored. The
right-hand sides are the very functions that the tests solve: `Long` has torch act on numpy's arrays.
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
mpmath.mp.dps = 50
TINY = long(1e-300)
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


def gauss(count: int) -> Nodes:
    """At the zeros of P_n."""
    return nodes(legendre(count), count)


def radau(count: int) -> Nodes:
    """At the zeros of P_n - P_{n-1}, the last of which is 1."""
    lower = [mpmath.mpf(0), *legendre(count - 1)]
    return nodes([a - b for a, b in zip(legendre(count), lower, strict=True)], count)


def legendre(degree: int) -> list:
    """Coefficients of P_n, the highest power first."""
    return mpmath.taylor(lambda x: mpmath.legendre(degree, x), 0, degree)[::-1]


def nodes(polynomial: list, count: int) -> Nodes:
    """By integrals of the Legendre series through nodal values, in 50 digits, then rounded."""
    places = sorted(mpmath.re(root) for root in mpmath.polyroots(polynomial, maxsteps=500, extraprec=400))
    basis = [legendre(degree) for degree in range(count + 1)]
    values, integrals = mpmath.matrix(count, count), mpmath.matrix(count + 1, count)
    for j in range(count):
        for i, place in enumerate([*places, mpmath.mpf(1)]):
            if i < count:
                values[i, j] = mpmath.polyval(basis[j], place)
            before = mpmath.polyval(basis[j - 1], place) if j else -1
            integrals[i, j] = (mpmath.polyval(basis[j + 1], place) - before) / (2 * j + 1)
    to_legendre = values**-1
    integrate = rounded(integrals * to_legendre / 2)
    at = rounded(mpmath.matrix([(place + 1) / 2 for place in places]))[:, 0]
    return Nodes(at, integrate[:count], integrate[count], rounded(to_legendre), count)


def rounded(matrix: mpmath.matrix) -> np.ndarray:
    return np.array([[long(mpmath.nstr(each, 30)) for each in row] for row in matrix.tolist()])


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


def segment(problem: Problem, start: np.ndarray, t0, step, set_: Nodes, largest: np.ndarray):
    """Nodal and end values of one step, by Newton to 12 dimensions, by Picard above; None where that fails."""
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
        size = float(np.max(np.abs(change) / np.maximum(np.maximum(largest, np.abs(y).max(0)), TINY)))
        if not np.isfinite(size):
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
        found = segment(problem, y, t, step, set_, largest)
        if found is None:
            step = step / 3
            continue
        inside, end = found
        scale = np.maximum(np.maximum(largest, np.abs(inside).max(0)), TINY)
        ratio = float(np.max(np.abs(set_.legendre[-2:] @ inside) / scale)) / tail
        if ratio > 1:
            step = step * max(0.3, 0.8 * ratio ** (-1 / (set_.count - 2)))
            continue
        t, y, taken = (t1 if t + step >= t1 else t + step), end, taken + 1
        largest = scale
        step = step * min(2.0, 0.8 * max(ratio, 1e-30) ** (-1 / (set_.count - 2)))
    return y, largest, taken


def reference(problem: Problem) -> tuple[dict, str]:
    """What is stored, and what is printed."""
    y0 = problem.y0.numpy().astype(long)
    (nodes, tail), other = STIFF if problem.stiff else PLAIN
    first, largest, taken = solve(problem, y0, nodes, tail)
    second, _, more = solve(problem, y0, *other)
    apart = float(np.max(np.abs(first - second) / largest))
    moved = np.random.RandomState(0).standard_normal(len(y0)) * largest
    moved = moved * (long(1e-9) / np.max(np.abs(moved) / largest))
    third, _, _ = solve(problem, y0 + moved, nodes, tail)
    growth = float(np.max(np.abs(third - first) / largest)) / 1e-9
    return {
        "accuracy": float(f"{max(apart, 1.2e-16):.1e}"),
        "growth": float(f"{growth:.1e}"),
        "state": [float(each) for each in second],
        "scale": [float(f"{each:.2e}") for each in largest.astype(float)],
    }, f"apart {apart:.1e}, growth {growth:.1g}, {taken} and {more} steps"


PLAIN = (radau(15), 1e-13), (gauss(18), 1e-14)
STIFF = (radau(15), 1e-15), (radau(11), 1e-16)  # Gauss's are not damped, and round-off is near


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
