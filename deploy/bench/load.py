"""The processes that load a broker, or its baseline, for a benchmark.

``python -m deploy.bench.load KIND ARGUMENTS`` obeys lines of JSON on standard input, one command a
line, and answers each with one line. Times are of the machine's monotonic clock, so that those of
several processes compare.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from common.lifecycle import die_with_parent
from common.messages import (
    MAX_BATCH_REQUESTS,
    CommitStep,
    Groups,
    LeasePrompts,
    LeaseRollouts,
    PromptLeases,
    PullGroups,
    RolloutLeases,
    SubmitRollout,
    SubmitVerdict,
)
from common.sockets import set_common_options
from common.types import (
    FinishReason,
    Role,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    VersionSpan,
    WeightVersion,
)
from deploy.bench.raw_client import MESSAGE_BYTES, RawClient, Ready

WINDOW = 2048
"""Messages that a source has under way; half of what a client may have."""

_PRELUDE_BYTES = 16
_PACE_S = 0.001
_VERSION = WeightVersion(incarnation=0, policy_step=0)
_NUM_TOKENS = 4
_ARRAYS = (bytes(4 * _NUM_TOKENS),) * 3


class VerdictSource:
    """An actor and a verifier in one: prepares rollouts, then fires their verdicts."""

    def __init__(self, endpoint: str, name: str) -> None:
        context = zmq.Context()
        self._actor = RawClient(context, endpoint)
        self._actor.register(Role.ACTOR, f"{name}-actor")
        self._verifier = RawClient(context, endpoint)
        self._verifier.register(Role.VERIFIER, f"{name}-verifier")
        self._ready: list[Ready] = []

    def prepare(self, number: int) -> dict[str, Any]:
        """Lease, sample and lease again ``number`` rollouts; their verdicts lie ready."""
        num_messages = 0
        while len(self._ready) < number:
            lease = LeasePrompts(serving=_VERSION, max_groups=64, wait_s=10.0)
            prompts = self._actor.request(lease)
            if not isinstance(prompts, PromptLeases):
                raise TypeError(type(prompts).__name__)
            rollouts = [
                (
                    SubmitRollout(rollout=_rollout(item.lease.group_id, index, item.lease.attempt)),
                    _ARRAYS,
                )
                for item in prompts.leases
                for index in item.lease.indices
            ]
            self._actor.request_all(rollouts)
            num_messages += 2 + len(rollouts)
            leased = self._verifier.request(LeaseRollouts(max_rollouts=len(rollouts), wait_s=10.0))
            if not isinstance(leased, RolloutLeases):
                raise TypeError(type(leased).__name__)
            for item in leased.leases:
                self._ready.append(self._verdict(item.rollout.rollout_id, item.verify_attempt))
        return {"ready": len(self._ready), "messages": num_messages}

    def _verdict(self, rollout_id: RolloutId, attempt: int) -> Ready:
        """A verdict of :data:`MESSAGE_BYTES` bytes."""
        padding = MESSAGE_BYTES - _PRELUDE_BYTES
        for _ in range(2):
            ready = self._verifier.encode(
                SubmitVerdict(
                    rollout_id=rollout_id,
                    verify_attempt=attempt,
                    verdict=Verdict(
                        status=VerdictStatus.GRADED, reward=1.0, reason="x" * max(padding, 0)
                    ),
                )
            )
            padding += MESSAGE_BYTES - sum(map(len, ready[1]))
        return ready

    def fire(self, number: int, batch: int = MAX_BATCH_REQUESTS) -> dict[str, Any]:
        """Send ``number`` verdicts, ``batch`` a message, as fast as acknowledgements come back."""
        ready, self._ready = self._ready[:number], self._ready[number:]
        send, receive = self._verifier.send_batch, self._verifier.receive_acks
        start_s = time.monotonic()
        under_way = 0
        for start in range(0, len(ready), batch):
            while under_way > WINDOW - batch:
                under_way -= receive()
            send(part := ready[start : start + batch])
            under_way += len(part)
        while under_way:
            under_way -= receive()
        return {"start_s": start_s, "end_s": time.monotonic(), "messages": len(ready)}

    def pace(self, number: int, per_second: float) -> dict[str, Any]:
        """Send ``number`` verdicts at a steady rate, whatever comes back."""
        ready, self._ready = self._ready[:number], self._ready[number:]
        start_s = time.monotonic()
        num_sent = num_acked = 0
        while num_acked < len(ready):
            due = min(int((time.monotonic() - start_s) * per_second) + 1, len(ready))
            for start in range(num_sent, due, MAX_BATCH_REQUESTS):
                self._verifier.send_batch(ready[start : min(start + MAX_BATCH_REQUESTS, due)])
            num_sent = due
            while self._verifier.socket.poll(0):
                num_acked += self._verifier.receive_acks()
            time.sleep(_PACE_S)
        return {"start_s": start_s, "end_s": time.monotonic(), "messages": len(ready)}

    def probe(self, number: int, pause_s: float, num_lanes: int) -> dict[str, Any]:
        """Seconds from sending a verdict to its acknowledgement, ``num_lanes`` at a time."""
        ready, self._ready = self._ready[:number], self._ready[number:]
        messages = [parts for _, parts in ready]
        client, pace = self._verifier, (pause_s, num_lanes)
        return {"seconds": _round_trips(client.socket, messages, pace, client.receive_acks)}


class Collector:
    """Takes verified groups and commits them."""

    def __init__(self, endpoint: str) -> None:
        self._client = RawClient(zmq.Context(), endpoint)
        self._client.register(Role.COLLECTOR, "collector")

    def drain(self, number: int) -> dict[str, Any]:
        """Pull and commit groups until ``number`` are done."""
        num_messages = 0
        while number > 0:
            groups = self._client.request(PullGroups(policy_step=0, max_groups=256, wait_s=10.0))
            if not isinstance(groups, Groups):
                raise TypeError(type(groups).__name__)
            group_ids = tuple(group.group_id for group in groups.groups)
            commit = CommitStep(incarnation=0, policy_step=0, group_ids=group_ids)
            self._client.request(commit)
            number -= len(group_ids)
            num_messages += 2
        return {"messages": num_messages}


class Source:
    """Sends messages of the benchmark's size as fast as its socket takes them."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._parts = [bytes(_PRELUDE_BYTES), bytes(MESSAGE_BYTES - _PRELUDE_BYTES)]

    def fire(self, number: int) -> dict[str, Any]:
        """Send ``number`` messages."""
        send = self._socket.send
        prelude, header = self._parts
        start_s = time.monotonic()
        for _ in range(number):
            send(prelude, zmq.SNDMORE)
            send(header)
        return {"start_s": start_s}

    def fire_plainly(self, number: int) -> dict[str, Any]:
        """As :meth:`fire`, a multipart message at a time."""
        send = self._socket.send_multipart
        start_s = time.monotonic()
        for _ in range(number):
            send(self._parts)
        return {"start_s": start_s}

    def fire_acknowledged(self, number: int) -> dict[str, Any]:
        """As :meth:`fire`, at most :data:`WINDOW` ahead of the acknowledgements."""
        socket = self._socket
        prelude, header = self._parts
        start_s = time.monotonic()
        under_way = 0
        for _ in range(number):
            while under_way >= WINDOW:
                under_way -= int(socket.recv())
            socket.send(prelude, zmq.SNDMORE)
            socket.send(header)
            under_way += 1
        while under_way:
            under_way -= int(socket.recv())
        return {"start_s": start_s, "end_s": time.monotonic()}

    def probe(self, number: int, pause_s: float, num_lanes: int) -> dict[str, Any]:
        """Seconds from sending a message to its echo, ``num_lanes`` at a time."""

        def receive() -> int:
            self._socket.recv_multipart()
            return 1

        messages, pace = [self._parts] * number, (pause_s, num_lanes)
        return {"seconds": _round_trips(self._socket, messages, pace, receive)}


