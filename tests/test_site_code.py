"""Every Python block of the documentation runs: here with the names that its page takes for given, or elsewhere.

Blocks of other libraries' lines are marked ``py`` on the page.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionParadigmsPipeline
from pipelines import digits, stable_diffusion

import picardsolve as ps

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = {  # pages whose blocks another file runs, and compares what they find
    "odes.md": "test_docs",
    "likelihoods.md": "test_docs",
    "sdes.md": "test_docs",
    "serving.md": "test_docs",
    "how-it-works.md": "test_docs",
    "extending.md": "test_extending",
}
NOT_RUN = {  # what a block contains, and why it is not run here
    "ProfilerActivity.CUDA": "counts the kernels of a GPU",
    "from lerobot": "needs lerobot and the network: test_hosted_policies has policies with the same interface",
    "# many.py": "for several processes: test_mesh runs it",
}
INSTEAD = {  # small changes, so that a block runs on any machine
    'device="cuda"': 'device="cpu"',
    "ps.solve(..., ": "ps.solve(model, x, ts, integrator=ps.DDIM(), cond=cond, ",
    "StableDiffusionParadigmsPipeline.from_pretrained(name)": "paradigms",
    '"examples/digits"': repr(str(ROOT / "examples" / "digits")),
}
UNIT = torch.linspace(0, 1, 5, dtype=torch.float64)
SCHEDULE = ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000))


class Countdown:
    """True twice: a robot that stops."""

    left = 3

    def __bool__(self):
        self.left -= 1
        return self.left > 0


def scaled(x, t, label):
    return torch.tanh(x) * label.view(-1, *[1] * (x.dim() - 1))


def pipeline():
    return {"pipe": stable_diffusion(), "net": scaled, "scheduler": digits().scheduler, "torch": torch}


def van_der_pol(t, y):
    return torch.stack([y[:, 1], 1000 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], -1)


CASE = {"x": torch.ones(2, 3) / 2, "ts": ps.grids.uniform(999, -1, 40), "cond": {"label": torch.ones(2)}}
GIVEN = {  # what a page takes for given
    "brownian.md": lambda: {"batch": 3, "t0": UNIT[:-1], "t1": UNIT[1:], "sample": torch.arange(4)},
    "certificates.md": lambda: (
        CASE
        | {"model": ps.Denoiser(scaled, SCHEDULE), "f": lambda t, y: -y, "y0": torch.ones(2), "t": UNIT}
        | {"run": SimpleNamespace(report=SimpleNamespace(certificate=None))}
    ),
    "pipelines.md": lambda: (
        pipeline() | {"g": torch.Generator().manual_seed(0), "noise": torch.ones(2, 4) / 2, "cond": torch.ones(2)}
    ),
    "robots.md": lambda: {
        "model": lambda x, t, observation: torch.tanh(x + observation[:, None]),
        "observation": torch.zeros(1, 4),
        "running": Countdown(),
        "run": lambda actions: None,
    },
    "stiff.md": lambda: {"van_der_pol": van_der_pol, "u0": torch.linspace(-1, 1, 64).double()},
}


def blocks(page, kind="python"):
    """The blocks of a page that are run."""
    found = [code for which, code in BLOCK.findall((DOCS / page).read_text()) if which == kind]
    return [code for code in found if not any(mark in code for mark in NOT_RUN)]


def run(code, names):
    for theirs, ours in INSTEAD.items():
        code = code.replace(theirs, ours)
    exec(code, names)
    return names


PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PLAIN = [page for page in PAGES if page not in {*ELSEWHERE, "coming-from.md"} and blocks(page)]
QUIET = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


@QUIET
@pytest.mark.parametrize("page", PLAIN)
def test_the_code_of_a_page_runs(page, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"torch": torch, "ps": ps} | (GIVEN[page]() if page in GIVEN else {})
    for code in blocks(page):
        run(code, names)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_that_are_run_elsewhere_are(page):
    assert page in (Path(__file__).parent / f"{ELSEWHERE[page]}.py").read_text()


# ---- old lines and new lines


class Decay(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.3 * y


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0])])


def lotka_volterra(t, y):
    return np.array([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])


LONG = torch.linspace(0, 2, 9, dtype=torch.float64)
COMING = {  # library: what its lines take for given, and how far the answers may be apart
    "torchdiffeq": ({"pendulum": pendulum, "y0": torch.tensor([1.0, 0.0]).double(), "t": LONG}, 1e-7),
    "torchsde": ({"decay": Decay(), "y0": torch.ones(4, 2).double(), "ts": UNIT}, 1e-4),
    "scipy": ({"lotka_volterra": lotka_volterra}, 1e-6),
    "torchode": ({"decays": lambda t, y: -y * (1 + t.view(-1, 1)), "y0": torch.ones(3, 2).double(), "t": LONG}, 1e-5),
    "diffrax": ({"rate": 0.7, "y0": torch.ones(3).double(), "t": LONG}, 1e-5),
    "diffusers": ({}, 1e-2),
}
EXPECTED = {  # where the old lines' library is no part of the tests
    "torchode": lambda: torch.exp(-LONG - LONG**2 / 2).view(-1, 1, 1).expand(-1, 3, 2),
    "diffrax": lambda: torch.exp(-0.7 * LONG).view(-1, 1).expand(-1, 3),
}


def sections():
    parts = re.split(r"^## ", (DOCS / "coming-from.md").read_text(), flags=re.MULTILINE)[1:]
    return {re.split(r"\W", part)[0]: part for part in parts}


def values(found):
    found = getattr(found, "images", getattr(found, "y", found))
    return torch.as_tensor(found)[..., -1] if isinstance(found, np.ndarray) else torch.as_tensor(found)


def both_pipelines():
    """As they come, but for steps to alpha 1 at the end, which Paradigms needs."""
    paradigms = stable_diffusion(cls=StableDiffusionParadigmsPipeline)
    pipe = stable_diffusion()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    return {"paradigms": paradigms, "pipe": pipe}


@QUIET
@pytest.mark.parametrize("library", COMING)
def test_new_lines_answer_as_old_ones(library):
    names, bound = COMING[library]
    names = {**names, **(both_pipelines() if library == "diffusers" else {})}
    code = dict(BLOCK.findall(sections()[library]))

    def answer(kind, name):
        names["g"] = torch.Generator().manual_seed(0)
        return values(run(code[kind], names)[name]).detach()

    old = EXPECTED[library]() if library in EXPECTED else answer("py", "old")
    new = answer("python", "new")
    assert new.shape == old.shape
    assert float((new - old).norm() / old.norm()) < bound


def test_every_library_has_its_lines_compared():
    assert list(sections()) == list(COMING)
