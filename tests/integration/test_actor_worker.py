"""The actor over a real socket, with a scripted sampler and a broker of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from actors.generation.weight_agent import StagedWeights, StagingBuffer
from actors.generation.worker import GenerationWorker
from common.arrays import arrays_from_frames
from common.broker_socket import BrokerSocket
from common.codec import Decoded, pack_manifest
from common.config import ActorConfig, CollectConfig, Config, LearnerConfig, ModelConfig, RunConfig
from common.errors import WeightLoadError, WeightTransferError
from common.lifecycle import Process
from common.messages import (
    Ack,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeasePrompts,
    PromptLease,
    PromptLeases,
    PublishWeights,
    Refused,
    Register,
    Registered,
    Reply,
    ReportWeights,
    Request,
    ReturnLease,
    SubmitRollout,
    WatchWeights,
    WeightNotice,
)
from common.transport import Channel
from common.types import FinishReason, Prompt, Role, WeightVersion
from common.weight_layout import Canary, WeightManifest
from tests.builders import version
from tests.scripted_sampler import ScriptedSampler

_CANARY = Canary(token_ids=((3, 4),), logprobs=((-0.5,),), tolerance=1e-3)

PLENTY = 1 << 40
"""Credit, in bytes, of a broker that is never full."""


class FakeBroker:
    """Hands out what is in ``leases`` and ``announcement``, remembers all it was told."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.leases: list[PromptLease] = []
        self.announcement: PublishWeights | None = None
        self.revoke: tuple[Lease, ...] = ()
        self.refuse_rollouts = ""
        self.parks = False
        self._returned = asyncio.Event()
        self.seen: list[Request] = []
        self._request_ids: set[int] = set()
        self.rollouts: list[tuple[SubmitRollout, list[bytes]]] = []
        self._known: set[bytes] = set()
        self._socket: BrokerSocket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def start(self) -> None:
        self._known = set()
        self._socket = BrokerSocket.bind(self.endpoint)
        self._serving = asyncio.create_task(self._serve(self._socket))

    async def stop(self) -> None:
        if self._serving is not None and self._socket is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._socket.close()

    def of(self, kind: type[Request]) -> list[Request]:
        return [message for message in self.seen if isinstance(message, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60.0):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self, socket: BrokerSocket) -> None:
        async with asyncio.TaskGroup() as answers:
            while True:
                for incoming in await socket.receive(64):
                    assert isinstance(incoming.decoded, Decoded)
                    answers.create_task(self._reply(socket, incoming.peer, incoming.decoded))

    async def _reply(self, socket: BrokerSocket, peer: bytes, decoded: Decoded) -> None:
        message = decoded.message
        frames: list[bytes] = []
        reply: Reply
        if isinstance(message, Register):
            self._known.add(peer)
            reply = Registered(
                run_id="run",
                broker_nonce="one",
                heartbeat_s=0.05,
                lease_s=5.0,
                credit_bytes=PLENTY,
            )
        elif peer not in self._known:
            reply = Refused(code="unregistered", reason="register first")
        else:
            reply, frames = await self._answer(decoded)
            if decoded.request_id not in self._request_ids:  # a resend is the same request
                self.seen.append(message)  # type: ignore[arg-type]  # clients send requests only
            self._request_ids.add(decoded.request_id)
            self._changed.set()
        socket.send(peer, decoded.request_id, reply, frames)

    async def _answer(self, decoded: Decoded) -> tuple[Reply, list[bytes]]:
        message = decoded.message
        if isinstance(message, Heartbeat):
            return HeartbeatReply(revoked=self.revoke), []
        if isinstance(message, LeasePrompts):
            if not self.leases:
                await asyncio.sleep(0.02)
            while self.parks and not self.leases:
                self._returned.clear()
                await self._returned.wait()
            given, self.leases = (
                self.leases[: message.max_groups],
                self.leases[message.max_groups :],
            )
            return PromptLeases(leases=tuple(given)), []
        if isinstance(message, WatchWeights):
            if self.announcement is None or self.announcement.version == message.known:
                await asyncio.sleep(0.02)
                return WeightNotice(), []
            return WeightNotice(announcement=self.announcement), [
                pack_manifest(_manifest(self.announcement.version))
            ]
        if isinstance(message, ReturnLease) and self.parks and message.lease.attempt == 1:
            self.leases.append(_lease(message.lease.group_id, attempt=2))
            self._returned.set()
        if isinstance(message, SubmitRollout):
            if self.refuse_rollouts:
                return Refused(code=self.refuse_rollouts, reason="no"), []
            self.rollouts.append((message, [bytes(frame) for frame in decoded.frames]))
        return Ack(), []


