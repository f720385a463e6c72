"""``docs/configuration.md``, made from the sections of ``common/config/``.

Write it anew with ``python -m deploy.config_reference``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import common.config

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
_SOURCES = sorted(Path(common.config.__file__).parent.glob("*.py"))
_HEAD = """# Configuration

A run is one TOML file; every role reads the same one. Unknown keys are errors that name the nearest
valid key. `headrace check FILE` prints what the file resolves to and what follows from it. Relative
paths are taken from the folder of the file.
"""


def render() -> str:
    """The page as Markdown."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in _SOURCES]
    classes = {
        node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }
    sections = [_section(name, classes[kind], classes) for name, kind in _tables(classes)]
    return "\n".join([_HEAD, *sections])


def _tables(classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, str]]:
    """TOML table names in brackets with the class behind each, nested ones after their parent."""
    for name, annotation, _, _ in _fields(classes["Config"]):
        yield f"[{name}]", annotation
        for inner, kind, _, _ in _fields(classes[annotation]):
            item = kind.removeprefix("tuple[").removesuffix(", ...]")
            if kind in classes:
                yield f"[{name}.{inner}]", kind
            elif item in classes:
                yield f"[[{name}.{inner}]]", item


def _section(name: str, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    rows = [
        f"| `{field}` | `{annotation}` | {default} | {text} |"
        for field, annotation, default, text in _fields(node)
        if annotation not in classes
    ]
    head = f"## {name}\n\n{_prose(node)}\n\n| key | type | default | meaning |\n"
    return head + "|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _prose(node: ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").replace("``", "`")


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, doc line) of each annotated field."""
    following = [*node.body[1:], ast.Pass()]
    for statement, after in zip(node.body, following, strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        default = f"`{ast.unparse(statement.value)}`" if statement.value else "required"
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = str(after.value.value).replace("``", "`").replace("|", "\\|")
        annotation = ast.unparse(statement.annotation).replace("|", "\\|")
        yield (
            statement.target.id,
            annotation,
            default.replace("field(default_factory=dict)", "{}"),
            text,
        )


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
