"""The sentences that the library raises and warns with, found in its code: the directive ``messages``."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "picardsolve"
OPEN = "…"  # what depends on the case
_KIND = re.compile(r"[A-Z]\w*(Error|Lost|Warning)$|Cancelled$")
_DIAGNOSTICS = "results/diagnostics.py"
_WARNS = {"append"}  # of the lists there
_VERBS = (
    "pass call use give make install write leave take set try move wrap return solve subtract choose put remove run "
    "lower ask pip clone detach differentiate keep name increase start drop divide import narrow see mark read reload "
    "check"
).replace(" ", "|")
_REMEDY = re.compile(rf"[;.,:] (?=(?:then |or |therefore |for others )?(?:{_VERBS})\b)", re.IGNORECASE)
_EXPECTED = re.compile(r"\bexpected (.*?)(?:, got\b|[.;](?: |$)|$)")
_MUST = re.compile(r"\bmust (.*?)(?:, got\b|[.;](?: |$)|$)")


@dataclass(frozen=True, order=True)
class Message:
    """A sentence of the library.

    Attributes:
        text: as it is raised, with `OPEN` for what depends on the case.
        kind: name of the exception or warning.
        place: file of the package.
    """

    text: str
    kind: str
    place: str

    @property
    def subject(self) -> str:
        """What it is about: mostly the name of an argument."""
        head, colon, _ = self.text.partition(": ")
        return head if colon and len(head) < 30 and "(" not in head else ""

    @property
    def cause(self) -> str:
        """What is wrong."""
        found = _REMEDY.search(self.text)
        said = self.text if found is None else self.text[: found.start()]
        return said.removeprefix(f"{self.subject}: ").rstrip(" ;,.")

    @property
    def remedy(self) -> str:
        """What to do."""
        found = _REMEDY.search(self.text)
        if found is not None:
            return _sentence(self.text[found.end() :])
        wanted, must = _EXPECTED.search(self.text), _MUST.search(self.text)
        return _sentence(f"pass {wanted[1]}" if wanted else f"it must {must[1]}" if must else "")

    @property
    def group(self) -> str:
        """Where a reader would look for it."""
        if self.kind.endswith("Warning"):
            return "warnings"
        if self.place.startswith("integrations/"):
            return "adapters"
        return "arguments" if self.kind in ("TypeError", "ValueError") else "failures"


def messages() -> list[Message]:
    """Every sentence of the package, in the order of the alphabet."""
    found = {message for path in PACKAGE.rglob("*.py") for message in _of(path)}
    return sorted(found, key=lambda message: (message.subject.lower(), message))


def _of(path: Path) -> Iterator[Message]:
    tree, place = ast.parse(path.read_text()), str(path.relative_to(PACKAGE))
    constants = _assigned(tree.body)
    if place == _DIAGNOSTICS:
        told = (node.value for node in ast.walk(tree) if isinstance(node, ast.Yield | ast.Return) and node.value)
        for value in told:
            if isinstance(value, ast.JoinedStr):
                yield Message(_text(value, constants), "ConvergenceWarning", place)
    for home in _functions(tree.body):
        for call in (node for node in ast.walk(home) if isinstance(node, ast.Call) and node.args):
            kind = _kind(call, place)
            said = constants | _assigned(node for node in ast.walk(home) if getattr(node, "lineno", 0) < call.lineno)
            text = " ".join(_text(call.args[0], said).split()) if kind else ""
            if len(re.findall(r"\w{2,}", text)) > 2:
                yield Message(text, kind, place)


def _functions(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Functions and methods; functions inside of them are parts of these."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body)
        else:
            yield node


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    """The latest value of each name."""
    made = sorted((node for node in nodes if isinstance(node, ast.Assign)), key=lambda node: node.lineno)
    return {target.id: node.value for node in made for target in node.targets if isinstance(target, ast.Name)}


def _kind(call: ast.Call, place: str) -> str:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name == "warn":
        return next((given.id for given in call.args[1:] if isinstance(given, ast.Name)), "UserWarning")
    if name in _WARNS and place == _DIAGNOSTICS:
        return "ConvergenceWarning"
    return name if _KIND.match(name) else ""


def _text(value: ast.expr, said: dict[str, ast.expr]) -> str:
    """The string that an expression makes."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return "".join(_text(part, said) for part in value.values)
    if isinstance(value, ast.FormattedValue):
        return _text(value.value, said) or OPEN
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _text(value.left, said) + _text(value.right, said)
    if isinstance(value, ast.IfExp):
        return _text(value.body, said)
    if isinstance(value, ast.Name) and value.id in said:
        others = {name: given for name, given in said.items() if name != value.id}
        return _text(said[value.id], others) or OPEN
    return ""


def _sentence(text: str) -> str:
    text = re.sub(rf"\.? It raised {OPEN}: {OPEN}", "", text).strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def lines(group: str) -> Iterator[str]:
    """The messages of a group, as a list in Markdown."""
    if group == "results":
        from picardsolve import Result

        yield from (f"* `Result.{result.name}`: {_plain(result.value)}" for result in Result)
        return
    for message in messages():
        if message.group == group:
            subject = f"**{_plain(message.subject)}**: " if message.subject.strip(OPEN) else ""
            yield f"* {subject}{_plain(message.cause)} *({message.kind})*"
            yield from ("", f"  → {_plain(message.remedy)}", "") if message.remedy else ("",)


def _plain(text: str) -> str:
    return re.sub(r"([\\*`|_<\[\]{}])", r"\\\1", text)


def setup(app):
    """Make the directive known."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class Messages(SphinxDirective):
        """The messages of one group."""

        required_arguments = 1

        def run(self):
            node = nodes.container(classes=["messages"])
            self.state.nested_parse(StringList(list(lines(self.arguments[0])), "messages"), self.content_offset, node)
            return node.children

    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True}