class ScriptedReceiver:
    """Stages nothing real; fails as often as it is told."""

    def __init__(self) -> None:
        self.num_failures = 0
        self.received: list[WeightVersion] = []
        self.num_released = 0

    def receive(self, announcement: PublishWeights, manifest: WeightManifest) -> StagedWeights:
        if self.num_failures:
            self.num_failures -= 1
            raise WeightTransferError("2 of 4 tensors arrived changed")
        self.received.append(announcement.version)
        return StagedWeights(
            version=manifest.version,
            manifest=manifest,
            tensors={"w": torch.ones(1)},
            source="pull",
            transfer_s=0.01,
            buffer=StagingBuffer(),
        )

    def release(self, staged: StagedWeights) -> None:
        self.num_released += 1

    def close(self) -> None:
        pass


class Actor:
    """One worker under test with everything around it."""

    def __init__(self, worker: GenerationWorker, process: Process) -> None:
        self.worker = worker
        self.process = process
        self.running = asyncio.create_task(worker.run())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.worker.close()


class Scene:
    """What a scenario can reach."""

    def __init__(self, broker: FakeBroker, sampler: ScriptedSampler) -> None:
        self.broker = broker
        self.sampler = sampler
        self.receiver = ScriptedReceiver()
        self.actor: Actor | None = None

    def worker_task(self) -> asyncio.Task[None]:
        assert self.actor is not None
        return self.actor.running

    def metric(self, name: str, **labels: str) -> float:
        assert self.actor is not None
        value = self.actor.process.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


Scenario = Callable[[Scene], Awaitable[None]]


def _announced(policy_step: int) -> PublishWeights:
    at = version(policy_step)
    return PublishWeights(version=at, manifest_digest=_manifest(at).digest())


def _manifest(at: WeightVersion) -> WeightManifest:
    return WeightManifest(version=at, tensors=(), canary=_CANARY)


def _lease(group_id: int, text: str = "1+2=", *, size: int = 2, attempt: int = 1) -> PromptLease:
    return PromptLease(
        prompt=Prompt(prompt_id=f"p{group_id}", text=text, task="arithmetic"),
        lease=Lease(group_id=group_id, indices=tuple(range(size)), attempt=attempt),
    )


def _config(root: Path, kind: str) -> Config:
    model = root / "model"
    model.mkdir()
    symbols = ["<pad>", "<eos>", *"0123456789+="]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": 0}')
    run = RunConfig(directory=str(root / "run"), id="run")
    return Config(
        run=replace(run, kind="collect" if kind == "collect" else "train"),
        model=ModelConfig(path=str(model), max_length=12),
        actor=ActorConfig(max_tokens=4, max_num_seqs=4, temperature=0.5),
        learner=LearnerConfig(group_size=2),
        collect=CollectConfig(samples_per_prompt=2),
    )


@contextlib.asynccontextmanager
async def _scene(root: Path, kind: str) -> AsyncIterator[Scene]:
    broker = FakeBroker(f"ipc://{root / 'b.sock'}")
    broker.start()
    scene = Scene(broker, ScriptedSampler(version(0)))
    process = Process("actor", "actor-0", _config(root, kind), metrics_port=0)
    channel = await Channel.connect(
        role=Role.ACTOR, name="actor-0", endpoint=lambda: broker.endpoint
    )
    worker = GenerationWorker(process, channel, lambda: scene.sampler, scene.receiver)
    scene.actor = Actor(worker, process)
    try:
        yield scene
    finally:
        scene.sampler.gate.set()
        await scene.actor.stop()
        await channel.close()
        await broker.stop()
        process.close()


def _play(root: Path, scenario: Scenario, kind: str = "collect") -> Scene:
    async def run() -> Scene:
        async with _scene(root, kind) as scene:
            await scenario(scene)
        return scene

    return asyncio.run(asyncio.wait_for(run(), 60.0))


def _submitted(broker: FakeBroker) -> set[tuple[int, int]]:
    ids = [message.rollout.rollout_id for message, _ in broker.rollouts]
    return {(rollout_id.group_id, rollout_id.index) for rollout_id in ids}


