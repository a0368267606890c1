"""The bank of ODE problems: initial values, spans, solutions. References: `tests/data/references.json`.

`tests/references.py` made those in 80-bit arithmetic; it is run by hand. Whoever chooses a constant of a solver may
look at every problem but the ``unseen`` ones. All are chosen to be solved in a second or so by scipy.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import closed_forms
import equations as eq
import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data" / "references.json"
REFERENCES = json.loads(DATA.read_text()) if DATA.exists() else {}


@dataclass(frozen=True)
class Problem:
    """y' = f(t, y) with y(span[0]) = y0.

    Attributes:
        name: What the tests call it.
        f: Takes t ``(rows, 1)`` and y ``(rows, d)``, any one float dtype, and returns ``(rows, d)``.
        y0: ``(d,)``, float64.
        span: First and last time.
        source: Where the equations and constants are from; what was chosen here is said here.
        exact: Times ``(n,)`` to states ``(n, d)``, in numpy, where there is a closed form.
        acceleration: q'' = acceleration(t, q), where y = (q, v) and f is made from it.
        stiff: An explicit method's step is held down by stability, not by accuracy.
        unseen: No constant may be chosen by it.
        pole: Where the solution ends, past the span.
        remark: What a solver finds hard in it.
    """

    name: str
    f: eq.Field = field(repr=False)
    y0: Tensor = field(repr=False)
    span: tuple[float, float]
    source: str = field(repr=False)
    exact: closed_forms.Exact | None = field(default=None, repr=False)
    acceleration: eq.Field | None = field(default=None, repr=False)
    stiff: bool = False
    unseen: bool = False
    pole: float | None = None
    remark: str = ""

    @property
    def y1(self) -> Tensor:
        """The state at the end of the span, ``(d,)`` float64."""
        return torch.tensor(REFERENCES[self.name]["state"], dtype=torch.float64)

    @property
    def scale(self) -> Tensor:
        """The largest magnitude of each component over the span, ``(d,)``, to three digits."""
        return torch.tensor(REFERENCES[self.name]["scale"], dtype=torch.float64)

    @property
    def accuracy(self) -> float:
        """How far `y1` may be off in any component, relative to `scale`: from 1.2e-16, half a last digit."""
        return REFERENCES[self.name]["accuracy"]

    @property
    def growth(self) -> float:
        """What the span made of one small random change of y0, both measured relative to `scale`."""
        return REFERENCES[self.name]["growth"]


def second_order(name, acceleration, q0, v0, span, source, **more) -> Problem:
    y0 = eq.constant([*q0, *v0])
    return Problem(name, eq.first_order(acceleration), y0, span, source, acceleration=acceleration, **more)


def state(*values: float) -> Tensor:
    return eq.constant(values)


# ---- with a closed form


def dahlquist(name: str, rate: complex, t1: float, **more) -> Problem:
    solution = closed_forms.dahlquist(rate, 1 + 0j)
    return Problem(name, eq.dahlquist(rate), state(1, 0), (0, t1), f"Dahlquist 1963, rate {rate}", solution, **more)


def kepler(name: str, eccentricity: float, t1: float) -> Problem:
    e = eccentricity
    return second_order(
        name,
        eq.kepler,
        (1 - e, 0),
        (0, math.sqrt((1 + e) / (1 - e))),
        (0, t1),
        f"DETEST D1-D5 (Hull et al. 1972), eccentricity {e}",
        exact=closed_forms.kepler(e),
    )


def prothero_robinson(name: str, rate: float, stiff: bool) -> Problem:
    source = f"Prothero & Robinson 1974, to cos(t) at rate {rate:g}"
    return Problem(
        name, eq.prothero_robinson(rate), state(1), (0, 10), source, closed_forms.scalar(np.cos), stiff=stiff
    )


def linear10() -> Problem:
    matrix = eq.normal(0, 10, 10) / math.sqrt(10) - 0.5 * torch.eye(10, dtype=torch.float64)
    y0 = eq.normal(1, 10)
    solution = closed_forms.linear(matrix.numpy(), y0.numpy())
    return Problem("linear10", eq.linear(matrix), y0, (0, 5), "diffrax's order test, normal entries - I/2", solution)


def pendulum() -> Problem:
    start, solution = 2 * math.asin(0.8), closed_forms.pendulum(0.8)
    return second_order(
        "pendulum", eq.pendulum, (start,), (0,), (0, 20), "textbook, from rest, modulus 0.8", exact=solution
    )


def heat() -> Problem:
    places = torch.arange(1, 33, dtype=torch.float64) / 33
    y0 = torch.exp(-100 * (places - 0.4) ** 2)
    return Problem(
        "heat", eq.heat, y0, (0, 0.5), "method of lines, 32 points, a bump", closed_forms.heat(y0.numpy()), stiff=True
    )


def gaussian_flow() -> Problem:
    deviations, y0, t = state(2, 0.5, 0.1), state(1.0, -0.5, 1.5), 5.0
    return Problem(
        "gaussian_flow",
        eq.gaussian_flow(deviations, t),
        y0,
        (0, t),
        "Song et al. 2021, eq. 13, variance-preserving, data N(0, s^2), from noise to data",
        closed_forms.gaussian_flow(deviations.numpy(), t, y0.numpy()),
    )


def mixture_flow() -> Problem:
    mixture = (state(0.3, 0.7), state(-1, 1), state(0.2, 0.3))
    y0, t = state(-1.5, -0.6, -0.2, 0.4, 1.2), 3.0
    return Problem(
        "mixture_flow",
        eq.mixture_flow(*mixture, t),
        y0,
        (0, t),
        "Song et al. 2021, eq. 13, five starts in one dimension, two modes",
        closed_forms.mixture_flow(*(part.numpy() for part in mixture), t, y0.numpy()),
    )


CLOSED = (
    dahlquist("dahlquist", -0.5 + 2j, 10),
    dahlquist("dahlquist_growing", 0.5 + 1j, 10),
    dahlquist("dahlquist_fast", 100j, 6, remark="95 turns"),
    dahlquist("dahlquist_stiff", -1000 + 1j, 1, stiff=True),
    Problem(
        "cubic_decay",
        eq.cubic_decay,
        state(1),
        (0, 20),
        "DETEST A2",
        closed_forms.scalar(lambda t: (1 + t) ** -0.5),
    ),
    Problem(
        "cosine_growth",
        eq.cosine_growth,
        state(1),
        (0, 20),
        "DETEST A3",
        closed_forms.scalar(lambda t: np.exp(np.sin(t))),
    ),
    Problem(
        "logistic",
        eq.logistic,
        state(1),
        (0, 20),
        "DETEST A4",
        closed_forms.scalar(lambda t: 20 / (1 + 19 * np.exp(-t / 4))),
    ),
    Problem(
        "sine",
        eq.sine,
        eq.constant(closed_forms.sine(np.ones(1))),
        (1, 8),
        "torchdiffeq tests/problems.py",
        closed_forms.scalar(closed_forms.sine),
    ),
    linear10(),
    kepler("kepler_0.1", 0.1, 20),
    kepler("kepler_0.3", 0.3, 20),
    kepler("kepler_0.5", 0.5, 20),
    kepler("kepler_0.7", 0.7, 20),
    kepler("kepler_0.9", 0.9, 20),
    kepler("kepler_0.3_ten", 0.3, 20 * math.pi),
    kepler("kepler_0.7_ten", 0.7, 20 * math.pi),
    Problem("rigid_body", eq.rigid_body, state(0, 1, 1), (0, 20), "DETEST B5", closed_forms.rigid_body),
    pendulum(),
    prothero_robinson("prothero_robinson", -1, stiff=False),
    prothero_robinson("prothero_robinson_1e3", -1e3, stiff=True),
    prothero_robinson("prothero_robinson_1e6", -1e6, stiff=True),
    Problem(
        "blow_up",
        eq.blow_up,
        state(1),
        (0, 0.99),
        "textbook",
        closed_forms.scalar(lambda t: 1 / (1 - t)),
        pole=1.0,
        remark="asked past the pole, a solver must say where it stopped",
    ),
    heat(),
    gaussian_flow(),
    mixture_flow(),
)


# ---- others that anyone may tune on


def van_der_pol(name: str, mu: float, t1: float, **more) -> Problem:
    return Problem(name, eq.van_der_pol(mu), state(2, 0), (0, t1), f"van der Pol 1926, mu {mu:g}", **more)


def kuramoto() -> Problem:
    frequencies = torch.linspace(-1, 1, 30, dtype=torch.float64)
    source = "Kuramoto 1975, 30 oscillators, coupling 2, frequencies -1 to 1"
    return Problem("kuramoto", eq.kuramoto(frequencies), 2 * eq.normal(2, 30), (0, 20), source)


def mlp() -> Problem:
    first, second = eq.normal(3, 64, 32) / math.sqrt(32), eq.normal(4, 32, 64) / math.sqrt(64)
    source = "one hidden layer of 64, tanh, normal weights"
    return Problem("mlp", eq.network(first, eq.normal(5, 64), second), eq.normal(6, 32), (0, 10), source)


ARENSTORF = state(0.994, 0, 0, -2.00158510637908252240537862224)
MOON_PERIOD = 17.0652165601579625588917206249
PLEIADES = ((3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4), (0, 0, 0, 0, 0, 1.75, -1.5, 0, 0, 0, -1.25, 1, 0, 0))
HIRES = state(1, 0, 0, 0, 0, 0, 0, 0.0057)

TUNING = (
    Problem(
        "lotka_volterra",
        eq.lotka_volterra(0.5, 0.05, 0.5, 0.05),
        state(20, 20),
        (0, 20),
        "Lotka 1925 (0.5, 0.05, 0.5, 0.05)",
    ),
    Problem("lv", eq.lotka_volterra(1.5, 1, 3, 1), state(1, 1), (0, 10), "Lotka 1925 (1.5, 1, 3, 1)"),
    Problem("lorenz_1", eq.lorenz, state(1, 1, 1), (0, 1), "Lorenz 1963"),
    Problem("lorenz_5", eq.lorenz, state(1, 1, 1), (0, 5), "Lorenz 1963", remark="chaotic"),
    van_der_pol("van_der_pol_1", 1, 6.3),
    van_der_pol("van_der_pol_5", 5, 10),
    van_der_pol("van_der_pol_1000_800", 1000, 800, stiff=True, remark="ends just before the first jump"),
    van_der_pol("van_der_pol_1000_1500", 1000, 1500, stiff=True, remark="crosses the jump at 807.1"),
    van_der_pol("van_der_pol_1000_2000", 1000, 2000, stiff=True, remark="crosses the jumps at 807.1 and 1614.3"),
    Problem("brusselator", eq.brusselator, state(1.5, 3), (0, 20), "Prigogine & Lefever 1968, A = 1, B = 3"),
    second_order("henon_heiles", eq.henon_heiles, (0.5, 0), (0, 0.1), (0, 10), "Henon & Heiles 1964"),
    second_order(
        "pleiades",
        eq.planar_bodies(torch.arange(1, 8, dtype=torch.float64)),
        *PLEIADES,
        (0, 3),
        "Hairer, Norsett & Wanner II.10",
        remark="close encounters",
    ),
    Problem("arenstorf", eq.arenstorf, ARENSTORF, (0, MOON_PERIOD), "Hairer, Norsett & Wanner II.0", remark="unstable"),
    Problem("arenstorf_half", eq.arenstorf, ARENSTORF, (0, MOON_PERIOD / 2), "Hairer, Norsett & Wanner II.0"),
    Problem("robertson_40", eq.robertson, state(1, 0, 0), (0, 40), "Robertson 1966", stiff=True),
    Problem("robertson_1e5", eq.robertson, state(1, 0, 0), (0, 1e5), "Robertson 1966", stiff=True),
    Problem("hires", eq.hires, HIRES, (0, 321.8122), "Hairer & Wanner IV.10", stiff=True),
    Problem("duffing", eq.duffing, state(1, 0), (0, 20), "Guckenheimer & Holmes 2.2: x - x^3, 0.3, 0.37 cos(1.2 t)"),
    Problem("fitzhugh_nagumo", eq.fitzhugh_nagumo, state(-1, 1), (0, 50), "FitzHugh 1961, I 0.5, (0.7, 0.8, 0.08)"),
    kuramoto(),
    mlp(),
)


# ---- that no constant was chosen by


def recurrent() -> Problem:
    weights, bias = 1.5 * eq.normal(7, 256, 256) / 16, eq.normal(8, 256) / 10
    source = "Sompolinsky et al. 1988, 256 units, gain 1.5"
    return Problem("tanh_rnn", eq.recurrent(weights, bias), eq.normal(9, 256), (0, 10), source, unseen=True)


def figure_eight() -> Problem:
    x, y, u, v = 0.97000436, -0.24308753, -0.93240737, -0.86473146
    q0, v0 = (x, -x, 0, y, -y, 0), (-u / 2, -u / 2, u, -v / 2, -v / 2, v)
    source = "Chenciner & Montgomery 2000, one period"
    return second_order("figure_eight", eq.planar_bodies(state(1, 1, 1)), q0, v0, (0, 6.32591398), source, unseen=True)


def planets() -> Problem:
    q0 = (
        *(3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380),
        *(3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142),
        *(1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679),
    )
    v0 = (
        *(-0.557160570446, -0.415570776342, -0.325325669158, -0.0240476254170, -0.176860753121),
        *(0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025),
        *(0.230578543901, 0.169143213293, 0.0877265322780, -0.117219543175, -0.0148647893090),
    )
    source = "DETEST C5: Jupiter to Pluto, in astronomical units and hundreds of days"
    return second_order("outer_planets", eq.planets, q0, v0, (0, 200), source, unseen=True)


def lorenz96() -> Problem:
    y0 = torch.full((40,), 8.0, dtype=torch.float64)
    y0[19] += 0.01
    return Problem("lorenz96", eq.lorenz96, y0, (0, 2), "Lorenz 1996, 40 places, forcing 8", unseen=True)


def fput() -> Problem:
    q0 = np.sin(np.pi * np.arange(1, 33) / 33)
    source = "Fermi, Pasta, Ulam & Tsingou 1955, 32 masses, alpha 1/4, lowest mode"
    return second_order("fput", eq.fput, q0, np.zeros(32), (0, 50), source, unseen=True)


def pendulum_chain() -> Problem:
    q0 = 2.5 * np.exp(-(((np.arange(20) - 5) / 3) ** 2))
    source = "sine-Gordon lattice, 20 pendulums, coupling 4, a bump"
    return second_order("pendulum_chain", eq.pendulum_chain, q0, np.zeros(20), (0, 10), source, unseen=True)


def lines(name: str, f: eq.Field, y0: np.ndarray, t1: float, source: str, **more) -> Problem:
    return Problem(name, f, eq.constant(y0), (0, t1), source, unseen=True, **more)


UNSEEN = (
    Problem("roessler", eq.roessler, state(1, 1, 0), (0, 50), "Roessler 1976 (0.2, 0.2, 5.7)", unseen=True),
    Problem("thomas", eq.thomas, state(1, 0.5, -0.3), (0, 30), "Thomas 1999, b 0.208186", unseen=True),
    Problem("chua", eq.chua, state(0.1, 0.1, 0.1), (0, 15), "Chua's circuit, cubic (10, 100/7)", unseen=True),
    Problem("double_pendulum", eq.double_pendulum, state(1, 1.2, 0, 0), (0, 5), "textbook, equal halves", unseen=True),
    figure_eight(),
    planets(),
    Problem(
        "oregonator",
        eq.oregonator,
        state(1, 2, 3),
        (0, 360),
        "Field & Noyes 1974; Hairer & Wanner IV.10",
        stiff=True,
        unseen=True,
    ),
    Problem(
        "e5",
        eq.e5,
        state(1.76e-3, 0, 0, 0),
        (0, 1e3),
        "Enright, Hull & Lindberg 1975",
        stiff=True,
        unseen=True,
        remark="three components stay below 1e-9, and start at zero",
    ),
    lorenz96(),
    fput(),
    pendulum_chain(),
    Problem(
        "sir",
        eq.sir,
        state(1e6 - 10, 10, 0),
        (0, 100),
        "Kermack & McKendrick 1927, 0.4 and 0.1 a day",
        unseen=True,
        remark="persons: a million",
    ),
    second_order(
        "airy",
        eq.airy,
        closed_forms.airy(np.zeros(1))[0, :1],
        closed_forms.airy(np.zeros(1))[0, 1:],
        (0, 20),
        "DLMF 9.2: Ai(-t)",
        exact=closed_forms.airy,
        unseen=True,
    ),
    Problem(
        "bessel",
        eq.bessel(2),
        eq.constant(closed_forms.bessel(2)(np.ones(1))[0]),
        (1, 30),
        "DLMF 10.2: J_2",
        closed_forms.bessel(2),
        unseen=True,
    ),
    recurrent(),
    lines("burgers", eq.burgers, 0.5 + np.sin(2 * np.pi * np.arange(100) / 100), 0.5, "Burgers 1948, 100 points"),
    lines(
        "allen_cahn",
        eq.allen_cahn,
        (np.sin(np.pi * np.arange(1, 65) / 65) + np.sin(4 * np.pi * np.arange(1, 65) / 65)) / 2,
        8,
        "Allen & Cahn 1979, 64 points",
        stiff=True,
    ),
    Problem("goodwin", eq.goodwin, state(0.1, 0.2, 2.5), (0, 100), "Goodwin 1965, exponent 10, rates 0.1", unseen=True),
    Problem(
        "repressilator",
        eq.repressilator,
        state(1e-6, 0, 0, 2e-6, 1e-6, 3e-6),
        (0, 20),
        "Elowitz & Leibler 2000, in mol per litre",
        unseen=True,
        remark="magnitudes of 1e-6 throughout",
    ),
    Problem(
        "driven_circuit",
        eq.driven_circuit,
        state(1e-9, 0),
        (0, 5e-5),
        "textbook, SI units",
        unseen=True,
        remark="units a million apart, and times of microseconds",
    ),
    Problem(
        "hodgkin_huxley",
        eq.hodgkin_huxley,
        state(-65, 0.05, 0.6, 0.32),
        (0, 20),
        "Hodgkin & Huxley 1952, mV and ms",
        unseen=True,
    ),
)

PROBLEMS = {problem.name: problem for problem in (*CLOSED, *TUNING, *UNSEEN)}
