"""Broker, verifier and collector as processes: generated puzzles judged by their own scorers.

The actor is in the test. It knows the answers, for a puzzle is a function of the number in its id.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from broker.tasks import countdown
from common.arrays import RolloutArrays
from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.messages import Heartbeat, LeasePrompts, PromptLease, PromptLeases, SubmitRollout
from common.reasoning_gym_catalog import is_installed, make_dataset
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import FinishReason, Role, RolloutHeader, RolloutId, VersionSpan, WeightVersion
from tests.integration.collect_roles import role, write_tokenizer_only

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs reasoning-gym (pip install 'headrace[tasks]')"
)

_NUM_PROMPTS = 24
_GROUP_SIZE = 3
_VERSION = WeightVersion(incarnation=0, policy_step=0)
_REWARD = '''
def score(completion, *, prompt, reference):
    """1 for a prompt and a task that belong together."""
    question = reference.get("entry", {}).get("question", prompt)
    return float(question == prompt), "mine"
'''


def _write_run(folder: Path) -> Path:
    write_tokenizer_only(folder / "model", ["\n", *map(chr, range(32, 127))])
    (folder / "mine.py").write_text(_REWARD, encoding="utf-8")
    table = {
        "run": {"directory": "run", "kind": "collect", "id": "puzzles"},
        "model": {"path": "model", "max_length": 2048},
        "actor": {"max_tokens": 256},
        "prompts": {
            "sets": [
                {"name": "legs", "generator": "reasoning-gym:leg_counting"},
                {
                    "name": "sums",
                    "generator": "reasoning-gym:chain_sum",
                    "options": {"min_terms": 5, "max_terms": 5},
                },
                {"name": "countdown", "generator": "countdown"},
            ]
        },
        "verifier": {
            "rewards": [{"name": "accuracy"}, {"name": "mine", "module": "mine.py:score"}]
        },
        "broker": {"heartbeat_s": 0.2, "dead_after_s": 10.0},
        "collect": {
            "output": "out",
            "num_prompts": _NUM_PROMPTS,
            "samples_per_prompt": _GROUP_SIZE,
        },
    }
    config = folder / "run.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    return config


def _right_answer(prompt_id: str) -> str:
    """The answer to the puzzle of this id: made again, or searched for."""
    kind, _, rest = prompt_id.partition("/")
    if kind == countdown.TASK_NAME:
        return next(
            problem.answer
            for problem in (countdown.prompt_at(0, index) for index in range(_NUM_PROMPTS))
            if problem.problem_id == prompt_id
        )
    name, number = rest.split("/")
    options = {"min_terms": 5, "max_terms": 5} if name.startswith("chain_sum") else {}
    answer: str = make_dataset(name.partition("-")[0], options, seed=int(number))[0]["answer"]
    return answer


class _Actor:
    """Answers index 0 rightly, 1 wrongly, and 2 without an answer block."""

    def __init__(self, channel: Channel, tokenizer: TextTokenizer) -> None:
        self._channel = channel
        self._tokenizer = tokenizer

    async def run(self) -> None:
        ask = LeasePrompts(serving=_VERSION, max_groups=8, wait_s=0.2)
        while True:
            reply = (await self._channel.request(ask)).message
            assert isinstance(reply, PromptLeases)
            leases = tuple(lease.lease for lease in reply.leases)
            await self._channel.request(Heartbeat(leases=leases))
            for lease in reply.leases:
                for index in lease.lease.indices:
                    header, arrays = self._rollout(lease, index)
                    await self._channel.request(SubmitRollout(rollout=header), arrays.frames())

    def _rollout(self, lease: PromptLease, index: int) -> tuple[RolloutHeader, RolloutArrays]:
        right = _right_answer(lease.prompt.prompt_id)
        text = (f"<answer>{right}</answer>", "<answer>1 zzz</answer>", right)[index]
        prompt_ids = np.array(self._tokenizer.encode(lease.prompt.text), np.int32)
        completion = np.array([*self._tokenizer.encode(f"<think></think>{text}"), 1], np.int32)
        arrays = RolloutArrays(prompt_ids, completion, np.full(len(completion), -0.1, np.float32))
        header = RolloutHeader(
            rollout_id=RolloutId(
                group_id=lease.lease.group_id, index=index, attempt=lease.lease.attempt
            ),
            num_prompt_tokens=len(prompt_ids),
            num_completion_tokens=len(completion),
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            version_spans=(VersionSpan(start=0, version=_VERSION),),
            actor="actor-0",
        )
        return header, arrays


async def _act_until_end(config_path: Path, last: subprocess.Popen[bytes]) -> None:
    config = load_config(config_path)
    async with asyncio.timeout(100.0):
        endpoint = read_endpoint(config, run_paths(config))
        channel = await Channel.connect(role=Role.ACTOR, name="actor-0", endpoint=endpoint)
        acting = asyncio.create_task(_Actor(channel, TextTokenizer.load(config.model.path)).run())
        try:
            while last.poll() is None:
                await asyncio.sleep(0.05)
        finally:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            await channel.close()


def _samples(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_puzzles_of_three_sets_are_judged_by_their_own_rules(tmp_path: Path) -> None:
    config = _write_run(tmp_path)
    with role("broker", config), role("verifier", config), role("collector", config) as last:
        asyncio.run(_act_until_end(config, last))
        assert last.returncode == 0
    samples = _samples(tmp_path)
    assert len(samples) == _NUM_PROMPTS * _GROUP_SIZE
    statuses = Counter((sample["index"], sample["status"]) for sample in samples)
    assert statuses == {
        (0, "graded"): _NUM_PROMPTS,
        (1, "graded"): _NUM_PROMPTS,
        (2, "wrong-format"): _NUM_PROMPTS,
    }
    for sample in samples:
        accuracy, mine = sample["accuracy"], sample["reward"] - sample["accuracy"]
        assert mine == pytest.approx(1.0), sample
        assert (accuracy == 1.0) if sample["index"] == 0 else (accuracy < 1.0), sample
    origins = Counter(sample["prompt_id"].split("/")[0] for sample in samples)
    assert origins == {"countdown": 24, "reasoning-gym": 48}