class Sink:
    """Receives what a proxy forwards."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.DEALER)
        self._socket.connect(endpoint)

    def count(self, number: int) -> dict[str, Any]:
        """Receive ``number`` messages."""
        receive = self._socket.recv
        for _ in range(3 * number):  # routing id, prelude, header
            receive()
        return {"end_s": time.monotonic()}

    def count_plainly(self, number: int) -> dict[str, Any]:
        """As :meth:`count`, a multipart message at a time."""
        receive = self._socket.recv_multipart
        for _ in range(number):
            receive()
        return {"end_s": time.monotonic()}

    def acknowledge(self, number: int) -> dict[str, Any]:
        """Receive ``number`` messages and tell each source how many, once a batch."""
        receive = self._socket.recv
        while number:
            self._socket.poll()
            arrived: Counter[bytes] = Counter()
            try:
                while True:
                    source = receive(zmq.NOBLOCK)
                    receive()
                    receive()
                    arrived[source] += 1
            except zmq.Again:
                pass
            for source, count in arrived.items():
                self._socket.send_multipart([source, str(count).encode()])
            number -= arrived.total()
        return {"end_s": time.monotonic()}


class Proxy:
    """``zmq.proxy``: the fastest that libzmq forwards."""

    def __init__(self, front: str, back: str) -> None:
        self._front, self._back = _socket(zmq.ROUTER), _socket(zmq.DEALER)
        self._front.bind(front)
        self._back.bind(back)

    def run(self) -> dict[str, Any]:
        """Forward until killed."""
        zmq.proxy(self._front, self._back)
        return {}


class Echo:
    """A ROUTER that sends everything back."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.ROUTER)
        self._socket.bind(endpoint)

    def run(self) -> dict[str, Any]:
        """Echo until killed."""
        while True:
            self._socket.send_multipart(self._socket.recv_multipart())


_CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
_KINDS: dict[str, Callable[..., object]] = {
    "verdicts": VerdictSource,
    "collector": Collector,
    "source": Source,
    "sink": Sink,
    "proxy": Proxy,
    "echo": Echo,
}


def _socket(kind: int) -> zmq.Socket[bytes]:
    socket = _CONTEXT.socket(kind)
    set_common_options(socket)
    return socket


def _round_trips(
    socket: zmq.Socket[bytes],
    messages: list[list[bytes]],
    pace: tuple[float, int],
    receive: Callable[[], int],
) -> list[float]:
    """Seconds of each round trip; ``pace`` is the pause after each, and how many there are at once.

    ``receive`` waits for a message and returns how many round trips it ends: the oldest ones.
    """
    seconds: list[float] = []
    (pause_s, num_lanes), start_s = pace, time.perf_counter()
    due_s = deque(start_s + lane * pause_s / num_lanes for lane in range(num_lanes))
    sent_s: deque[float] = deque()
    waiting = deque(messages)
    while len(seconds) < len(messages):
        now_s = time.perf_counter()
        if waiting and due_s and due_s[0] <= now_s:
            due_s.popleft()
            sent_s.append(now_s)
            socket.send_multipart(waiting.popleft())
        elif not sent_s:
            time.sleep(max(due_s[0] - now_s, 0.0))  # the offered load is a pace
        elif socket.poll(_poll_ms(due_s[0] - now_s) if waiting and due_s else None):
            num_ended, now_s = receive(), time.perf_counter()
            seconds.extend(now_s - sent_s.popleft() for _ in range(num_ended))
            due_s.extend([now_s + pause_s] * num_ended)
    return seconds


def _poll_ms(seconds: float) -> int:
    return max(math.ceil(1000 * seconds), 0)


def _rollout(group_id: int, index: int, attempt: int) -> RolloutHeader:
    return RolloutHeader(
        rollout_id=RolloutId(group_id=group_id, index=index, attempt=attempt),
        num_prompt_tokens=_NUM_TOKENS,
        num_completion_tokens=_NUM_TOKENS,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=(VersionSpan(start=0, version=_VERSION),),
        actor="load",
    )


def _commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Be one of the kinds until standard input ends."""
    die_with_parent()
    worker = _KINDS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({}), flush=True)
    for command in _commands():
        method = getattr(worker, command.pop("do"))
        print(json.dumps(method(**command)), flush=True)


if __name__ == "__main__":
    main()
