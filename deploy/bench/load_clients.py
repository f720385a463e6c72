"""The clients that load a broker for a benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

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
from deploy.bench.raw_client import MESSAGE_BYTES, WINDOW, RawClient, Ready
from deploy.bench.round_trips import round_trips

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
            rollouts = list(_answers(prompts))
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
            time.sleep(_PACE_S)  # the offered load is a pace
        return {"start_s": start_s, "end_s": time.monotonic(), "messages": len(ready)}

    def probe(self, number: int, pause_s: float, num_lanes: int) -> dict[str, Any]:
        """Seconds from sending a verdict to its acknowledgement, ``num_lanes`` at a time."""
        ready, self._ready = self._ready[:number], self._ready[number:]
        messages = [parts for _, parts in ready]
        client, pace = self._verifier, (pause_s, num_lanes)
        return {"seconds": round_trips(client.socket, messages, pace, client.receive_acks)}


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


def _answers(prompts: PromptLeases) -> Iterator[tuple[SubmitRollout, Sequence[bytes]]]:
    """A rollout for each sample that was leased."""
    for item in prompts.leases:
        for index in item.lease.indices:
            header = _rollout(item.lease.group_id, index, item.lease.attempt)
            yield SubmitRollout(rollout=header), _ARRAYS


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
