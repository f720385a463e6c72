"""The verifier loop over a real socket and real children, against a broker of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import structlog
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from actors.verification.backends import BackendSource
from actors.verification.child import ChildLimits
from actors.verification.dispatch import Dispatcher
from actors.verification.pool import VerifierPool
from actors.verification.rollout_judge import RolloutJudge
from actors.verification.worker import Fetcher, VerifierWorker
from common.arrays import RolloutArrays
from common.broker_socket import BrokerSocket
from common.config import MonitorConfig, RewardWeight, VerifierConfig
from common.errors import InfraError
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
from common.payloads.client import Fetched, Wanted
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

_CONFIG = VerifierConfig(wall_limit_s=20.0, memory_limit_bytes=1 << 30)
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
            sent = [arrays for lease, arrays in given if not lease.rollout.store]
            frames = [frame for arrays in sent for frame in arrays.frames()]
            return RolloutLeases(leases=tuple(lease for lease, _ in given)), frames
        if isinstance(message, SubmitVerdict) and self.refuse_verdicts:
            return Refused(code="not-yours", reason="the lease went to another verifier"), []
        return Ack(), []


def _tokenizer() -> TextTokenizer:
    symbols = ["<pad>", "<eos>", *sorted(set(_TEXT + "0123456789+=*"))]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, (1,), (0,))


def _work(
    index: int,
    text: str,
    *,
    task: str = "arithmetic",
    reference: str = '{"gold":"9"}',
    prompt_end: str = "=",
) -> tuple[RolloutLease, RolloutArrays]:
    token_ids = np.array([*_tokenizer().encode(text), 1], dtype=np.int32)
    arrays = RolloutArrays(
        np.array(_tokenizer().encode(prompt_end), dtype=np.int32),
        token_ids,
        np.full(len(token_ids), -0.5, np.float32),
    )
    header = RolloutHeader(
        rollout_id=RolloutId(group_id=7, index=index, attempt=2),
        num_prompt_tokens=len(arrays.prompt_token_ids),
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


def _dispatcher(config: VerifierConfig, registry: str) -> Dispatcher:
    """All kinds in one pool whose children import ``registry``."""

    def pool(config: VerifierConfig) -> VerifierPool:
        limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes, registry)
        return VerifierPool(limits, config.num_workers)

    return Dispatcher(config, sources=[], default=BackendSource("rules", frozenset(), pool))


def _judge(dispatcher: Dispatcher, config: VerifierConfig, metrics: Metrics) -> RolloutJudge:
    log = structlog.stdlib.get_logger()
    return RolloutJudge(dispatcher, _tokenizer(), config, metrics=metrics, log=log)


def _with_worker(
    broker_work: Sequence[tuple[RolloutLease, RolloutArrays]],
    scenario: Callable[[FakeBroker, asyncio.Task[None]], Awaitable[None]],
    path: Path,
    *,
    registry: str = "actors.verification.registry",
    config: VerifierConfig = _CONFIG,
    metrics: Metrics | None = None,
    payloads: Fetcher | None = None,
    on_pause: Callable[[str], None] = lambda reason: None,
) -> FakeBroker:
    """Run a worker against a fake broker until ``scenario`` returns, then stop the worker."""

    metrics = metrics or Metrics()

    async def run() -> FakeBroker:
        broker = FakeBroker(broker_work)
        async with (
            _broker_socket(path / "broker.sock") as socket,
            _dispatcher(config, registry) as dispatcher,
        ):
            serving = asyncio.create_task(broker.serve(socket))
            channel = await Channel.connect(
                role=Role.VERIFIER, name="verifier-0", endpoint=lambda: socket.endpoint
            )
            worker = VerifierWorker(
                channel,
                _judge(dispatcher, config, metrics),
                metrics=metrics,
                log=structlog.stdlib.get_logger(),
                heartbeat_s=0.05,
                payloads=payloads,
                on_pause=on_pause,
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


def test_an_answer_inside_of_a_thought_that_the_prompt_opened_is_none(tmp_path: Path) -> None:
    rest = "7+2=9</think><answer>9</answer>"
    work = [
        _work(0, rest, prompt_end="=<think>"),
        _work(1, "<answer>9</answer>", prompt_end="=<think>"),
        _work(2, rest, prompt_end="="),
    ]

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.verdicts()) == 3)

    broker = _with_worker(work, scenario, tmp_path)
    rewards = {item.rollout_id.index: item.verdict.reward for item in broker.verdicts()}
    assert rewards == {0: 2.0, 1: 0.0, 2: 1.0}


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
    assert "behavior_logprobs must be finite and at most 0" in returned.error
    assert broker.verdicts() == []


class FakeStores:
    """Hold the arrays of ``work``, and count how often they are asked; ``away`` do not answer."""

    def __init__(
        self, work: Sequence[tuple[RolloutLease, RolloutArrays]] = (), away: str = ""
    ) -> None:
        self.arrays = {lease.rollout.rollout_id: (lease, arrays) for lease, arrays in work}
        self.away = away
        self.asked: list[tuple[set[str], int]] = []

    async def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | None]:
        stores = {item.store for item in wanted}
        self.asked.append((stores, len(wanted)))
        if self.away in stores:
            raise InfraError("the store does not answer")
        found = (self.arrays.get(item.rollout_id) for item in wanted)
        return [
            None if item is None else Fetched(item[0].rollout, item[1].frames()) for item in found
        ]


def _in_store(
    work: Sequence[tuple[RolloutLease, RolloutArrays]], store: str = "store-0"
) -> list[RolloutLease]:
    return [
        msgspec.structs.replace(lease, rollout=msgspec.structs.replace(lease.rollout, store=store))
        for lease, _ in work
    ]


def _without_frames(leases: Sequence[RolloutLease]) -> list[tuple[RolloutLease, RolloutArrays]]:
    empty = RolloutArrays(*(np.zeros(0, np.int32),) * 2, np.zeros(0, np.float32))
    return [(lease, empty) for lease in leases]


def test_arrays_of_all_leases_of_a_reply_are_fetched_at_once(tmp_path: Path) -> None:
    work = [_work(index, _TEXT) for index in range(8)]
    store = FakeStores(work[1:])  # what is not there is lost

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.verdicts()) == 7 and seen.holds_nothing())

    given = _without_frames(_in_store(work))
    broker = _with_worker(given, scenario, tmp_path, payloads=store)
    assert store.asked == [({"store-0"}, 8)]
    assert sorted(submit.rollout_id.index for submit in broker.verdicts()) == [1, 2, 3, 4, 5, 6, 7]
    assert {submit.verdict.reward for submit in broker.verdicts()} == {2.0}
    assert broker.returned() == []


@pytest.mark.parametrize(
    ("store", "error"),
    [
        (FakeStores(away="store-0"), ""),
        (None, "the arrays are in store 'store-0', none is known here"),
    ],
)
def test_leases_whose_store_cannot_be_asked_are_returned(
    tmp_path: Path, store: FakeStores | None, error: str
) -> None:
    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.returned()) == 3 and seen.holds_nothing())

    given = _without_frames(_in_store([_work(index, _TEXT) for index in range(3)]))
    broker = _with_worker(given, scenario, tmp_path, payloads=store)
    assert {message.error for message in broker.returned()} == {error}
    assert broker.verdicts() == []


def test_a_store_that_is_away_holds_up_no_other(tmp_path: Path) -> None:
    work = [_work(index, _TEXT) for index in range(6)]
    stores = FakeStores(work, away="store-1")
    leases = [*_in_store(work[:3]), *_in_store(work[3:], "store-1")]

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(
            lambda seen: len(seen.verdicts()) + len(seen.returned()) == 6 and seen.holds_nothing()
        )

    broker = _with_worker(_without_frames(leases), scenario, tmp_path, payloads=stores)
    assert sorted(submit.rollout_id.index for submit in broker.verdicts()) == [0, 1, 2]
    assert sorted(message.lease.indices for message in broker.returned()) == [(3,), (4,), (5,)]
    assert [number for _, number in stores.asked] == [3, 3]


def test_a_hung_answer_costs_only_itself_and_is_found_within_a_second_of_its_limit(
    tmp_path: Path,
) -> None:
    hung = 0
    seconds: list[float] = []
    config = VerifierConfig(
        wall_limit_s=0.5, num_workers=2, rewards=(RewardWeight(name="accuracy"),)
    )

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        started = time.monotonic()
        broker.waiting += [_work(hung, _TEXT, task="hang")]
        broker.waiting += [_work(index, _TEXT, task="right") for index in range(1, 40)]
        await broker.until(lambda seen: any(v.rollout_id.index == hung for v in seen.verdicts()))
        seconds.append(time.monotonic() - started)
        await broker.until(lambda seen: len(seen.verdicts()) == 40)

    broker = _with_worker(
        [], scenario, tmp_path, registry="tests.integration.hostile_verifiers", config=config
    )
    verdicts = {submit.rollout_id.index: submit.verdict for submit in broker.verdicts()}
    assert verdicts[hung].status is VerdictStatus.LIMIT_EXCEEDED
    assert verdicts[hung].reward == 0.0
    assert {verdicts[index].reward for index in range(1, 40)} == {1.0}
    assert 0.5 <= seconds[0] < 1.5


def _has_verdicts(number: int) -> Callable[[FakeBroker], bool]:
    return lambda seen: len(seen.verdicts()) == number


def test_an_answer_that_kills_its_verifier_is_an_infra_error_and_is_not_tried_here_again(
    tmp_path: Path,
) -> None:
    metrics = Metrics()
    config = VerifierConfig(rewards=(RewardWeight(name="accuracy"),))
    deadly = _work(0, _TEXT, task="kill-itself")

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        for number in range(1, 4):  # the broker leases it again until the dead letter
            broker.waiting.append(deadly)
            await broker.until(_has_verdicts(number))
        broker.waiting.append(_work(1, _TEXT, task="right"))
        await broker.until(lambda seen: len(seen.verdicts()) == 4)

    registry = "tests.integration.hostile_verifiers"
    broker = _with_worker([], scenario, tmp_path, registry=registry, config=config, metrics=metrics)
    *failures, honest = [submit.verdict for submit in broker.verdicts()]
    assert [verdict.status for verdict in failures] == [VerdictStatus.INFRA_ERROR] * 3
    assert "died in mid-job, 2 times" in failures[0].reason
    assert "not tried again" in failures[1].reason
    assert honest.reward == 1.0
    assert _sample(metrics, "headrace_verifier_restarts_total") == 2
    assert _sample(metrics, "headrace_verifier_quarantined_total") == 1


def test_times_failures_and_backlog_are_told_by_kind_of_check(tmp_path: Path) -> None:
    metrics = Metrics()
    work = [_work(0, _TEXT), _work(1, _TEXT), _work(2, _TEXT, reference="{}")]
    work.append(_work(3, _TEXT, task="made-up-by-a-prompt"))

    async def scenario(broker: FakeBroker, _: asyncio.Task[None]) -> None:
        await broker.until(lambda seen: len(seen.verdicts()) == 4 and seen.holds_nothing())

    _with_worker(work, scenario, tmp_path, metrics=metrics)
    counts = {
        kind: _sample(metrics, "headrace_verify_seconds_count", kind=kind)
        for kind in ("arithmetic", "format", "unknown")
    }
    assert counts == {"arithmetic": 3, "format": 4, "unknown": 1}
    failures = "headrace_verify_failures_total"
    assert _sample(metrics, failures, kind="arithmetic", status="bad-input") == 1
    assert _sample(metrics, failures, kind="unknown", status="bad-input") == 1
    assert _sample(metrics, "headrace_verify_backlog") == 0


def test_a_worker_paused_by_the_monitor_answers_what_it_holds_and_takes_no_more(
    tmp_path: Path,
) -> None:
    metrics, reasons = Metrics(), list[str]()
    monitor = MonitorConfig(action="pause", window=4, max_exploit_ratio=0.4)
    config = VerifierConfig(monitor=monitor, memory_limit_bytes=1 << 30)
    trick = "<think></think><answer>3**2</answer>"

    async def scenario(broker: FakeBroker, working: asyncio.Task[None]) -> None:
        broker.waiting += [_work(index, trick) for index in range(4)]
        await broker.until(lambda seen: len(seen.verdicts()) == 4 and seen.holds_nothing())
        broker.waiting.append(_work(9, _TEXT))
        beats = len(broker.seen)
        await broker.until(lambda seen: len(seen.seen) > beats + 10)
        assert not working.done()

    broker = _with_worker(
        [], scenario, tmp_path, config=config, metrics=metrics, on_pause=reasons.append
    )
    assert len(broker.verdicts()) == 4
    assert [lease.rollout.rollout_id.index for lease, _ in broker.waiting] == [9]
    (reason,) = reasons
    assert "exploits: 100.0% of the answers look like a known exploit" in reason
    assert _sample(metrics, "headrace_verifier_paused") == 1
    assert _sample(metrics, "headrace_reward_hacking_alarm", alarm="exploits") == 1


def _sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


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
        async with _dispatcher(_CONFIG, "actors.verification.registry") as dispatcher:
            socket = BrokerSocket.bind(endpoint)
            serving = asyncio.create_task(first.serve(socket))
            channel = await Channel.connect(
                role=Role.VERIFIER, name="verifier-0", endpoint=lambda: endpoint
            )
            worker = VerifierWorker(
                channel,
                _judge(dispatcher, _CONFIG, Metrics()),
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