def test_every_index_of_a_lease_comes_back_as_one_rollout_with_its_arrays(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.leases = [_lease(3, attempt=7), _lease(4, "9=", attempt=8)]
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 4)

    scene = _play(tmp_path, scenario)
    assert _submitted(scene.broker) == {(3, 0), (3, 1), (4, 0), (4, 1)}
    message, frames = scene.broker.rollouts[0]
    header = message.rollout
    arrays = arrays_from_frames([memoryview(frame) for frame in frames])
    assert arrays.prompt_token_ids.tolist() == [3, 12, 4, 13]
    assert arrays.completion_token_ids.tolist() == [13, 1]
    assert arrays.behavior_logprobs.tolist() == [-0.25, -0.125]
    assert (header.rollout_id.attempt, header.actor) == (7, "actor-0")
    assert (header.temperature, header.finish_reason) == (0.5, FinishReason.STOP)
    assert header.oldest_version == version(0)
    request = scene.sampler.submitted[0]
    assert (request.max_tokens, request.temperature, request.stop_token_ids) == (4, 0.5, (1,))
    assert scene.metric("headrace_generated_tokens_total") == 8
    assert scene.metric("headrace_rollouts_total", finish="stop") == 4


def test_the_actor_asks_for_no_more_groups_than_it_can_sample_at_once(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.leases = [_lease(number) for number in range(5)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 4)
        await scene.broker.until(lambda: len(scene.broker.of(Heartbeat)) > 5)
        assert len(scene.broker.leases) == 3
        scene.sampler.gate.set()
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 10)

    _play(tmp_path, scenario)


def test_heartbeats_name_what_is_held_and_what_is_served(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.leases = [_lease(3, attempt=7)]
        held = Heartbeat(leases=(_lease(3, attempt=7).lease,), serving=version(0))
        await scene.broker.until(lambda: held in scene.broker.seen)
        scene.sampler.gate.set()
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 2)
        scene.broker.seen.clear()
        await scene.broker.until(lambda: Heartbeat(serving=version(0)) in scene.broker.seen)

    _play(tmp_path, scenario)


def test_a_revoked_index_is_aborted_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 2)
        scene.broker.revoke = (Lease(group_id=3, indices=(0,), attempt=1),)
        await scene.broker.until(lambda: scene.sampler.aborted)
        scene.sampler.gate.set()
        await scene.broker.until(lambda: scene.broker.rollouts)

    scene = _play(tmp_path, scenario)
    assert scene.sampler.aborted == ["3/0/1"]
    assert _submitted(scene.broker) == {(3, 1)}


def test_rollouts_that_finish_while_the_broker_is_away_arrive_after_it_is_back(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.leases = [_lease(3), _lease(4)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 4)
        await scene.broker.stop()
        scene.sampler.gate.set()
        async with asyncio.timeout(20.0):
            while scene.sampler.num_running:
                await asyncio.sleep(0.01)
        scene.broker.start()
        await scene.broker.until(lambda: len(_submitted(scene.broker)) == 4)

    scene = _play(tmp_path, scenario)
    assert _submitted(scene.broker) == {(3, 0), (3, 1), (4, 0), (4, 1)}


def test_a_refused_rollout_is_dropped_and_its_lease_with_it(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.refuse_rollouts = "unknown_lease"
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.broker.of(SubmitRollout)) == 2)
        scene.broker.seen.clear()
        await scene.broker.until(lambda: Heartbeat(serving=version(0)) in scene.broker.seen)

    assert _play(tmp_path, scenario).broker.rollouts == []


@pytest.mark.parametrize("text", ["1+2+3+4+5=", ""])
def test_a_prompt_that_does_not_fit_goes_back_with_the_reason(tmp_path: Path, text: str) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.leases = [_lease(3, text), _lease(4)]
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 2)
        await scene.broker.until(lambda: scene.broker.of(ReturnLease))

    scene = _play(tmp_path, scenario)
    # The stop may also hand back a lease whose last acknowledgement is still on its way.
    refused = [one for one in scene.broker.seen if isinstance(one, ReturnLease) and one.error]
    (returned,) = refused
    assert returned.lease == _lease(3).lease
    assert (
        f"prompt p3 must have 1 to 8 tokens (model.max_length - actor.max_tokens), got {len(text)}"
        in (returned.error)
    )
    assert _submitted(scene.broker) == {(4, 0), (4, 1)}


