"""A real broker process and the clients that a test drives against it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.arrays import RolloutArrays
from common.codec import pack_manifest
from common.config import Config, RunPaths
from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.errors import RefusedError
from common.messages import (
    CommitCheckpoint,
    CommitStep,
    EndRun,
    FetchRollouts,
    GetStatus,
    Groups,
    LeasePrompts,
    LeaseRollouts,
    PromptLeases,
    PublishWeights,
    PullGroups,
    ReportWeights,
    ResumeLearner,
    RolloutLeases,
    Rollouts,
    Status,
    SubmitRollout,
    SubmitVerdict,
    WatchWeights,
    WeightNotice,
)
from common.transport import Channel
from common.types import Role, RolloutId, Verdict, VerdictStatus, VerifiedGroup, WeightVersion
from common.weight_layout import WeightManifest
from tests.builders import rollout_arrays, rollout_header, version

REPOSITORY = Path(__file__).parents[1]
RUN_FILE = """
[run]
directory = "run"
kind = "{kind}"
[model]
path = "model"
[prompts]
generator = "chain-addition"
[broker]
heartbeat_s = {heartbeat_s}
dead_after_s = {dead_after_s}
[learner]
groups_per_step = 4
group_size = 3
max_policy_lag = 2
num_steps = {num_steps}
[collect]
num_prompts = 10
samples_per_prompt = 2
"""


@dataclass
class BrokerProcess:
    """One run directory with a broker that can be killed and started again."""

    folder: Path
    kind: str = "train"
    num_steps: int = 20
    dead_after_s: float = 2.0
    heartbeat_s: float = 0.2
    log: Path | None = None
    """File for its standard error; without one it is a pipe that nobody reads before the end."""
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = RUN_FILE.format(
            kind=self.kind,
            num_steps=self.num_steps,
            dead_after_s=self.dead_after_s,
            heartbeat_s=self.heartbeat_s,
        )
        self.run_file.write_text(text)

    @property
    def run_file(self) -> Path:
        return self.folder / "run.toml"

    @property
    def config(self) -> Config:
        return load_config(self.run_file)

    @property
    def paths(self) -> RunPaths:
        return run_paths(self.config)

    def start(self) -> None:
        with contextlib.ExitStack() as files:
            log = None if self.log is None else files.enter_context(self.log.open("a"))
            self.process = subprocess.Popen(
                [sys.executable, "-m", "common.cli", "broker", str(self.run_file)],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=log or subprocess.PIPE,
                text=True,
                env={**os.environ, **self.environment},
            )

    def kill(self) -> None:
        """End it with SIGKILL: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to stop; returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=15)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error of a broker that ends by itself."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    async def connect(self, role: Role, name: str) -> Channel:
        return await Channel.connect(
            role=role, name=name, endpoint=read_endpoint(self.config, self.paths), timeout_s=20.0
        )


async def run_actor(
    broker: BrokerProcess, name: str, acknowledged: list[RolloutId] | None = None
) -> None:
    """Answer prompts under the newest announced weights until cancelled.

    Rollouts that the broker accepted are added to ``acknowledged``.
    """
    accepted = [] if acknowledged is None else acknowledged
    channel = await broker.connect(Role.ACTOR, name)
    serving: list[WeightVersion] = [version(0)] if broker.kind == "collect" else []
    watching = asyncio.create_task(_watch_weights(channel, serving))
    try:
        while True:
            if not serving:
                await asyncio.wait({watching}, timeout=0.02)
                continue
            reply = await channel.request(
                LeasePrompts(serving=serving[-1], max_groups=4, wait_s=1.0)
            )
            assert isinstance(reply.message, PromptLeases)
            rollout_ids = [
                RolloutId(group_id=item.lease.group_id, index=index, attempt=item.lease.attempt)
                for item in reply.message.leases
                for index in item.lease.indices
            ]
            outcomes = await asyncio.gather(
                *(submit_rollout(channel, each, serving[-1]) for each in rollout_ids)
            )
            accepted.extend(
                rollout_id
                for rollout_id, outcome in zip(rollout_ids, outcomes, strict=True)
                if outcome == "accepted"
            )
    except RefusedError as error:
        _pass_if_sealed(error)
    finally:
        watching.cancel()
        await channel.close()


async def _watch_weights(channel: Channel, serving: list[WeightVersion]) -> None:
    while True:
        known = serving[-1] if serving else None
        reply = (await channel.request(WatchWeights(known=known, wait_s=1.0))).message
        assert isinstance(reply, WeightNotice)
        if reply.announcement is not None:
            serving.append(reply.announcement.version)
            await channel.request(ReportWeights(version=serving[-1], proven=True))


