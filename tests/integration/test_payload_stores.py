"""Payloads in stores and at actors, with every role as a process of its own: nothing is lost that
was promised, what is lost is sampled again, and each answer is counted once.
"""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

NUM_PROMPTS = 40
GROUP_SIZE = 4
DEADLINE_S = 90.0


def write_run(folder: Path, *, dead_after_s: float = 2.0, **stores: object) -> Path:
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
        },
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
            time.sleep(0.02)

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


def test_a_run_goes_through_two_stores_and_leaves_nothing_in_them(tmp_path: Path) -> None:
    config = write_run(tmp_path, payloads="store", count=2)
    names = ("broker", "store-0", "store-1", "verifier-0", "collector")
    with roles(config, *names) as run:
        run.start("actor-0", "--pause-after", "32")
        held = "headrace_payload_bytes"
        run.wait_until(lambda: min(run.metric(name, held) for name in names[1:3]) > 0)
        run.kill("actor-0")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        run.wait_until(lambda: sum(run.metric(name, held) for name in names[1:3]) == 0)
        assert run.metric("broker", "headrace_payloads_lost_total") == 0
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_a_store_that_was_killed_and_started_again_has_all_that_it_acknowledged(
    tmp_path: Path,
) -> None:
    config = write_run(tmp_path, payloads="store", count=2)
    with roles(config, "broker", "store-0", "store-1") as run:
        run.start("actor-0", "--pause-after", "32")
        run.wait_until(lambda: run.metric("actor-0", "headrace_rollouts_total") == 32)
        run.wait_until(lambda: run.num_submitted() >= 32)
        for name in ("store-0", "store-1"):
            run.kill(name)
        run.kill("actor-0")
        run.start("verifier-0")
        run.start("collector")
        run.start("store-1")
        run.start("store-0")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        assert run.metric("broker", "headrace_payloads_lost_total") == 0
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_the_rollouts_of_a_killed_direct_actor_are_sampled_again_and_counted(
    tmp_path: Path,
) -> None:
    config = write_run(tmp_path, payloads="direct")
    with roles(config, "broker") as run:
        run.start("actor-0", "--pause-after", "30")
        held = "headrace_payload_bytes"
        run.wait_until(lambda: run.metric("actor-0", held) > 0)
        run.wait_until(lambda: run.num_submitted() >= 30)
        run.kill("actor-0")
        run.start("verifier-0")
        run.start("collector")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        assert run.metric("broker", "headrace_payloads_lost_total") >= 20
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_a_direct_actor_that_starts_again_has_lost_what_it_held(tmp_path: Path) -> None:
    config = write_run(tmp_path, payloads="direct", dead_after_s=30.0)
    with roles(config, "broker") as run:
        run.start("actor-0", "--pause-after", "30")
        run.wait_until(lambda: run.num_submitted() >= 30)
        run.kill("actor-0")
        run.start("actor-0")
        run.wait_until(lambda: run.metric("broker", "headrace_payloads_lost_total") >= 20)
        run.start("verifier-0")
        run.start("collector")
        run.wait_until(run.is_collected)
    check_every_answer_once(tmp_path / "out")
