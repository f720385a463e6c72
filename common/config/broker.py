"""The broker and the payload stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """The broker: durable queue between all roles."""

    endpoint: str = "ipc"
    """``ipc`` for a private local socket, or ``tcp://host:port``, which needs security.keys."""
    allow_plaintext_tcp: bool = False
    """TCP without keys, neither authenticated nor encrypted: it must be asked for by name."""
    heartbeat_s: float = 2.0
    """Clients are heard of this often."""
    dead_after_s: float = 15.0
    """A client silent for so long has lost its leases; model loads hold a process for seconds."""
    max_attempts: int = 3
    """Deliveries of one piece of work that may end in an error before it is dead-lettered."""
    max_group_s: float = 0.0
    """A group unverified so long after its first lease is dead-lettered; 0 sets no limit."""
    max_outstanding_groups: int = 64
    """Groups in flight in a ``collect`` run, where no lag bound limits them."""
    no_progress_s: float = 600.0
    """The broker gives up when all roles are present and nothing has moved for so long."""
    max_absence_s: float = 7200.0
    """Longest absence of a role, for example a requeued learner, before the broker gives up."""
    acks: Literal["durable", "relaxed"] = "durable"
    """An acknowledged record survives a crash of the machine, or (``relaxed``) of the process."""
    journal_segment_bytes: int = 67108864
    """Size of one file of the journal; disk is given back by the file."""
    max_journal_bytes: int = 0
    """Disk that the journal takes; when it is used up, rollouts wait. 0: as much as there is."""
    max_memory_bytes: int = 536870912
    """Memory of the broker process: producers wait and readers take turns before it is passed."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class StoresConfig:
    """Where the arrays of rollouts are kept; the ledger is always with the broker."""

    payloads: Literal["broker", "store", "direct"] = "broker"
    """``broker``; ``store``: processes of their own; ``direct``: in memory, at the actor."""
    count: int = 1
    """Stores that a local run starts where ``payloads`` is ``store``."""
    endpoint: str = "ipc"
    """``ipc``, or ``tcp://host:port``: ``*`` is every address of the machine, 0 a free port."""
    acks: Literal["durable", "relaxed"] = "durable"
    """``durable``: kept arrays survive a crash of the machine; ``relaxed``: of the store."""
    segment_bytes: int = 67108864
    """Size of one file of a store's log; disk is given back by the file."""
    hot_bytes: int = 268435456
    """Arrays that one store also keeps in memory, so that they are sent without being read."""
    max_bytes: int = 68719476736
    """Disk that one store takes; when it is used up, puts go elsewhere or wait."""
    direct_bytes: int = 1073741824
    """Memory for arrays in one actor (``direct``); when it is used up, sampling waits."""
    patience_s: float = 120.0
    """A store that does not answer for so long has lost what it held."""
    sweep_s: float = 2.0
    """How often a payload server asks which groups have ended."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""