def arrays_of(rollout_id: RolloutId) -> RolloutArrays:
    """The arrays that belong to this id: what comes back can be compared."""
    seed = 1_000_000 * rollout_id.group_id + 1_000 * rollout_id.index + rollout_id.attempt
    return rollout_arrays(num_prompt=3, num_completion=5, seed=seed)


async def submit_rollout(channel: Channel, rollout_id: RolloutId, serving: WeightVersion) -> str:
    """Submit one rollout; returns the outcome."""
    header = rollout_header(
        group_id=rollout_id.group_id,
        index=rollout_id.index,
        attempt=rollout_id.attempt,
        spans=((0, serving),),
    )
    reply = await channel.request(SubmitRollout(rollout=header), arrays_of(rollout_id).frames())
    return str(getattr(reply.message, "outcome", reply.message))


async def run_verifier(broker: BrokerProcess, name: str) -> None:
    """Judge everything as right until cancelled."""
    channel = await broker.connect(Role.VERIFIER, name)
    try:
        while True:
            reply = (await channel.request(LeaseRollouts(max_rollouts=8, wait_s=1.0))).message
            assert isinstance(reply, RolloutLeases)
            await asyncio.gather(
                *(
                    channel.request(
                        SubmitVerdict(
                            rollout_id=lease.rollout.rollout_id,
                            verify_attempt=lease.verify_attempt,
                            verdict=Verdict(status=VerdictStatus.GRADED, reward=1.0),
                        )
                    )
                    for lease in reply.leases
                )
            )
    except RefusedError as error:
        _pass_if_sealed(error)
    finally:
        await channel.close()


def _pass_if_sealed(error: RefusedError) -> None:
    if error.code != "sealed":
        raise error


@dataclass
class LearnerClient:
    """The learner's side of a run, with a record of what it trained."""

    broker: BrokerProcess
    channel: Channel
    groups_per_step: int = 4
    checkpoint_every: int = 5
    steps: list[tuple[int, ...]] = field(default_factory=list)
    trained: set[RolloutId] = field(default_factory=set)
    max_lag: int = 0

    @classmethod
    async def connect(cls, broker: BrokerProcess) -> Self:
        learner = cls(broker, await broker.connect(Role.LEARNER, "learner"))
        await learner.channel.request(ResumeLearner(incarnation=0, policy_step=0))
        await learner.publish(0)
        return learner

    async def publish(self, policy_step: int) -> None:
        at = version(policy_step)
        manifest = pack_manifest(WeightManifest(version=at, tensors=()))
        await self.channel.request(PublishWeights(version=at, manifest_digest="0"), [manifest])

    async def step(self) -> None:
        """Gather, check and commit one batch, then publish."""
        policy_step = len(self.steps)
        groups: list[VerifiedGroup] = []
        while len(groups) < self.groups_per_step:
            groups.extend(await self._pull(policy_step, [group.group_id for group in groups]))
        await self._check(policy_step, groups)
        self.steps.append(tuple(group.group_id for group in groups))
        await self.channel.request(
            CommitStep(incarnation=0, policy_step=policy_step, group_ids=self.steps[-1])
        )
        await self.publish(policy_step + 1)
        if (policy_step + 1) % self.checkpoint_every == 0:
            await self.channel.request(CommitCheckpoint(policy_step=policy_step + 1))

    async def _pull(self, policy_step: int, held: Sequence[int]) -> tuple[VerifiedGroup, ...]:
        lacking = self.groups_per_step - len(held)
        pull = PullGroups(policy_step=policy_step, max_groups=lacking, wait_s=2, held=tuple(held))
        reply = (await self.channel.request(pull)).message
        assert isinstance(reply, Groups)
        return reply.groups

    async def _check(self, policy_step: int, groups: Sequence[VerifiedGroup]) -> None:
        rollout_ids = tuple(item.rollout.rollout_id for group in groups for item in group.rollouts)
        reply = await self.channel.request(FetchRollouts(rollout_ids=rollout_ids))
        assert isinstance(reply.message, Rollouts)
        assert [header.rollout_id for header in reply.message.rollouts] == list(rollout_ids)
        for place, rollout_id in enumerate(rollout_ids):
            sent = [bytes(frame) for frame in arrays_of(rollout_id).frames()]
            got = [bytes(frame) for frame in reply.frames[3 * place : 3 * place + 3]]
            assert got == sent
        self.trained.update(rollout_ids)
        lags = (policy_step - group.oldest_version.policy_step for group in groups)
        self.max_lag = max(self.max_lag, *lags)

    async def status(self) -> Status:
        reply = (await self.channel.request(GetStatus())).message
        assert isinstance(reply, Status)
        return reply

    async def end(self) -> Status:
        """End the run; returns its last state."""
        await self.channel.request(CommitCheckpoint(policy_step=len(self.steps)))
        await self.channel.request(EndRun())
        return await self.status()
