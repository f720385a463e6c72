"""The verifier loop over a real socket and real children, against a broker of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from actors.verification.child import ChildLimits
from actors.verification.pool import VerifierPool
from actors.verification.worker import VerifierWorker
from common.arrays import RolloutArrays
from common.broker_socket import BrokerSocket
from common.config import RewardWeight
from common.messages import (
    Ack,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseRollouts,
    Refused,
    Register,
    Registered,
    Reply,
    Request,
    ReturnLease,
    RolloutLease,
    RolloutLeases,
    SubmitVerdict,
)
from common.metrics import Metrics
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import (
    FinishReason,
    Prompt,
    Role,
    RolloutHeader,
    RolloutId,
    VerdictStatus,
    VersionSpan,
    WeightVersion,
)

_REWARDS = (RewardWeight(name="accuracy"), RewardWeight(name="format"))
_TEXT = "<think>7+2=9</think><answer>9</answer>"


class FakeBroker:
    """Hands out ``work`` once, answers everything, remembers what it was told."""

    def __init__(self, work: Sequence[tuple[RolloutLease, RolloutArrays]]) -> None:
        self.waiting = list(work)
        self.seen: list[Request] = []
        self.revoke: tuple[Lease, ...] = ()
        self.refuse_verdicts = False
        self.changed = asyncio.Event()

    def verdicts(self) -> list[SubmitVerdict]:
        return [message for message in self.seen if isinstance(message, SubmitVerdict)]

    def returned(self) -> list[ReturnLease]:
        return [message for message in self.seen if isinstance(message, ReturnLease)]

    def holds_nothing(self) -> bool:
        """The worker's last word was a heartbeat without leases."""
        return self.seen[-1] == Heartbeat()

    async def until(self, condition: Callable[[FakeBroker], bool]) -> None:
        async with asyncio.timeout(20.0):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    async def serve(self, socket: BrokerSocket) -> None:
        while True:
            for incoming in await socket.receive(64):
                assert not isinstance(incoming.decoded, Exception)
                message = incoming.decoded.message
                reply, frames = await self._answer(message)
                socket.send(incoming.peer, incoming.request_id, reply, frames)
                self.seen.append(message)  # type: ignore[arg-type]  # clients send requests only
                self.changed.set()

    async def _answer(self, message: object) -> tuple[Reply, list[memoryview]]:
        if isinstance(message, Register):
            return (
                Registered(run_id="run", broker_nonce="one", heartbeat_s=0.05, lease_s=5.0),
                [],
            )
        if isinstance(message, Heartbeat):
            return HeartbeatReply(revoked=self.revoke), []
        if isinstance(message, LeaseRollouts):
            given = self.waiting[: message.max_rollouts]
            del self.waiting[: message.max_rollouts]
            if not given:
                await asyncio.sleep(0.02)
            frames = [frame for _, arrays in given for frame in arrays.frames()]
            return RolloutLeases(leases=tuple(lease for lease, _ in given)), frames
        if isinstance(message, SubmitVerdict) and self.refuse_verdicts:
            return Refused(code="not-yours", reason="the lease went to another verifier"), []
        return Ack(), []


def _tokenizer() -> TextTokenizer:
    symbols = ["<pad>", "<eos>", *sorted(set(_TEXT + "0123456789+="))]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, (1,), (0,))


def _work(
    index: int, text: str, *, task: str = "arithmetic", reference: str = '{"gold":"9"}'
) -> tuple[RolloutLease, RolloutArrays]:
    token_ids = np.array([*_tokenizer().encode(text), 1], dtype=np.int32)
    arrays = RolloutArrays(
        np.array([2, 3], dtype=np.int32), token_ids, np.full(len(token_ids), -0.5, np.float32)
    )
    header = RolloutHeader(
        rollout_id=RolloutId(group_id=7, index=index, attempt=2),
        num_prompt_tokens=2,
        num_completion_tokens=len(token_ids),
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=(VersionSpan(start=0, version=WeightVersion(incarnation=0, policy_step=0)),),
        actor="actor-0",
    )
    prompt = Prompt(prompt_id="p", text="7+2=", task=task, reference_json=reference)
    return RolloutLease(prompt=prompt, rollout=header, verify_attempt=3), arrays


@contextlib.asynccontextmanager
async def _broker_socket(path: Path) -> AsyncIterator[BrokerSocket]:
    socket = BrokerSocket.bind(f"ipc://{path}")
    try:
        yield socket
    finally:
        socket.close()


def _with_worker(
    broker_work: Sequence[tuple[RolloutLease, RolloutArrays]],
    scenario: Callable[[FakeBroker, asyncio.Task[None]], Awaitable[None]],
    path: Path,
    *,
    registry: str = "actors.verification.registry",
) -> FakeBroker:
    """Run a worker against a fake broker until ``scenario`` returns, then stop the worker."""

    async def run() -> FakeBroker:
        broker = FakeBroker(broker_work)
        async with (
            _broker_socket(path / "broker.sock") as socket,
            VerifierPool(ChildLimits(20.0, 1 << 30, registry), 1) as pool,
        ):
            serving = asyncio.create_task(broker.serve(socket))
            channel = await Channel.connect(
                role=Role.VERIFIER, name="verifier-0", endpoint=lambda: socket.endpoint
            )
            worker = VerifierWorker(
                channel,
                pool,
                _tokenizer(),
                _REWARDS,
                metrics=Metrics(),
                log=structlog.stdlib.get_logger(),
                heartbeat_s=0.05,
            )
            working = asyncio.create_task(worker.run())
            try:
                await scenario(broker, working)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await channel.close()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
        return broker

    return asyncio.run(asyncio.wait_for(run(), timeout=60.0))


