"""How the ledger evolves with its run: prompts, steps, checkpoints, weights, the end. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from broker import events
from broker.events import AnyEvent
from broker.group_evolution import Evolving, judged_phase
from broker.groups import HANDED_OVER, OPEN, STEPPED, VERIFYING, GroupRecord, Place


def _on_setting_kept(ledger: Evolving, event: events.SettingKept) -> None:
    ledger.state.settings[event.key] = event.value


def _on_prompt_set_opened(ledger: Evolving, event: events.PromptSetOpened) -> None:
    ledger.state.prompts.on_set_opened(event)


def _on_mix_began(ledger: Evolving, event: events.MixBegan) -> None:
    ledger.state.prompts.on_mix_began(event)


def _on_reference_set(ledger: Evolving, event: events.ReferenceSet) -> None:
    ledger.state.reference = event.version
    for group_id in event.group_ids:
        _settle_references(ledger, ledger.state.groups[group_id])
        ledger.index.file(ledger.state.groups[group_id])


def _on_handed_over(ledger: Evolving, event: events.HandedOver) -> None:
    ledger.state.handed_over.extend(event.group_ids)
    for group_id in event.group_ids:
        for item in ledger.state.groups[group_id].indices:
            item.masked_spans = ()
    for mask in event.masked:
        ledger.state.groups[mask.group_id].indices[mask.index].masked_spans = mask.spans
    _place(ledger, event.group_ids, HANDED_OVER)


def _on_put_back(ledger: Evolving, event: events.PutBack) -> None:
    _forget_consumer(ledger, event.group_ids)
    _place(ledger, event.group_ids, OPEN)


def _on_stepped(ledger: Evolving, event: events.Stepped) -> None:
    _forget_consumer(ledger, event.group_ids)
    ledger.state.stepped[event.policy_step] = event.group_ids
    ledger.state.policy_step = event.policy_step + 1
    ledger.state.prompts.on_stepped(event.policy_step)
    _place(ledger, event.group_ids, STEPPED)


def _on_trained(ledger: Evolving, event: events.Trained) -> None:
    for step in [step for step in ledger.state.stepped if step < event.policy_step]:
        group_ids = ledger.state.stepped.pop(step)
        ledger.state.num_trained += len(group_ids)
        _drop(ledger, group_ids)
    ledger.state.checkpoint_step = event.policy_step


def _on_collected(ledger: Evolving, event: events.Collected) -> None:
    _forget_consumer(ledger, event.group_ids)
    ledger.state.num_trained += len(event.group_ids)
    ledger.state.policy_step += 1
    _drop(ledger, event.group_ids)


def _on_evicted(ledger: Evolving, event: events.Evicted) -> None:
    _forget_consumer(ledger, event.group_ids)
    evicted = ledger.state.num_evicted
    evicted[event.reason] = evicted.get(event.reason, 0) + len(event.group_ids)
    _drop(ledger, event.group_ids)


def _on_dead_lettered(ledger: Evolving, event: events.DeadLettered) -> None:
    _forget_consumer(ledger, (event.group_id,))
    ledger.state.num_dead_lettered += 1
    _drop(ledger, (event.group_id,))


def _on_announced(ledger: Evolving, event: events.Announced) -> None:
    ledger.state.announcement, ledger.state.manifest = event.announcement, event.manifest


def _on_resumed(ledger: Evolving, event: events.Resumed) -> None:
    ledger.state.policy_step = event.policy_step
    ledger.state.checkpoint_step = event.checkpoint_step
    ledger.state.sealed = False
    if event.forked:
        timeline = ledger.state.timeline
        ledger.state.timeline = timeline.forked(event.incarnation, event.checkpoint_step)


def _on_sealed(ledger: Evolving, event: events.Sealed) -> None:
    ledger.state.sealed = True


def _on_collector_started(ledger: Evolving, event: events.CollectorStarted) -> None:
    ledger.state.collector_nonce = event.nonce
    ledger.state.sealed = False


def _on_counted(ledger: Evolving, event: events.Counted) -> None:
    counters = ledger.state.counters
    counters[event.what] = counters.get(event.what, 0) + 1


def _place(ledger: Evolving, group_ids: Iterable[int], place: Place) -> None:
    for group_id in group_ids:
        group = ledger.state.groups[group_id]
        group.place = place
        if ledger.state.reference is not None:
            _settle_references(ledger, group)
        ledger.index.file(group)


def _settle_references(ledger: Evolving, group: GroupRecord) -> None:
    """Let judged rollouts wait for a verifier exactly while they lack the reference."""
    for index, item in enumerate(group.indices):
        if item.verdict is not None and item.phase is not VERIFYING:
            ledger.index.move(group, item, judged_phase(ledger, group, index))


def _drop(ledger: Evolving, group_ids: Iterable[int]) -> None:
    for group_id in group_ids:
        del ledger.state.groups[group_id]
        ledger.index.remove(group_id)


def _forget_consumer(ledger: Evolving, group_ids: Iterable[int]) -> None:
    """Take groups out of the batch being computed and out of the steps they were in."""
    gone = set(group_ids)
    ledger.state.handed_over = [g for g in ledger.state.handed_over if g not in gone]
    for step, members in list(ledger.state.stepped.items()):
        if not gone.isdisjoint(members):
            ledger.state.stepped[step] = tuple(g for g in members if g not in gone)
            if not ledger.state.stepped[step]:
                del ledger.state.stepped[step]


RUN_EVENTS: dict[type[AnyEvent], Callable[[Evolving, Any], None]] = {
    events.SettingKept: _on_setting_kept,
    events.PromptSetOpened: _on_prompt_set_opened,
    events.MixBegan: _on_mix_began,
    events.ReferenceSet: _on_reference_set,
    events.HandedOver: _on_handed_over,
    events.PutBack: _on_put_back,
    events.Stepped: _on_stepped,
    events.Trained: _on_trained,
    events.Collected: _on_collected,
    events.Evicted: _on_evicted,
    events.DeadLettered: _on_dead_lettered,
    events.Announced: _on_announced,
    events.Resumed: _on_resumed,
    events.Sealed: _on_sealed,
    events.CollectorStarted: _on_collector_started,
    events.Counted: _on_counted,
}
