"""What may stand nowhere in this repository: unpickling, evaluated text, shells, unsafe loading.

ruff keeps most of it out (`make lint`); the first test proves that its settings here do. ruff
cannot see methods of unknown objects and some arguments, so the rest is looked for by syntax tree.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON_FOLDERS = ("actors", "benchmarks", "broker", "common", "deploy", "examples", "learner")

BANNED_METHODS = frozenset({"recv_pyobj", "send_pyobj"})
BANNED_FLAGS = {"weights_only": False, "allow_pickle": True, "shell": True}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("TID251", "import pickle"),
        ("TID251", "from pickle import loads"),
        ("TID251", "import dill"),
        ("TID251", "import cloudpickle"),
        ("TID251", "import marshal"),
        ("TID251", "import shelve"),
        ("TID251", "import torch\ntorch.load('x')"),
        ("TID251", "import torch.distributed as dist\ndist.broadcast_object_list([1])"),
        ("S307", "eval('1')"),
        ("S102", "exec('1')"),
        ("S506", "import yaml\nyaml.load('1')"),
        ("S602", "import subprocess\nsubprocess.run('ls', shell=True)"),
        ("S605", "import os\nos.system('ls')"),
    ],
)
def test_ruff_refuses(rule: str, code: str) -> None:
    command = [
        *(sys.executable, "-m", "ruff", "check", "--output-format", "json", "--no-cache"),
        *("--stdin-filename", "learner/example.py", "-"),
    ]
    done = subprocess.run(
        command, input=code, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert rule in {finding["code"] for finding in json.loads(done.stdout)}


def banned(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each banned method and argument."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) if name in BANNED_METHODS:
                yield node.lineno, name
            case ast.keyword(arg=name, value=ast.Constant(bool(flag))):
                if name in BANNED_FLAGS and BANNED_FLAGS[name] is flag:
                    yield node.value.lineno, f"{name}={flag}"


def test_banned_methods_and_arguments_are_found() -> None:
    source = """
    socket.recv_pyobj()
    numpy.load("x", allow_pickle=True)
    torch.load("x", weights_only=False)
    torch.load("x", weights_only=True)
    numpy.load("x", allow_pickle=False)
    """
    assert list(banned(textwrap.dedent(source))) == [
        (2, "recv_pyobj"),
        (3, "allow_pickle=True"),
        (4, "weights_only=False"),
    ]


def test_no_banned_method_or_argument_stands_in_the_repository() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {name}"
        for folder in PYTHON_FOLDERS
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, name in banned(path.read_text())
    ]
    assert found == []
