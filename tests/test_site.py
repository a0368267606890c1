"""The documentation site has every page and every public name, and no broken link."""

import inspect
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import pytest
import torch

import picardsolve as ps
from picardsolve import integrations

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
ADAPTERS = [f"picardsolve.integrations.{name}" for _, name, _ in iter_modules(integrations.__path__)]
LISTED = ["picardsolve", "picardsolve.extend", "picardsolve.theory", "picardsolve.distributed", *ADAPTERS]
PLAIN = ("picardsolve.grids", "picardsolve.schedules", "picardsolve.presets")  # modules without __all__
DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|py:data):: (\S+)$", re.MULTILINE)


def resolved(name):
    """The object of a dotted name whose last module may be an attribute, such as `picardsolve.grids`."""
    parts = name.split(".")
    found = import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
        found = getattr(found, part) if hasattr(found, part) else import_module(".".join(parts[:depth]))
    return found


def public():
    for module in LISTED:
        yield from (
            (f"{module}.{name}", getattr(import_module(module), name)) for name in import_module(module).__all__
        )
    for module in PLAIN:
        home = resolved(module)
        own = (name for name, value in vars(home).items() if getattr(value, "__module__", "") == home.__name__)
        yield from ((f"{module}.{name}", getattr(home, name)) for name in own if not name.startswith("_"))


def prose(path):
    """The page without code."""
    text = re.sub(r"^(`{3,}|:{3,})[^\n]*\n.*?^\1$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path):
    """What a page's headings are called in links."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    seen: Counter = Counter()
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        yield slug + (f"-{seen[slug]}" if seen[slug] else "")
        seen[slug] += 1


def test_the_reference_has_every_public_name_and_no_other():
    documented = [name for path in (DOCS / "api").glob("*.md") for name in DIRECTIVE.findall(path.read_text())]
    assert len(documented) == len(set(documented))
    held = [resolved(name) for name in documented]
    wanted = {name: value for name, value in public() if not isinstance(value, ModuleType)}
    missing = [name for name, value in wanted.items() if not any(value is other for other in held)]
    assert not missing, f"give these a line in docs/api: {missing}"
    assert not [name for name in documented if name not in wanted]


def test_every_method_and_call_has_an_example():
    """Indented lines, as the site shows them; what is only returned, raised or subclassed has none."""
    returned = {"Cancelled", "ConvergenceWarning", "Guess", "Iteration", "Integrator", "Result", "SolveError", "Stats"}
    returned |= {"Analysis", "Certificate", "Expected", "Occurrences", "Round", "Solution", "Verification"}
    shown = {name: inspect.getdoc(getattr(ps, name)) or "" for name in ps.__all__ if name not in returned}
    modules = {name for name in shown if isinstance(getattr(ps, name), ModuleType)}
    code = re.compile(r"\n    \S|>>>|ps\.\w+\(")
    assert [name for name, said in shown.items() if name not in modules and not code.search(said)] == []


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = [line.split("<")[-1].rstrip(">") for block in blocks for line in block.split() if not line.startswith(":")]
    pages = [str(path.relative_to(DOCS).with_suffix("")) for path in PAGES if path.name != "index.md"]
    assert sorted(pages) == sorted(set(listed) & set(pages)), "give the new page a line in docs/index.md"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_relative_links_and_anchors_lead_somewhere(path):
    text = prose(path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        there = (path.parent / place).resolve() if place else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in list(anchors(there)), f"{path.name}: {target}"


# ---- the sentences of the troubleshooting page

sys.path.append(str(DOCS))
MESSAGES = import_module("messages").messages()
Y, TS, STEP = torch.ones(2), ps.grids.uniform(0, 1, 8), {"integrator": ps.Euler()}
WRONG = {
    "window": lambda: ps.solve(ps.ODE(lambda t, y: -y), Y, TS, **STEP, window=0),
    "tol": lambda: ps.solve(ps.ODE(lambda t, y: -y), Y, TS, **STEP, tol=1e-3, rtol=1e-3),
    "brownian": lambda: ps.solve(
        ps.ODE(lambda t, y: -y), Y, TS, integrator=ps.Collocation(), brownian=ps.BrownianPath(0)
    ),
    "ts": lambda: ps.solve(ps.ODE(lambda t, y: -y), Y, [1.0, 0.0, 2.0], **STEP),
    "method": lambda: ps.odeint(lambda t, y: -y, Y, TS, method="rk5"),
    "dt": lambda: ps.sdeint(None, torch.ones(1, 2), TS, dt=-1.0),
    "max_rounds": lambda: ps.solve(ps.ODE(lambda t, y: -y), Y, TS, **STEP, window=4, tol=1e-9, max_rounds=1),
    "finite": lambda: ps.solve(ps.ODE(lambda t, y: y / 0.0), Y, TS, **STEP),
    "stop": lambda: ps.solve(ps.ODE(lambda t, y: -y), Y, TS, **STEP, stop="often"),
}


def templates():
    for message in MESSAGES:
        parts = [re.escape(part) for part in message.text.split("\u2026")]
        yield message.kind, re.compile(".*".join(parts), re.DOTALL)


@pytest.mark.parametrize("name", WRONG)
def test_what_the_library_raises_is_listed(name):
    with pytest.raises((TypeError, ValueError, ps.SolveError)) as raised:
        WRONG[name]()
    said, kind = str(raised.value), type(raised.value).__name__
    assert any(kind == listed and pattern.match(said) for listed, pattern in templates()), said


def test_every_sentence_has_something_to_say():
    assert len(MESSAGES) > 250
    silent = [message for message in MESSAGES if not message.remedy]
    assert len(silent) < len(MESSAGES) / 10
    assert {message.group for message in MESSAGES} == {"warnings", "failures", "arguments", "adapters"}


def test_what_the_page_quotes_is_what_the_library_says():
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = [quote for row in page.splitlines() if row.startswith("|") for quote in re.findall(r"\*(\S[^*]*)\*", row)]
    kinds = {message.kind for message in MESSAGES}
    known = " ".join(message.text for message in MESSAGES)
    assert len(quoted) > 5
    assert [quote for quote in quoted if quote not in kinds and quote not in known] == []
