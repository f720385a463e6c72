"""Bad input ends a command with one clear line and an exit code; nothing is half-written."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.tasks.chain_addition import corpus
from learner.models.tiny_model import TinyModelShape, build_tiny_model

RUN = """
[run]
directory = "out"

[model]
path = "model"
max_length = 64

[prompts]
file = "prompts.jsonl"

[actor]
max_tokens = 32
"""
GOOD = {"prompt_id": "a", "prompt": "1+2=", "task": "arithmetic", "gold": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that would start: model, prompts and run file."""
    texts = [prompt + completion for prompt, completion in corpus(0, 50, 0.5)]
    shape = TinyModelShape(hidden_size=32, num_heads=1, num_kv_heads=1, intermediate_size=64)
    build_tiny_model(tmp_path / "model", texts, shape, seed=0)
    (tmp_path / "prompts.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def headrace(folder: Path, *arguments: str, hide: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules.update({{name: None for name in {hide.split()!r}}})\n"
    program += "from common.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / name
        file.write_text(change(file.read_text()))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[:-4])

    return apply


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown key": (
        edit("run.toml", lambda text: text + "max_seqs = 4\n"),
        "run.toml:14: unknown key actor.max_seqs (did you mean actor.max_num_seqs?)",
    ),
    "broken JSON": (
        edit("prompts.jsonl", lambda text: text + '{"prompt_id": \n'),
        "prompts.jsonl:2: not valid JSON",
    ),
    "missing field": (
        edit("prompts.jsonl", lambda text: text + '{"prompt_id": "b", "prompt": "x"}\n'),
        'prompts.jsonl:2: field "task" is missing',
    ),
    "duplicate id": (
        edit("prompts.jsonl", lambda text: text + text),
        "prompts.jsonl:2: prompt_id 'a' stands on line 1 already",
    ),
    "empty file": (edit("prompts.jsonl", lambda text: ""), "prompts.jsonl: holds no prompt"),
    "no prompt file": (remove("prompts.jsonl"), "prompts.jsonl: no such file"),
    "no config.json": (remove("model/config.json"), "model lacks config.json"),
    "no tokenizer": (remove("model/tokenizer.json"), "model lacks tokenizer.json"),
    "broken tokenizer": (
        edit("model/tokenizer.json", lambda text: text[:-2]),
        "tokenizer.json is not valid JSON",
    ),
    "cut-off weights": (
        truncate("model/model.safetensors"),
        "model.safetensors is not complete safetensors",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_run_with_bad_input_does_not_start(folder: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(folder)
    done = headrace(folder, "run", "run.toml")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (folder / "out").exists()


def test_a_missing_vllm_is_named_with_the_cure(folder: Path) -> None:
    done = headrace(folder, "actor", "run.toml", hide="vllm")
    assert done.returncode == 1
    assert "actor.engine 'vllm' needs the vllm package, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_metrics_port_is_named(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with open(folder / "run.toml", "a") as file:
            file.write(f"\n[broker]\nmetrics_port = {port}\n")
        done = headrace(folder, "broker", "run.toml")
    assert done.returncode == 1
    assert f"metrics_port {port} cannot be used: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out" / "broker").exists()
