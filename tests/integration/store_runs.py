"""Runs with payload stores, every role a process of its own, and what tests ask of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

NUM_PROMPTS = 40
GROUP_SIZE = 4
DEADLINE_S = 90.0


def write_run(
    folder: Path,
    *,
    dead_after_s: float = 2.0,
    broker: Mapping[str, object] | None = None,
    keys: str = "",
    **stores: object,
) -> Path:
    """A collect run over chain addition; the model is no more than its tokenizer."""
    model = folder / "model"
    model.mkdir()
    symbols = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz0123456789+=<>/,"]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": 0}', encoding="utf-8")
    table = {
        "run": {"directory": "run", "kind": "collect", "id": "stores-test"},
        "model": {"path": "model", "max_length": 128},
        "actor": {"max_tokens": 64, "max_num_seqs": 64},
        "prompts": {"generator": "chain-addition", "split": "held-out", "limit": NUM_PROMPTS},
        "broker": {
            "heartbeat_s": 0.2,
            "dead_after_s": dead_after_s,
            "max_outstanding_groups": 16,
            **(broker or {}),
        },
        "security": {"keys": keys},
        "stores": {"patience_s": 30.0, "sweep_s": 0.2, **stores},
        "collect": {
            "output": "out",
            "num_prompts": NUM_PROMPTS,
            "samples_per_prompt": GROUP_SIZE,
        },
    }
    config = folder / "run.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    return config


@dataclass
class Roles:
    """The processes of one run by name."""

    config: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        """Start ``name``; its role is the part before the number."""
        role = name.partition("-")[0]
        module = "tests.scripted_actor" if role == "actor" else "common.cli"
        command = () if role == "actor" else (role,)
        with open(self.config.parent / f"{name}.log", "ab") as log:
            start = [sys.executable, "-m", module, *command, str(self.config), "--name", name]
            self.running[name] = subprocess.Popen([*start, *arguments], stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """End it with SIGKILL: nothing is flushed, nobody is told."""
        process = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def stop_all(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait(timeout=20)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.last_words()
            for name, process in self.running.items():
                assert process.poll() in (None, 0), f"{name} ended: {self.last_words()}"
            time.sleep(0.02)  # other processes can only be asked again and again

    def last_words(self) -> str:
        logs = sorted(self.config.parent.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs)

    def metric(self, name: str, metric: str, label: str = "") -> float:
        """A metric of one process, summed over labels with ``label``; 0 while it is not there."""
        state = self.config.parent / "run" / "processes" / f"{name}.json"
        try:
            port = json.loads(state.read_text())["metrics_port"]
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
        except OSError:
            return 0.0
        found = re.findall(rf"^{metric}({{[^}}]*}})? (\S+)$", page.decode(), re.MULTILINE)
        return sum(float(value) for labels, value in found if label in labels)

    def num_submitted(self) -> float:
        """Rollouts that the broker was told of."""
        return self.metric("broker", "headrace_requests_total", "SubmitRollout")

    def num_samples(self) -> int:
        file = self.config.parent / "run" / "collector" / "samples.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def is_collected(self) -> bool:
        return self.running["collector"].poll() == 0


@contextlib.contextmanager
def roles(config: Path, *names: str) -> Iterator[Roles]:
    """These processes, and their end."""
    started = Roles(config)
    try:
        for name in names:
            started.start(name)
        yield started
    finally:
        started.stop_all()


def check_every_answer_once(output: Path) -> None:
    lines = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    keys = Counter((sample["group_id"], sample["index"]) for sample in samples)
    assert keys == {(g, i): 1 for g in range(NUM_PROMPTS) for i in range(GROUP_SIZE)}
    assert {sample["completion"] for sample in samples} == {"="}
