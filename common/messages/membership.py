"""Who takes part: registration, leases, heartbeats."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Indices, Message
from common.types import Count, Endpoint, FiniteFloat, Name, Record, Role, WeightVersion


class Register(Message, frozen=True):
    """First request of a client; ``nonce`` is fresh for each process start.

    A known name with a new nonce is a restarted process: its old leases are revoked at once.
    ``payload_endpoint`` is where it serves arrays of rollouts, if it does.
    """

    role: Role
    name: Name
    nonce: Name
    host: Name
    pid: Count
    payload_endpoint: Endpoint = ""


class Registered(Message, frozen=True):
    """The broker's answer: which run this is and how often to be heard of.

    ``credit_bytes`` is the first credit of this connection; that of an earlier one is void.
    """

    run_id: Name
    broker_nonce: Name
    heartbeat_s: FiniteFloat
    lease_s: FiniteFloat
    credit_bytes: Count = 0


class Lease(Record, frozen=True):
    """A claim on work: some indices of a group under one attempt."""

    group_id: Count
    indices: Indices
    attempt: Count


class Heartbeat(Message, frozen=True):
    """Sign of life; renews exactly the leases that it names."""

    leases: Annotated[tuple[Lease, ...], msgspec.Meta(max_length=65536)] = ()
    serving: WeightVersion | None = None


class HeartbeatReply(Message, frozen=True):
    """Leases of the heartbeat that the client no longer owns and should drop."""

    revoked: Annotated[tuple[Lease, ...], msgspec.Meta(max_length=65536)] = ()
