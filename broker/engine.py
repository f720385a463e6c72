"""Ledger, leases and payloads in step: each decided event is applied to all three and kept.

Pure but for the payload store that is passed in: the server journals :attr:`Engine.events` and only
then lets replies go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from broker import events
from broker.events import AnyEvent
from broker.group_clock import GroupClock
from broker.groups import GENERATING, VERIFYING, GroupRecord
from broker.leases import Held, LeaseTable, Work
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.length_tally import COUNTED_BY_LENGTH, LengthTally
from broker.rollout_rules import release_prompt
from broker.snapshots import Snapshot
from broker.verdict_rules import release_rollout
from common.codec import Buffer
from common.messages import Lease
from common.types import ReferenceHeader, RolloutHeader, RolloutId, WeightVersion

_Outcome = TypeVar("_Outcome")


class PayloadStore(Protocol):
    """Where the arrays of rollouts are kept; :class:`broker.journal.Journal` is one."""

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep the arrays of one rollout."""
        ...

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        """Forget the arrays of groups that have ended."""
        ...

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        """Header and frames; ``KeyError`` if there is no such rollout."""
        ...


class ReferenceStore(Protocol):
    """Where reference log-probabilities are kept; they leave with the payloads of their group."""

    def add_reference(self, rollout_id: RolloutId, header: ReferenceHeader, frame: Buffer) -> None:
        """Keep those of one rollout under one reference."""
        ...

    def reference(
        self, rollout_id: RolloutId, version: WeightVersion
    ) -> tuple[ReferenceHeader, memoryview]:
        """Header and frame; ``KeyError`` if there are none."""
        ...


class Engine:
    """Applies decisions; :attr:`events` gathers what is not journaled yet."""

    def __init__(
        self,
        ledger: Ledger,
        leases: LeaseTable,
        payloads: PayloadStore,
        now_s: float,
        num_events: int = 0,
    ) -> None:
        """``num_events`` led to ``ledger``."""
        self.ledger = ledger
        self.leases = leases
        self.payloads = payloads
        self.events: list[AnyEvent] = []
        self.num_events = num_events
        """Events since the run began: the length of the journal once :attr:`events` are in it."""
        self.snapshot: Snapshot | None = None
        """The one under way, which holds the state as it was when it began."""
        self.ages = GroupClock()
        self.lengths = LengthTally()
        for group in ledger.groups.values():
            if group.versions:
                self.ages.start(group.group_id, now_s)
            for held in _held_parts(group):
                leases.grant(held, now_s)

    def do(self, decision: Decision[_Outcome], now_s: float) -> _Outcome:
        """Apply a decision and return its outcome."""
        for event in decision.events:
            kind = type(event)
            ended = self._end(event) if kind in _ENDS_GROUPS else ()
            follow = _FOLLOW.get(kind)
            if follow is not None:  # keeps the table of leases in step with the ledger
                follow(self, event, now_s)
            if kind in COUNTED_BY_LENGTH:
                self.lengths.observe(event, self.ledger)
            if self.snapshot is not None:
                self.snapshot.keep(event)
            self.ledger.apply(event)
            self.events.append(event)
            self.num_events += 1
            if ended:
                self.ages.stop(ended)
                self.payloads.drop_payloads(ended)
        return decision.outcome

    def give_back(self, held: Held, now_s: float, *, lost: bool = False, error: str = "") -> None:
        """Let the work of a lease wait again."""
        lease = held.lease
        if held.work is Work.GENERATE:
            self.do(release_prompt(self.ledger, lease, lost=lost, error=error), now_s)
            return
        for index in lease.indices:
            self.do(
                release_rollout(
                    self.ledger, lease.group_id, index, lease.attempt, lost=lost, error=error
                ),
                now_s,
            )

    def _end(self, event: AnyEvent) -> Sequence[int]:
        """End the leases on the groups that ``event`` ends; returns those groups."""
        ended = self._ended(event)
        for group_id in ended:
            if self.ledger.index.is_worked_on(group_id):
                for held in _held_parts(self.ledger.groups[group_id]):
                    self.leases.drop(held.lease.attempt)
        return ended

    def _ended(self, event: AnyEvent) -> Sequence[int]:
        """Groups that ``event`` ends."""
        if isinstance(event, events.Trained):
            stepped = self.ledger.state.stepped.items()
            return [g for step, members in stepped if step < event.policy_step for g in members]
        if isinstance(event, events.Evicted | events.Collected):
            return event.group_ids
        return (event.group_id,) if isinstance(event, events.DeadLettered) else ()

    def _on_leased(self, event: events.Leased, now_s: float) -> None:
        self.ages.start(event.group_id, now_s)
        self._grant(event.owner, event, event.indices, Work.GENERATE, now_s)

    def _on_verify_leased(self, event: events.VerifyLeased, now_s: float) -> None:
        self._grant(event.owner, event, (event.index,), Work.VERIFY, now_s)

    def _on_generated(self, event: events.Generated, _: float) -> None:
        self._finish(event.rollout.rollout_id.group_id, event.rollout.rollout_id.index)

    def _on_verification_ended(
        self, event: events.Verified | events.VerifyReleased | events.PayloadLost, _: float
    ) -> None:
        self._finish(event.group_id, event.index)

    def _on_released(self, event: events.Released, _: float) -> None:
        for index in event.indices:
            self._finish(event.group_id, index)

    def _grant(
        self,
        owner: str,
        event: events.Leased | events.VerifyLeased,
        indices: tuple[int, ...],
        work: Work,
        now_s: float,
    ) -> None:
        lease = Lease(group_id=event.group_id, indices=indices, attempt=event.attempt)
        self.leases.grant(Held(owner, lease, work), now_s)

    def _finish(self, group_id: int, index: int) -> None:
        """End whoever holds this index: its work is done or was given back."""
        item = self.ledger.state.groups[group_id].indices[index]
        if item.phase is GENERATING:
            self.leases.finish(item.attempt, index)
        elif item.phase is VERIFYING:
            self.leases.finish(item.verify_attempt, index)


_FOLLOW: dict[type[AnyEvent], Callable[[Engine, Any, float], None]] = {
    events.Leased: Engine._on_leased,
    events.VerifyLeased: Engine._on_verify_leased,
    events.Generated: Engine._on_generated,
    events.Verified: Engine._on_verification_ended,
    events.VerifyReleased: Engine._on_verification_ended,
    events.PayloadLost: Engine._on_verification_ended,
    events.Released: Engine._on_released,
}
_ENDS_GROUPS = frozenset((events.Trained, events.Evicted, events.Collected, events.DeadLettered))


def _held_parts(group: GroupRecord) -> list[Held]:
    """The leases that were in force on ``group`` when the journal ended."""
    generating: dict[tuple[str, int], list[int]] = {}
    held = []
    for index, item in enumerate(group.indices):
        if item.phase is GENERATING:
            generating.setdefault((item.owner, item.attempt), []).append(index)
        elif item.phase is VERIFYING:
            lease = Lease(group_id=group.group_id, indices=(index,), attempt=item.verify_attempt)
            held.append(Held(item.owner, lease, Work.VERIFY))
    for (owner, attempt), indices in generating.items():
        lease = Lease(group_id=group.group_id, indices=tuple(indices), attempt=attempt)
        held.append(Held(owner, lease, Work.GENERATE))
    return held
