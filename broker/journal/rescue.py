"""What a salvaged ledger lacks, and the events that have it sampled or computed again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from broker import events
from broker.events import AnyEvent
from broker.groups import VERIFIED, GroupRecord, Place
from broker.journal.history import History
from broker.journal.payloads import key_of, reference_key_of
from broker.journal.records import Key
from broker.ledger import Ledger
from broker.snapshots import groups_of
from common.types import RolloutId


@dataclass(slots=True)
class Rescue:
    """What was saved, and what was not."""

    num_groups: int = 0
    num_payloads: int = 0
    next_event: int = 0
    losses: list[str] = field(default_factory=list)
    """One line each; empty if nothing that counts is lost."""


def note_missing_events(history: History, rescue: Rescue) -> None:
    """Say which events are lost, and which groups are behind for it."""
    if history.lost_from is None:
        return
    groups = sorted({group for event in history.unapplied for group in groups_of(event)})
    rescue.losses.append(
        f"events from {history.lost_from} on; {len(history.unapplied)} later ones are not applied: "
        f"groups {_listed(groups)} are as they were before"
    )


def _listed(groups: Sequence[int]) -> str:
    return ", ".join(map(str, groups)) or "(none)"


def resample(ledger: Ledger, payloads: Collection[Key], rescue: Rescue) -> int:
    """Have lost rollouts sampled again; returns how many events that took."""
    num_events = 0
    for group in list(ledger.groups.values()):
        lost = [each for each in _kept_here(group) if key_of(each) not in payloads]
        if not lost:
            continue
        indices = _listed([each.index for each in lost])
        if group.place is Place.STEPPED:
            rescue.losses.append(
                f"group {group.group_id}: the arrays of rollouts {indices}; it is stepped: a "
                "learner that has to replay that step forks"
            )
            continue
        rescue.losses.append(
            f"group {group.group_id}: the arrays of rollouts {indices}; they are sampled again"
        )
        for event in _resampling(group, lost):
            ledger.apply(event)
            num_events += 1
    return num_events


def _resampling(group: GroupRecord, lost: Sequence[RolloutId]) -> Iterator[AnyEvent]:
    if group.place is Place.HANDED_OVER:
        yield events.PutBack(group_ids=(group.group_id,))
    for each in lost:
        yield events.PayloadLost(group_id=each.group_id, index=each.index, attempt=each.attempt)


def ask_again(ledger: Ledger, payloads: Collection[Key], rescue: Rescue) -> int:
    """Have lost reference log-probabilities computed again; returns how many events that took."""
    repairs: list[AnyEvent] = []
    for group in ledger.groups.values():
        lost = [index for index in group.references if not _has_reference(group, index, payloads)]
        if not lost:
            continue
        what = f"group {group.group_id}: the reference log-probabilities of rollouts"
        if group.place is Place.STEPPED:
            rescue.losses.append(
                f"{what} {_listed(lost)}; it is stepped: a learner that has to replay that step "
                "cannot"
            )
            continue
        rescue.losses.append(f"{what} {_listed(lost)}; they are computed again")
        repairs.extend(_computing(group, lost))
    for event in repairs:
        ledger.apply(event)
    return len(repairs)


def _computing(group: GroupRecord, lost: Sequence[int]) -> Iterator[AnyEvent]:
    if group.place is Place.HANDED_OVER:
        yield events.PutBack(group_ids=(group.group_id,))
    for index in lost:
        if group.indices[index].phase is VERIFIED:
            yield events.ReferenceWanted(group_id=group.group_id, index=index)


def _has_reference(group: GroupRecord, index: int, payloads: Collection[Key]) -> bool:
    rollout = group.indices[index].rollout
    if rollout is None:
        return True
    return reference_key_of(rollout.rollout_id, group.references[index]) in payloads


def _kept_here(group: GroupRecord) -> list[RolloutId]:
    """Accepted rollouts of a group whose arrays should be in the journal."""
    rollouts = [item.rollout for item in group.indices if item.rollout is not None]
    return [rollout.rollout_id for rollout in rollouts if not rollout.store]
