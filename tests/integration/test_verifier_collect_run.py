"""Broker, verifier and collector as processes, an actor in the test: an evaluation from end to end.

The answers are known, so the metrics are too, also when processes are killed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from common.arrays import RolloutArrays
from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.messages import Heartbeat, LeasePrompts, PromptLease, PromptLeases, SubmitRollout
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import FinishReason, Role, RolloutHeader, RolloutId, VersionSpan, WeightVersion
from tests.integration.collect_roles import role, write_tokenizer_only

_NUM_PROMPTS = 60
_GROUP_SIZE = 4
_VERSION = WeightVersion(incarnation=0, policy_step=0)


def _write_run(folder: Path, monitor: dict[str, Any] | None = None) -> Path:
    """A collect run over held-out chain addition; the model is no more than its tokenizer."""
    write_tokenizer_only(folder / "model", "abcdefghijklmnopqrstuvwxyz0123456789+=<>/,")
    table = {
        "run": {"directory": "run", "kind": "collect", "id": "collect-test"},
        "model": {"path": "model", "max_length": 128},
        "actor": {"max_tokens": 64},
        "prompts": {"generator": "chain-addition", "split": "held-out", "limit": _NUM_PROMPTS},
        "broker": {"heartbeat_s": 0.2, "dead_after_s": 2.0},
        "verifier": {"monitor": monitor or {}},
        "collect": {
            "output": "out",
            "num_prompts": _NUM_PROMPTS,
            "samples_per_prompt": _GROUP_SIZE,
        },
    }
    config = folder / "run.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    return config


class OracleActor:
    """Answers index 0 and 1 rightly, 2 wrongly, and never gets to an answer at 3."""

    def __init__(self, channel: Channel, tokenizer: TextTokenizer) -> None:
        self._channel = channel
        self._tokenizer = tokenizer
        self.num_groups = 0
        self.stop_at = 10**9
        """Answer so many groups, then only send heartbeats until it is raised."""

    async def run(self, max_groups: int) -> None:
        ask = LeasePrompts(serving=_VERSION, max_groups=max_groups, wait_s=0.2)
        while True:
            if self.num_groups >= self.stop_at:
                await self._channel.request(Heartbeat())
                await asyncio.sleep(0.1)
                continue
            reply = (await self._channel.request(ask)).message
            assert isinstance(reply, PromptLeases)
            await self._channel.request(
                Heartbeat(leases=tuple(lease.lease for lease in reply.leases))
            )
            for lease in reply.leases:
                for index in lease.lease.indices:
                    header, arrays = self._rollout(lease, index)
                    await self._channel.request(SubmitRollout(rollout=header), arrays.frames())
                self.num_groups += 1

    def _rollout(self, lease: PromptLease, index: int) -> tuple[RolloutHeader, RolloutArrays]:
        prompt_ids = np.array(self._tokenizer.encode(lease.prompt.text), np.int32)
        total = sum(int(term) for term in lease.prompt.text.rstrip("=").split("+"))
        texts = [f"<answer>{total}</answer>"] * 2 + ["<answer>0</answer>", "7+2"]
        text = texts[index] if index == 3 else f"<think></think>{texts[index]}"
        completion = [*self._tokenizer.encode(text), *([1] if index < 3 else [])]
        arrays = RolloutArrays(
            prompt_ids, np.array(completion, np.int32), np.full(len(completion), -0.1, np.float32)
        )
        header = RolloutHeader(
            rollout_id=RolloutId(
                group_id=lease.lease.group_id, index=index, attempt=lease.lease.attempt
            ),
            num_prompt_tokens=len(prompt_ids),
            num_completion_tokens=len(completion),
            finish_reason=FinishReason.STOP if index < 3 else FinishReason.LENGTH,
            temperature=1.0,
            version_spans=(VersionSpan(start=0, version=_VERSION),),
            actor="actor-0",
        )
        return header, arrays


async def _with_actor(
    config_path: Path,
    scenario: Callable[[OracleActor], Awaitable[None]],
    max_groups: int,
    stop_at: int = 10**9,
) -> None:
    config = load_config(config_path)
    endpoint = read_endpoint(config, run_paths(config))
    channel = await Channel.connect(role=Role.ACTOR, name="actor-0", endpoint=endpoint)
    actor = OracleActor(channel, TextTokenizer.load(config.model.path))
    actor.stop_at = stop_at
    acting = asyncio.create_task(actor.run(max_groups))
    try:
        await scenario(actor)
    finally:
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)
        await channel.close()


async def _wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not condition():
            await asyncio.sleep(0.02)


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _check_results(output: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((output / "metrics.json").read_bytes())
    lines = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    keys = Counter((sample["group_id"], sample["index"]) for sample in samples)
    assert keys == {(g, i): 1 for g in range(_NUM_PROMPTS) for i in range(_GROUP_SIZE)}
    assert Counter(sample["status"] for sample in samples) == {
        "graded": 3 * _NUM_PROMPTS,
        "wrong-format": _NUM_PROMPTS,
    }
    assert (metrics["num_prompts"], metrics["num_samples"]) == (60, 240)
    assert (metrics["pass_at_1"], metrics["pass_at_1_standard_error"]) == (0.5, 0.0)
    assert metrics["maj_at"] == {"1": 1.0, "2": 1.0, "4": 1.0}
    assert (metrics["format_mean"], metrics["truncated_ratio"]) == (0.75, 0.25)
    return metrics


def test_an_evaluation_has_the_metrics_of_its_answers(tmp_path: Path) -> None:
    config = _write_run(tmp_path)
    with role("broker", config), role("verifier", config), role("collector", config) as last:

        async def scenario(_: OracleActor) -> None:
            await _wait_for(lambda: last.poll() is not None)

        asyncio.run(_with_actor(config, scenario, max_groups=64))
        assert last.returncode == 0
    _check_results(tmp_path / "out")


def _page(port: int, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_verifier_that_the_monitor_paused_takes_no_work_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    suspicious = {"action": "pause", "window": 40, "max_repeat_ratio": 0.0}
    config = _write_run(tmp_path, suspicious)
    state_file = tmp_path / "run" / "processes" / "verifier-0.json"

    def state() -> dict[str, Any]:
        content: dict[str, Any] = json.loads(state_file.read_bytes())
        return content

    with role("broker", config), role("collector", config) as last:

        async def scenario(actor: OracleActor) -> None:
            with role("verifier", config):
                await _wait_for(lambda: state_file.exists() and state()["state"] == "paused")
                port = state()["metrics_port"]
                await _wait_for(lambda: "headrace_verify_backlog 0.0" in _page(port, "/metrics")[1])
                actor.stop_at = _NUM_PROMPTS
                await _wait_for(lambda: actor.num_groups == _NUM_PROMPTS)
                assert _page(port, "/readyz")[0] == 503
                assert _page(port, "/healthz")[0] == 200
                told = _page(port, "/metrics")[1]
                assert "headrace_verifier_paused 1.0" in told
                assert 'headrace_verdicts_total{status="graded"} 30.0' in told
                assert 'headrace_verdicts_total{status="wrong-format"} 10.0' in told
            told = (tmp_path / "verifier.log").read_text(encoding="utf-8")
            assert "reward hacking suspected, repetition: " in told
            _write_run(tmp_path)  # somebody has looked at it
            with role("verifier", config):
                await _wait_for(lambda: last.poll() is not None)

        asyncio.run(_with_actor(config, scenario, max_groups=1, stop_at=10))
        assert last.returncode == 0
    _check_results(tmp_path / "out")


@pytest.mark.slow
def test_no_sample_is_lost_or_counted_twice_when_roles_are_killed(tmp_path: Path) -> None:
    config = _write_run(tmp_path)
    progress = tmp_path / "run" / "collector" / "samples.jsonl"
    with contextlib.ExitStack() as roles:
        running = {
            command: roles.enter_context(role(command, config))
            for command in ("broker", "verifier", "collector")
        }

        async def kill_and_restart(command: str, num_lines: int) -> None:
            await _wait_for(lambda: _num_lines(progress) >= num_lines)
            os.kill(running[command].pid, signal.SIGKILL)
            running[command].wait()
            running[command] = roles.enter_context(role(command, config))

        async def scenario(_: OracleActor) -> None:
            await kill_and_restart("collector", 20)
            await kill_and_restart("verifier", 60)
            await kill_and_restart("broker", 100)
            await kill_and_restart("collector", 140)
            await _wait_for(lambda: running["collector"].poll() is not None)

        asyncio.run(_with_actor(config, scenario, max_groups=1))
        assert running["collector"].returncode == 0
    _check_results(tmp_path / "out")