def test_every_leased_rollout_gets_the_verdict_of_its_own_text(tmp_path: Path) -> None:
    texts = [f"<think></think><answer>{value}</answer>" for value in range(8, 11)]
    work = [_work(index, text) for index, text in enumerate([*texts * 20, "9"])]

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.verdicts()) == 61)

    broker = _with_worker(work, scenario, tmp_path)
    rewards = {
        submit.rollout_id.index: (submit.verdict.status, submit.verdict.reward)
        for submit in broker.verdicts()
    }
    assert rewards == {
        **{i: (VerdictStatus.GRADED, 2.0 if i % 3 == 1 else 1.0) for i in range(60)},
        60: (VerdictStatus.WRONG_FORMAT, 0.0),
    }
    assert {(v.rollout_id.attempt, v.verify_attempt) for v in broker.verdicts()} == {(2, 3)}


@pytest.mark.parametrize(
    ("task", "reference"), [("arithmetic", '{"gold":"nine"}'), ("no-such-kind", "{}")]
)
def test_a_task_that_cannot_be_judged_is_bad_input_and_carries_no_reward(
    tmp_path: Path, task: str, reference: str
) -> None:
    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.verdicts()) == 1)

    work = [_work(0, _TEXT, task=task, reference=reference)]
    (submit,) = _with_worker(work, scenario, tmp_path).verdicts()
    assert submit.verdict.status is VerdictStatus.BAD_INPUT
    assert submit.verdict.reward is None


def test_a_rollout_whose_arrays_are_impossible_is_returned_with_an_error(tmp_path: Path) -> None:
    lease, arrays = _work(0, _TEXT)
    arrays.behavior_logprobs[3] = np.nan

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: bool(seen.returned()) and seen.holds_nothing())

    broker = _with_worker([(lease, arrays)], scenario, tmp_path)
    (returned,) = broker.returned()
    assert returned.lease == Lease(group_id=7, indices=(0,), attempt=3)
    assert returned.error == "behavior_logprobs must be finite and at most 0"
    assert broker.verdicts() == []


def test_a_stopping_worker_names_its_leases_until_then_and_gives_them_back(
    tmp_path: Path,
) -> None:
    held = (Lease(group_id=7, indices=(0,), attempt=3), Lease(group_id=7, indices=(1,), attempt=3))

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: Heartbeat(leases=held) in seen.seen)

    work = [_work(0, _TEXT, task="hang"), _work(1, _TEXT, task="hang")]
    broker = _with_worker(work, scenario, tmp_path, registry="tests.integration.hostile_verifiers")
    assert {message.lease for message in broker.returned()} == set(held)
    assert {message.error for message in broker.returned()} == {""}
    assert broker.verdicts() == []


def test_a_revoked_lease_is_neither_submitted_nor_named_again(tmp_path: Path) -> None:
    revoked = Lease(group_id=7, indices=(0,), attempt=3)

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: Heartbeat(leases=(revoked,)) in seen.seen)
        broker.revoke = (revoked,)
        seen_before = len(broker.seen)
        await broker.until(lambda seen: Heartbeat() in seen.seen[seen_before:])

    work = [_work(0, _TEXT, task="hang")]
    broker = _with_worker(work, scenario, tmp_path, registry="tests.integration.hostile_verifiers")
    assert broker.verdicts() == []
    assert broker.returned() == []


def test_a_refused_verdict_drops_the_lease_and_the_worker_goes_on(tmp_path: Path) -> None:
    async def scenario(broker: FakeBroker, working: asyncio.Task[None]) -> None:
        broker.refuse_verdicts = True
        broker.waiting.append(_work(0, _TEXT))
        await broker.until(lambda seen: len(seen.verdicts()) == 1)
        broker.refuse_verdicts = False
        broker.waiting.append(_work(1, _TEXT))
        await broker.until(lambda seen: len(seen.verdicts()) == 2 and seen.holds_nothing())
        assert not working.done()

    broker = _with_worker([], scenario, tmp_path)
    assert [submit.rollout_id.index for submit in broker.verdicts()] == [0, 1]
    assert broker.returned() == []


def test_a_worker_outlives_a_restart_of_the_broker(tmp_path: Path) -> None:
    async def run() -> None:
        first = FakeBroker([_work(0, _TEXT)])
        second = FakeBroker([_work(1, _TEXT)])
        endpoint = f"ipc://{tmp_path}/broker.sock"
        async with VerifierPool(ChildLimits(20.0, 1 << 30), 1) as pool:
            socket = BrokerSocket.bind(endpoint)
            serving = asyncio.create_task(first.serve(socket))
            channel = await Channel.connect(
                role=Role.VERIFIER, name="verifier-0", endpoint=lambda: endpoint
            )
            worker = VerifierWorker(
                channel,
                pool,
                _tokenizer(),
                _REWARDS,
                metrics=Metrics(),
                log=structlog.stdlib.get_logger(),
                heartbeat_s=0.05,
            )
            working = asyncio.create_task(worker.run())
            await first.until(lambda seen: len(seen.verdicts()) == 1)
            serving.cancel()
            socket.close()
            socket = BrokerSocket.bind(endpoint)
            serving = asyncio.create_task(second.serve(socket))
            await second.until(lambda seen: len(seen.verdicts()) == 1)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await channel.close()
            serving.cancel()
            socket.close()

    asyncio.run(asyncio.wait_for(run(), timeout=60.0))
