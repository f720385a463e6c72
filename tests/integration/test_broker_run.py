"""A real broker process, spoken to by small clients over its real socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import EXIT_FATAL, EXIT_OK, RefusedError
from common.messages import (
    CommitStep,
    EndRun,
    GetStatus,
    Groups,
    Heartbeat,
    HeartbeatReply,
    LeasePrompts,
    PromptLease,
    PromptLeases,
    PullGroups,
    ResumeLearner,
    Status,
)
from common.transport import Channel
from common.types import Role, RolloutId
from tests.broker_process import (
    BrokerProcess,
    LearnerClient,
    run_actor,
    run_verifier,
    submit_rollout,
)
from tests.builders import version


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path)
    broker.start()
    yield broker
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


async def _with_workers(broker: BrokerProcess, learner: LearnerClient, num_steps: int) -> Status:
    workers = [
        asyncio.create_task(run_actor(broker, "actor-0")),
        asyncio.create_task(run_actor(broker, "actor-1")),
        asyncio.create_task(run_verifier(broker, "verifier-0")),
    ]
    try:
        for _ in range(num_steps):
            await learner.step()
        return await learner.end()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await learner.channel.close()


def test_twenty_steps_train_each_group_once_within_the_lag_bound(broker: BrokerProcess) -> None:
    async def run() -> tuple[Status, LearnerClient]:
        learner = await LearnerClient.connect(broker)
        return await _with_workers(broker, learner, num_steps=20), learner

    status, learner = asyncio.run(run())
    trained = [group for step in learner.steps for group in step]
    assert len(trained) == len(set(trained)) == 80
    assert status.groups.trained == 80
    assert status.groups.imbalance == status.groups.leased == status.groups.pending == 0
    assert learner.max_lag <= 2
    assert status.sealed
    assert status.weight_syncs >= 20
    assert broker.stop() == EXIT_OK


def test_a_collect_run_ends_exhausted_and_everything_committed_is_trained(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, kind="collect")
    broker.start()

    async def run() -> tuple[list[int], Status]:
        workers = [
            asyncio.create_task(run_actor(broker, "actor-0")),
            asyncio.create_task(run_verifier(broker, "verifier-0")),
        ]
        channel = await broker.connect(Role.COLLECTOR, "collector")
        collected: list[int] = []
        while True:
            reply = (
                await channel.request(PullGroups(policy_step=0, max_groups=3, wait_s=5))
            ).message
            assert isinstance(reply, Groups)
            if reply.exhausted:
                break
            group_ids = tuple(group.group_id for group in reply.groups)
            collected.extend(group_ids)
            await channel.request(CommitStep(incarnation=0, policy_step=0, group_ids=group_ids))
        status = (await channel.request(GetStatus())).message
        assert isinstance(status, Status)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await channel.close()
        return collected, status

    collected, status = asyncio.run(run())
    assert sorted(collected) == list(range(10))
    assert (status.groups.admitted, status.groups.trained) == (10, 10)
    broker.stop()


async def _lease_one(channel: Channel) -> PromptLease:
    reply = await channel.request(LeasePrompts(serving=version(0), max_groups=1, wait_s=5.0))
    assert isinstance(reply.message, PromptLeases)
    return reply.message.leases[0]


def test_work_of_an_actor_that_starts_again_goes_to_another_at_once(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, dead_after_s=60.0)
    broker.start()

    async def run() -> tuple[PromptLease, PromptLease, str]:
        learner = await LearnerClient.connect(broker)
        first = await broker.connect(Role.ACTOR, "actor-0")
        lost = await _lease_one(first)
        again = await broker.connect(Role.ACTOR, "actor-0")
        other = await broker.connect(Role.ACTOR, "actor-1")
        released = await _lease_one(other)
        late = RolloutId(group_id=lost.lease.group_id, index=0, attempt=lost.lease.attempt)
        outcome = await submit_rollout(again, late, version(0))
        for channel in (first, again, other, learner.channel):
            await channel.close()
        return lost, released, outcome

    lost, released, outcome = asyncio.run(run())
    assert released.lease.group_id == lost.lease.group_id
    assert released.lease.attempt > lost.lease.attempt
    assert outcome == "accepted"  # under an expired attempt, but nothing newer is there
    broker.stop()


def test_a_lease_that_nobody_names_is_revoked_and_leased_again(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, dead_after_s=0.6)
    broker.start()

    async def run() -> tuple[PromptLease, PromptLease, HeartbeatReply]:
        learner = await LearnerClient.connect(broker)
        first = await broker.connect(Role.ACTOR, "actor-0")
        other = await broker.connect(Role.ACTOR, "actor-1")
        lost = await _lease_one(first)
        released = lost
        async with asyncio.timeout(20):
            while released.lease.group_id != lost.lease.group_id or released is lost:
                await first.request(Heartbeat())
                released = await _lease_one(other)
        reply = (await first.request(Heartbeat(leases=(lost.lease,)))).message
        assert isinstance(reply, HeartbeatReply)
        for channel in (first, other, learner.channel):
            await channel.close()
        return lost, released, reply

    lost, released, reply = asyncio.run(run())
    assert released.lease.attempt > lost.lease.attempt
    assert reply.revoked == (lost.lease,)
    broker.stop()


def test_after_the_end_work_is_refused_and_a_resumed_run_goes_on(broker: BrokerProcess) -> None:
    async def end() -> str:
        learner = await LearnerClient.connect(broker)
        actor = await broker.connect(Role.ACTOR, "actor-0")
        await _lease_one(actor)
        await learner.channel.request(EndRun())
        with pytest.raises(RefusedError) as refused:
            await _lease_one(actor)
        status = await learner.status()
        assert [(item.name, item.count) for item in status.evicted] == [("run_end", 1)]
        await actor.close()
        await learner.channel.close()
        return refused.value.code

    async def resume() -> tuple[Status, Status]:
        channel = await broker.connect(Role.LEARNER, "learner")
        before = (await channel.request(GetStatus())).message
        await channel.request(ResumeLearner(incarnation=0, policy_step=0))
        actor = await broker.connect(Role.ACTOR, "actor-0")
        lease = await _lease_one(actor)
        assert lease.lease.group_id == 1
        after = (await channel.request(GetStatus())).message
        await actor.close()
        await channel.close()
        assert isinstance(before, Status)
        assert isinstance(after, Status)
        return before, after

    assert asyncio.run(end()) == "sealed"
    assert broker.stop() == EXIT_OK
    broker.start()
    before, after = asyncio.run(resume())
    assert before.sealed
    assert not after.sealed
    assert after.newest_version == version(0)


def test_two_brokers_cannot_share_a_journal(broker: BrokerProcess) -> None:
    async def wait_until_it_serves() -> None:
        await (await broker.connect(Role.SUPERVISOR, "supervisor")).close()

    asyncio.run(wait_until_it_serves())
    second = BrokerProcess(broker.folder)
    second.start()
    code, errors = second.wait()
    assert code == EXIT_FATAL
    assert str(broker.paths.journal) in errors
    assert "another broker uses it" in errors
    assert "Traceback" not in errors


def test_headrace_broker_names_the_line_of_a_bad_prompt_file(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path)
    text = broker.run_file.read_text().replace(
        'generator = "chain-addition"', 'file = "prompts.jsonl"'
    )
    broker.run_file.write_text(text)
    (tmp_path / "prompts.jsonl").write_text('{"prompt_id": "a", "prompt": "1+1="}\n')
    done = subprocess.run(
        [sys.executable, "-m", "common.cli", "broker", str(broker.run_file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == EXIT_FATAL
    assert 'prompts.jsonl:1: field "task" is missing' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "broker").exists()
