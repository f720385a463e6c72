"""The data of the ledger: rules from the configuration, state from the events, decisions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from broker.admission import Staleness
from broker.events import AnyEvent, Counter
from broker.groups import GroupRecord
from broker.prompts.state import PromptsState
from broker.timeline import Timeline
from common.messages import PublishWeights
from common.types import EvictReason, WeightVersion

_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, slots=True)
class LedgerRules:
    """What the configuration says about groups."""

    kind: Literal["train", "collect"] = "train"
    group_size: int = 8
    groups_per_step: int = 32
    max_policy_lag: int = 2
    num_steps: int = 100
    max_outstanding_groups: int = 64
    max_attempts: int = 3
    staleness: Staleness = "wait"
    max_group_s: float = 0.0
    dynamic_sampling: bool = False
    max_dropped_batches: int = 10
    retire_pass_rate: float = 0.0
    retire_after: int = 2
    has_verifier_reference: bool = False


class Decision(msgspec.Struct, Generic[_Outcome], frozen=True, gc=False):
    """Events to apply and journal, and what to answer once they are durable."""

    events: tuple[AnyEvent, ...]
    outcome: _Outcome


class LedgerState(msgspec.Struct):
    """Everything that the events determine; the snapshot in the journal."""

    groups: dict[int, GroupRecord] = msgspec.field(default_factory=dict)
    next_group_id: int = 0
    prompts: PromptsState = msgspec.field(default_factory=PromptsState)
    next_attempt: int = 1
    policy_step: int = 0
    checkpoint_step: int = 0
    timeline: Timeline = Timeline()
    handed_over: list[int] = msgspec.field(default_factory=list)
    stepped: dict[int, tuple[int, ...]] = msgspec.field(default_factory=dict)
    num_trained: int = 0
    num_dead_lettered: int = 0
    num_evicted: dict[EvictReason, int] = msgspec.field(default_factory=dict)
    counters: dict[Counter, int] = msgspec.field(default_factory=dict)
    num_redelivered: int = 0
    announcement: PublishWeights | None = None
    manifest: bytes = b""
    sealed: bool = False
    collector_nonce: str = ""
    reference: WeightVersion | None = None
    """Reference policy that the learner trains with, where verifiers compute with it."""
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    """Values of the configuration that the journal depends on, by key."""
