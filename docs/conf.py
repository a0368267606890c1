"""How Sphinx builds the site: `make docs`."""

import re
import sys
from pathlib import Path

import picardsolve

sys.path.insert(0, str(Path(__file__).parent))  # where `messages` is

project, author, copyright = "picardsolve", "the picardsolve authors", "the picardsolve authors"
version = release = picardsolve.__version__

extensions = [
    "messages",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links such as page.md#heading work as they do in a repository's browser

default_role = "py:obj"  # `Name` in a docstring links to it where it is public
highlight_language = "none"
smartquotes = False  # code in messages has quotes
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"picardsolve {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

_SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Example|Examples|Note|Source):$")


def examples_as_code(app, what, name, obj, options, lines):
    """Indented lines after a paragraph are code: docstrings leave out the ``::`` of reStructuredText."""
    shown, quoted = [], False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        before = next((earlier for earlier in reversed(lines[:number]) if earlier.strip()), "")
        starts = indented and not lines[number - 1].strip() and not quoted
        if starts and not before.startswith(" ") and not _SECTION.match(before) and not before.endswith("::"):
            shown += [".. code-block:: python", ""]
            quoted = True
        elif line.strip() and not indented:
            quoted = False
        shown.append(line)
    lines[:] = shown


def setup(app):
    """Before napoleon, which has priority 500."""
    app.connect("autodoc-process-docstring", examples_as_code, priority=400)
