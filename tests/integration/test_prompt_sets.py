"""Prompt sets of a real broker process: kill -9, changed files, and a run that keeps nothing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import EXIT_FATAL, EXIT_OK
from common.messages import (
    CommitStep,
    Groups,
    LeasePrompts,
    PromptLeases,
    PullGroups,
    Status,
)
from common.types import Role
from tests.broker_process import BrokerProcess, LearnerClient, run_actor, run_verifier
from tests.builders import version

NUM_PROMPTS = 60
SETS = """
[[prompts.sets]]
name = "math"
file = "math.jsonl"
weight = 2.0
[[prompts.sets]]
name = "logic"
file = "logic.jsonl"
weight = 1.0
epochs = 2
[[prompts.sets]]
name = "sums"
generator = "chain-addition"
"""


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[BrokerProcess]]:
    """Brokers that a test made; those still alive are killed after it."""
    made: list[BrokerProcess] = []
    yield made
    for broker in made:
        if broker.process is not None and broker.process.poll() is None:
            broker.kill()


def _broker(folder: Path, *, settings: str = "", prompts: str = SETS) -> BrokerProcess:
    folder.mkdir()
    for name, size in (("math", 7), ("logic", 5)):
        _write_prompts(folder / f"{name}.jsonl", size)
    broker = BrokerProcess(folder, dead_after_s=60.0)
    text = broker.run_file.read_text()
    text = text.replace('[prompts]\ngenerator = "chain-addition"\n', prompts)
    text = text.replace("groups_per_step = 4\n", f"groups_per_step = 4\n{settings}")
    broker.run_file.write_text(text)
    return broker


def _write_prompts(path: Path, size: int) -> None:
    lines = (
        json.dumps(
            {"prompt_id": f"{path.stem}-{n}", "prompt": "x", "task": "arithmetic", "gold": n}
        )
        for n in range(size)
    )
    path.write_text("\n".join(lines))


async def _lease(broker: BrokerProcess, name: str, number: int) -> list[tuple[str, str]]:
    """(set, prompt) of the next ``number`` groups, leased one by one."""
    channel = await broker.connect(Role.ACTOR, name)
    drawn = []
    for _ in range(number):
        request = LeasePrompts(serving=version(0), max_groups=1, wait_s=5.0)
        reply = (await channel.request(request)).message
        assert isinstance(reply, PromptLeases)
        prompt = reply.leases[0].prompt
        drawn.append((prompt.prompt_set, prompt.prompt_id))
    await channel.close()
    return drawn


async def _announce(broker: BrokerProcess) -> None:
    learner = await LearnerClient.connect(broker)
    await learner.channel.close()


def _wide(folder: Path) -> BrokerProcess:
    """A broker that admits all prompts of the test without a training step."""
    broker = _broker(folder)
    text = broker.run_file.read_text()
    wide = text.replace("groups_per_step = 4", f"groups_per_step = {NUM_PROMPTS}")
    broker.run_file.write_text(wide)
    return broker


def test_a_killed_broker_goes_on_at_the_exact_next_prompt_of_each_set(
    tmp_path: Path, brokers: list[BrokerProcess]
) -> None:
    whole, killed = _wide(tmp_path / "whole"), _wide(tmp_path / "killed")
    brokers += [whole, killed]

    async def without_a_kill() -> list[tuple[str, str]]:
        await _announce(whole)
        return await _lease(whole, "actor-0", NUM_PROMPTS)

    whole.start()
    expected = asyncio.run(without_a_kill())
    whole.stop()
    killed.start()
    asyncio.run(_announce(killed))
    drawn: list[tuple[str, str]] = []
    for part in range(3):
        drawn += asyncio.run(_lease(killed, f"actor-{part}", NUM_PROMPTS // 3))
        killed.kill()
        killed.start()
    assert drawn == expected
    shares = Counter(prompt_set for prompt_set, _ in drawn)
    assert shares["logic"] == 10  # two epochs of five, then the others go on
    assert abs(shares["math"] - 2 * shares["sums"]) <= 3
    killed.stop()


def test_a_file_that_changed_under_a_run_ends_the_broker_with_a_cure(
    tmp_path: Path, brokers: list[BrokerProcess]
) -> None:
    broker = _wide(tmp_path / "run")
    brokers.append(broker)
    broker.start()
    asyncio.run(_announce(broker))
    broker.kill()
    _write_prompts(tmp_path / "run" / "logic.jsonl", 6)
    broker.start()
    code, errors = broker.wait()
    assert code == EXIT_FATAL
    assert (
        "prompt set 'logic' has changed since this run first used it: it was [5 prompts" in errors
    )
    assert "logic.jsonl is [6 prompts" in errors
    assert "Traceback" not in errors


def test_a_run_whose_groups_are_all_solved_ends_with_the_shares(
    tmp_path: Path, brokers: list[BrokerProcess]
) -> None:
    broker = _broker(
        tmp_path / "run", settings="dynamic_sampling = true\nmax_dropped_batches = 3\n"
    )
    brokers.append(broker)
    broker.start()

    async def solve_everything() -> tuple[int, str]:
        learner = await LearnerClient.connect(broker)
        workers = [
            asyncio.create_task(run_actor(broker, "actor-0")),
            asyncio.create_task(run_verifier(broker, "verifier-0")),
        ]
        try:
            return await asyncio.to_thread(broker.wait)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await learner.channel.close()

    code, errors = asyncio.run(solve_everything())
    assert code == EXIT_FATAL
    assert "learner.dynamic_sampling dropped 13 groups in a row" in errors
    assert "100% solved by every answer, 0% by none" in errors
    assert "Traceback" not in errors


def test_a_run_whose_every_prompt_is_retired_is_exhausted(
    tmp_path: Path, brokers: list[BrokerProcess]
) -> None:
    prompts = '[prompts]\nfile = "logic.jsonl"\nretire_pass_rate = 1.0\nretire_after = 1\n'
    broker = _broker(tmp_path / "run", prompts=prompts)
    brokers.append(broker)
    broker.start()

    async def train_until_exhausted() -> Status:
        learner = await LearnerClient.connect(broker)
        workers = [
            asyncio.create_task(run_actor(broker, "actor-0")),
            asyncio.create_task(run_verifier(broker, "verifier-0")),
        ]
        async with asyncio.timeout(60):
            while await _step(learner):
                pass
        status = await learner.status()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await learner.channel.close()
        return status

    status = asyncio.run(train_until_exhausted())
    groups = status.groups
    assert groups.admitted >= 5
    assert groups.imbalance == groups.pending == 0
    assert broker.stop() == EXIT_OK


async def _step(learner: LearnerClient) -> bool:
    """Gather and commit one batch; False when no further group will come."""
    policy_step = len(learner.steps)
    held: tuple[int, ...] = ()
    while len(held) < learner.groups_per_step:
        lacking = learner.groups_per_step - len(held)
        pull = PullGroups(policy_step=policy_step, max_groups=lacking, wait_s=2, held=held)
        reply = (await learner.channel.request(pull)).message
        assert isinstance(reply, Groups)
        if reply.exhausted:
            return False
        held += tuple(group.group_id for group in reply.groups)
    learner.steps.append(held)
    commit = CommitStep(incarnation=0, policy_step=policy_step, group_ids=held)
    await learner.channel.request(commit)
    await learner.publish(policy_step + 1)
    return True
