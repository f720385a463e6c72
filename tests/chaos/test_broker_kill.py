"""kill -9 of the broker at seeded random moments of a run that goes on regardless."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from common.types import Role, RolloutId
from tests.broker_process import BrokerProcess, LearnerClient, run_actor, run_verifier

NUM_STEPS = 20
NUM_KILLS = 6


async def _kill_again_and_again(broker: BrokerProcess, dice: random.Random) -> None:
    for _ in range(NUM_KILLS):
        await asyncio.sleep(dice.uniform(0.02, 0.3))
        await asyncio.to_thread(broker.kill)
        broker.start()
        await (await broker.connect(Role.SUPERVISOR, "supervisor")).close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_broker_loses_nothing_it_acknowledged_and_the_run_completes(
    tmp_path: Path, seed: int
) -> None:
    broker = BrokerProcess(tmp_path, num_steps=NUM_STEPS)
    broker.start()
    acknowledged: list[RolloutId] = []

    async def run() -> LearnerClient:
        learner = await LearnerClient.connect(broker)
        workers = [
            asyncio.create_task(run_actor(broker, "actor-0", acknowledged)),
            asyncio.create_task(run_actor(broker, "actor-1", acknowledged)),
            asyncio.create_task(run_verifier(broker, "verifier-0")),
        ]
        killer = asyncio.create_task(_kill_again_and_again(broker, random.Random(seed)))
        async with asyncio.timeout(100):
            for _ in range(NUM_STEPS):
                await learner.step()
                if not killer.done():
                    await asyncio.sleep(0.05)
            await killer
            status = await learner.end()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert status.groups.imbalance == 0
        assert status.groups.trained == NUM_STEPS * 4
        await learner.channel.close()
        return learner

    learner = asyncio.run(run())
    broker.stop()
    groups = [group for step in learner.steps for group in step]
    assert len(groups) == len(set(groups)) == NUM_STEPS * 4
    assert learner.max_lag <= 2
    kept = {rollout_id for rollout_id in acknowledged if rollout_id.group_id in set(groups)}
    assert len(kept) > NUM_STEPS
    assert kept <= learner.trained, "an acknowledged rollout was sampled again"
