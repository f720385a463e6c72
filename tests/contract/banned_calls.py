"""Banned calls that ruff cannot see: methods of unknown objects, and some arguments.

``python -m tests.contract.banned_calls`` is part of ``make lint``, beside ruff's own bans.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PYTHON_FOLDERS = (
    *("actors", "benchmarks", "broker", "common", "deploy", "examples", "learner", "tests"),
)
BANNED_METHODS = frozenset({"recv_pyobj", "send_pyobj", "recv_serialized"})
BANNED_FLAGS = {"weights_only": False, "allow_pickle": True, "shell": True}


def banned(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each banned method and argument."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) if name in BANNED_METHODS:
                yield node.lineno, name
            case ast.keyword(arg=name, value=ast.Constant(bool(flag))):
                if name in BANNED_FLAGS and BANNED_FLAGS[name] is flag:
                    yield node.value.lineno, f"{name}={flag}"


def banned_in_repository() -> list[str]:
    """``file:line: name`` of everything banned in our code."""
    return [
        f"{path.relative_to(REPOSITORY)}:{line}: {name}"
        for folder in PYTHON_FOLDERS
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, name in banned(path.read_text())
    ]


def main() -> None:
    """Print what is banned; the exit code is 1 if there is anything."""
    found = banned_in_repository()
    for line in found:
        print(f"{line} is banned: it runs what it is given (common.codec, safetensors or JSON)")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
