"""How the ledger evolves while a group is worked on: sampled, judged, lost, sampled again. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from broker import events
from broker.dead_letters import describe_error
from broker.events import AnyEvent
from broker.group_index import GroupIndex
from broker.groups import (
    GENERATED,
    GENERATING,
    OPEN,
    VERIFIED,
    VERIFYING,
    WAITING,
    GroupRecord,
    IndexRecord,
    Phase,
)
from broker.ledger_state import LedgerState


class Evolving(Protocol):
    """What an event changes: :class:`broker.ledger.Ledger`."""

    state: LedgerState
    index: GroupIndex


def _on_admitted(ledger: Evolving, event: events.Admitted) -> None:
    indices = [IndexRecord() for _ in range(event.size)]
    ledger.state.groups[event.group_id] = GroupRecord(
        event.group_id, event.prompt, indices, position=event.position
    )
    ledger.state.prompts.on_admitted(event)
    ledger.state.next_group_id = event.group_id + 1
    ledger.index.file(ledger.state.groups[event.group_id])


def _on_leased(ledger: Evolving, event: events.Leased) -> None:
    group = ledger.state.groups[event.group_id]
    for index in event.indices:
        item = group.indices[index]
        ledger.index.move(group, item, GENERATING)
        item.owner, item.attempt = event.owner, event.attempt
    group.versions[event.attempt] = event.version
    group.deadline_step = event.deadline_step
    ledger.state.next_attempt = event.attempt + 1
    ledger.index.file(group)


def _on_released(ledger: Evolving, event: events.Released) -> None:
    group = ledger.state.groups[event.group_id]
    for index in event.indices:
        _release(ledger, group, index, WAITING, event.lost, event.error)
    ledger.index.file(group)


def _on_generated(ledger: Evolving, event: events.Generated) -> None:
    rollout_id = event.rollout.rollout_id
    group = ledger.state.groups[rollout_id.group_id]
    item = group.indices[rollout_id.index]
    is_filed_anew = ledger.index.move(group, item, GENERATED)
    item.owner, item.attempt = "", rollout_id.attempt
    item.rollout, item.content_hash = event.rollout, event.content_hash
    if is_filed_anew or group.deadline_step != event.deadline_step:
        group.deadline_step = event.deadline_step
        ledger.index.file(group)


def _on_verify_leased(ledger: Evolving, event: events.VerifyLeased) -> None:
    group = ledger.state.groups[event.group_id]
    item = group.indices[event.index]
    is_filed_anew = ledger.index.move(group, item, VERIFYING)
    item.owner, item.verify_attempt = event.owner, event.attempt
    ledger.state.next_attempt = event.attempt + 1
    if is_filed_anew:
        ledger.index.file(group)


def _on_verify_released(ledger: Evolving, event: events.VerifyReleased) -> None:
    group = ledger.state.groups[event.group_id]
    item = group.indices[event.index]
    phase = GENERATED if item.verdict is None else judged_phase(ledger, group, event.index)
    _release(ledger, group, event.index, phase, event.lost, event.error)
    ledger.index.file(group)


def _on_payload_lost(ledger: Evolving, event: events.PayloadLost) -> None:
    group = ledger.state.groups[event.group_id]
    item = group.indices[event.index]
    ledger.index.move(group, item, WAITING)
    item.owner = ""
    item.rollout, item.content_hash, item.verdict, item.masked_spans = None, "", None, ()
    group.references.pop(event.index, None)
    item.num_lost += 1
    ledger.index.file(group)


def _on_verified(ledger: Evolving, event: events.Verified) -> None:
    group = ledger.state.groups[event.group_id]
    item = group.indices[event.index]
    is_filed_anew = ledger.index.move(group, item, VERIFIED)
    item.owner, item.verify_attempt, item.verdict = "", event.attempt, event.verdict
    if event.reference is not None:
        group.references[event.index] = event.reference
    if is_filed_anew:
        ledger.index.file(group)


def _on_reference_wanted(ledger: Evolving, event: events.ReferenceWanted) -> None:
    group = ledger.state.groups[event.group_id]
    group.references.pop(event.index, None)
    ledger.index.move(group, group.indices[event.index], GENERATED)
    ledger.index.file(group)


def _on_group_judged(ledger: Evolving, event: events.GroupJudged) -> None:
    group = ledger.state.groups[event.group_id]
    group.is_judged = True
    ledger.state.prompts.on_judged(group.prompt.prompt_set, group.position, event)


def _on_restamped(ledger: Evolving, event: events.Restamped) -> None:
    group = ledger.state.groups[event.group_id]
    group.deadline_step = event.deadline_step
    ledger.index.file(group)


def _release(
    ledger: Evolving, group: GroupRecord, index: int, phase: Phase, lost: bool, error: str
) -> None:
    item = group.indices[index]
    if lost or error:
        item.note_failure()
    if error:
        group.errors = (*group.errors, describe_error(index, item.owner, error))
    ledger.index.move(group, item, phase)
    item.owner = ""
    item.num_lost += lost
    item.num_errors += bool(error)
    ledger.state.num_redelivered += 1


def judged_phase(ledger: Evolving, group: GroupRecord, index: int) -> Phase:
    """Where a judged rollout stands that no verifier holds."""
    wanted = ledger.state.reference
    if wanted is None or group.place is not OPEN or group.references.get(index) == wanted:
        return VERIFIED
    return GENERATED


GROUP_EVENTS: dict[type[AnyEvent], Callable[[Evolving, Any], None]] = {
    events.Admitted: _on_admitted,
    events.Leased: _on_leased,
    events.Released: _on_released,
    events.Generated: _on_generated,
    events.VerifyLeased: _on_verify_leased,
    events.VerifyReleased: _on_verify_released,
    events.PayloadLost: _on_payload_lost,
    events.Verified: _on_verified,
    events.ReferenceWanted: _on_reference_wanted,
    events.GroupJudged: _on_group_judged,
    events.Restamped: _on_restamped,
}
