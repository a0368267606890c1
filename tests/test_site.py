"""The documentation site has every page and every public name, and no broken link."""

import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
ADAPTERS = [f"picardsolve.integrations.{name}" for name in ("diffusers", "policies", "scipy", "torchsde")]
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