def test_a_stop_returns_what_is_unfinished_and_sends_what_is_finished(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 2)
        scene.sampler.gate.clear()
        scene.broker.leases = [_lease(4), _lease(5)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 6)

    scene = _play(tmp_path, scenario)
    returned = [
        message.lease
        for message in scene.broker.of(ReturnLease)
        if isinstance(message, ReturnLease)
    ]
    assert sorted(returned, key=lambda lease: lease.group_id) == [_lease(4).lease, _lease(5).lease]
    assert {
        message.error
        for message in scene.broker.of(ReturnLease)
        if isinstance(message, ReturnLease)
    } == {""}
    assert scene.sampler.is_closed


def test_work_that_the_broker_gives_back_to_a_stopping_actor_is_returned_too(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.parks = True
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 2)
        held = Heartbeat(leases=(_lease(3).lease,), serving=version(0))
        await scene.broker.until(lambda: held in scene.broker.seen)

    scene = _play(tmp_path, scenario)
    returned = [
        item.lease for item in scene.broker.of(ReturnLease) if isinstance(item, ReturnLease)
    ]
    assert returned == [_lease(3).lease, _lease(3, attempt=2).lease]
    assert len(scene.sampler.submitted) == 2


def test_a_training_actor_asks_for_nothing_before_its_first_weights_are_proven(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.broker.of(Heartbeat)) > 4)
        assert scene.broker.of(LeasePrompts) == []
        scene.broker.announcement = _announced(5)
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 2)

    scene = _play(tmp_path, scenario, "train")
    kinds = [type(message) for message in scene.broker.seen]
    assert kinds.index(ReportWeights) < kinds.index(LeasePrompts)
    (report,) = scene.broker.of(ReportWeights)
    assert isinstance(report, ReportWeights)
    assert (report.version, report.proven, report.source) == (version(5), True, "pull")
    assert report.stall_s > 0
    (asked, *_) = scene.broker.of(LeasePrompts)
    assert isinstance(asked, LeasePrompts)
    assert asked.serving == version(5)
    assert scene.broker.rollouts[0][0].rollout.oldest_version == version(5)
    assert scene.metric("headrace_weight_syncs_total", result="proven") == 1
    assert scene.metric("headrace_serving_policy_step") == 5
    assert scene.receiver.num_released == 1


def test_weights_that_do_not_arrive_are_reported_once_and_fetched_again_while_serving_goes_on(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.broker.announcement = _announced(1)
        await scene.broker.until(lambda: scene.broker.of(LeasePrompts))
        scene.receiver.num_failures = 2
        scene.broker.announcement = _announced(2)
        await scene.broker.until(lambda: len(scene.broker.of(ReportWeights)) == 2)
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.broker.rollouts) == 2)
        await scene.broker.until(lambda: len(scene.broker.of(ReportWeights)) == 3)

    scene = _play(tmp_path, scenario, "train")
    reports = [
        (report.version.policy_step, report.proven, report.reason)
        for report in scene.broker.of(ReportWeights)
        if isinstance(report, ReportWeights)
    ]
    assert reports == [(1, True, ""), (2, False, "2 of 4 tensors arrived changed"), (2, True, "")]
    assert scene.broker.rollouts[0][0].rollout.oldest_version == version(1)


def test_an_engine_left_partial_is_reported_and_ends_the_actor(tmp_path: Path) -> None:
    failure: Future[BaseException] = Future()

    async def scenario(scene: Scene) -> None:
        scene.sampler.gate.clear()
        scene.broker.announcement = _announced(1)
        scene.broker.leases = [_lease(3)]
        await scene.broker.until(lambda: len(scene.sampler.submitted) == 2)
        scene.sampler.logprob = -0.75
        scene.broker.announcement = _announced(2)
        (outcome,) = await asyncio.gather(scene.worker_task(), return_exceptions=True)
        assert isinstance(outcome, BaseException)
        failure.set_result(outcome)

    scene = _play(tmp_path, scenario, "train")
    group = failure.result(0)
    assert isinstance(group, BaseExceptionGroup)
    assert group.subgroup(WeightLoadError) is not None
    assert scene.broker.rollouts == []
    last = [item for item in scene.broker.of(ReportWeights) if isinstance(item, ReportWeights)][-1]
    assert (last.version, last.proven) == (version(2), False)
    assert "0.25 nats on the canary" in last.reason
    assert [
        item.lease for item in scene.broker.of(ReturnLease) if isinstance(item, ReturnLease)
    ] == [_lease(3).lease]
    assert scene.metric("headrace_weight_syncs_total", result="failed") == 1
