"""What may stand nowhere in this repository: unpickling, evaluated text, shells, unsafe loading.

`make lint` keeps it out, with ruff and with ``banned_calls`` beside this file; here is the proof.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from tests.contract.banned_calls import REPOSITORY, banned, banned_in_repository


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
        ("TID251", "import numpy as np\nnp.load('x')"),
        ("TID251", "import zmq\nzmq.Socket.recv_pyobj"),
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
    assert banned_in_repository() == []
