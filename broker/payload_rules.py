"""Decisions about arrays that are not with the broker. Pure: read the ledger, return events.

A rollout whose arrays are gone is sampled again, counted, as if its lease had been lost. That is
possible until its group is *stepped*: from then on the arrays would only serve a replay, and a
learner that cannot replay a step forks, which puts its groups back; what is then still missing is
reported, and sampled again, like any other loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from broker import events
from broker.events import AnyEvent
from broker.groups import GroupRecord, Place
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.rollout_rules import dead_letter
from common.types import RolloutId


def report_lost(ledger: Ledger, rollout_ids: Sequence[RolloutId]) -> Decision[int]:
    """Have rollouts sampled again whose arrays a payload server lost; repeatable.

    The outcome is how many that are. A group that was handed over is taken back: the consumer that
    reports it must not commit it.
    """
    lost = [rollout_id for rollout_id in dict.fromkeys(rollout_ids) if _is_held(ledger, rollout_id)]
    return _resample(ledger, lost)


def lose_server(ledger: Ledger, store: str) -> Decision[int]:
    """Have everything sampled again that was in the memory of a process that ended.

    Groups that were handed over stay: the consumer may have their arrays, and reports what it
    lacks.
    """
    lost = [
        item.rollout.rollout_id
        for group in ledger.groups.values()
        if group.place is Place.OPEN
        for item in group.indices
        if item.rollout is not None and item.rollout.store == store
    ]
    return _resample(ledger, lost)


def ended_groups(
    ledger: Ledger, group_ids: Sequence[int], *, stepped: bool = False
) -> tuple[int, ...]:
    """Those of ``group_ids`` that need their arrays no more; with ``stepped``, not for a replay.

    A group that the ledger has yet to admit is not among them.
    """
    return tuple(group_id for group_id in group_ids if _has_ended(ledger, group_id, stepped))


def _has_ended(ledger: Ledger, group_id: int, stepped: bool) -> bool:
    group = ledger.groups.get(group_id)
    if group is None:
        return group_id < ledger.state.next_group_id
    return stepped and group.place is Place.STEPPED


def _is_held(ledger: Ledger, rollout_id: RolloutId) -> bool:
    """Whether the ledger counts on the arrays of this very rollout."""
    group = ledger.groups.get(rollout_id.group_id)
    if group is None or group.place is Place.STEPPED or rollout_id.index >= len(group.indices):
        return False
    rollout = group.indices[rollout_id.index].rollout
    return rollout is not None and rollout.rollout_id == rollout_id and bool(rollout.store)


def _resample(ledger: Ledger, rollout_ids: Sequence[RolloutId]) -> Decision[int]:
    by_group: dict[int, list[RolloutId]] = {}
    for rollout_id in rollout_ids:
        by_group.setdefault(rollout_id.group_id, []).append(rollout_id)
    decided: list[AnyEvent] = []
    for group_id, lost in by_group.items():
        group = ledger.groups[group_id]
        if group.place is Place.HANDED_OVER:
            decided.append(events.PutBack(group_ids=(group_id,)))
        decided += [
            events.PayloadLost(
                group_id=group_id, index=rollout_id.index, attempt=rollout_id.attempt
            )
            for rollout_id in lost
        ]
        decided += _dead_letter(ledger, group, {rollout_id.index for rollout_id in lost})
    return Decision(tuple(decided), len(rollout_ids))


def _dead_letter(
    ledger: Ledger, group: GroupRecord, indices: Collection[int]
) -> tuple[AnyEvent, ...]:
    items = [group.indices[index] for index in sorted(indices)]
    return dead_letter(ledger, group, items, True, ())
