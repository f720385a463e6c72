"""Both sides of the broker's own path in benchmark B1: arrays that pass through the ledger."""

from __future__ import annotations

import time

from common.codec import encode
from common.errors import FatalError
from common.messages import EvictGroups, LeasePrompts, LeaseRollouts, RolloutLeases, SubmitRollout
from common.types import EvictReason, Role
from deploy.bench.bulk_wire import (
    CONTEXT,
    PUT_ROLLOUTS,
    ROLLOUT_BYTES,
    VERSION,
    WINDOW,
    CreditedClient,
    Orders,
    arrays,
    header_of,
    orders,
    receive,
)
from deploy.bench.raw_client import RawClient

_IDLE_S = 1.0


def submit(endpoint: str, name: str) -> Orders:
    """Lease prompts and submit ``number`` rollouts with their arrays."""
    client = CreditedClient(endpoint, Role.ACTOR, name)
    frames = arrays()
    number = orders()["number"]
    sent = unanswered = 0
    while sent < number:
        room = min(WINDOW, number - sent)
        client.send(LeasePrompts(serving=VERSION, max_groups=room, wait_s=10.0))
        for item in client.receive_leases().leases:
            while not client.has_credit(ROLLOUT_BYTES):
                unanswered -= client.receive()
            header = header_of(item.lease.group_id, item.lease.attempt)
            client.send(SubmitRollout(rollout=header), frames)
            sent, unanswered = sent + 1, unanswered + 1
        while unanswered:
            unanswered -= client.receive()
    return {}


def lease(endpoint: str, name: str) -> Orders:
    """Lease rollouts with their arrays, and end their groups, until none is left."""
    verifier, consumer = RawClient(CONTEXT, endpoint), RawClient(CONTEXT, endpoint)
    verifier.register(Role.VERIFIER, name)
    consumer.register(Role.COLLECTOR, f"{name}-end")
    orders()
    number, end_s, ended = 0, 0.0, tuple[int, ...]()
    wait_s = 30.0
    while True:
        message = LeaseRollouts(max_rollouts=PUT_ROLLOUTS, wait_s=wait_s)
        verifier.socket.send_multipart(encode(message, 1))
        if ended:
            consumer.request(EvictGroups(group_ids=ended, reason=EvictReason.RUN_END))
        answer = receive(verifier.socket).message
        if not isinstance(answer, RolloutLeases):
            raise FatalError(f"the broker answered {answer}")
        if not answer.leases:
            return {"number": number, "end_s": end_s}
        number, end_s, wait_s = number + len(answer.leases), time.monotonic(), _IDLE_S
        ended = tuple(item.rollout.rollout_id.group_id for item in answer.leases)
