"""Decisions about batches, checkpoints and weights. Pure: read the ledger, return events.

A group is *handed over* to the batch being computed, *stepped* once that batch has a durable step
record, and *trained* once a checkpoint covers the step. A collector has no checkpoints: what it
commits is trained at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from broker import events
from broker.admission import may_hand_over
from broker.events import AnyEvent, Counter, MaskedSpans
from broker.groups import GroupRecord, Place
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.masking import is_all_masked, mask_group
from broker.resume_rules import evict_stale, put_back
from common.errors import RefusedError
from common.messages import (
    CommitStep,
    Groups,
    PublishWeights,
    ReportWeights,
)
from common.types import EvictReason, VerifiedGroup

# --- handing over ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pull:
    """A consumer's wish for groups; ``held`` are those it has, or None if it does not say."""

    policy_step: int
    max_groups: int
    held: tuple[int, ...] | None = None


def hand_over(ledger: Ledger, pull: Pull) -> Decision[Groups | None]:
    """Groups for the batch computed at ``pull.policy_step``, or None when there are none yet.

    Groups that were handed over but whose reply the consumer never saw come first. Raises
    :class:`RefusedError` when the ledger computes another step.
    """
    if ledger.is_train:
        _check_step(ledger, pull.policy_step)
    again = _lost_in_reply(ledger, pull)[: pull.max_groups]
    chosen = _choose_verified(ledger, pull.max_groups - len(again))
    decided: list[AnyEvent] = []
    if chosen.all_masked:
        gone = tuple(chosen.all_masked)
        decided.append(events.Evicted(group_ids=gone, reason=EvictReason.ALL_MASKED))
    if chosen.masks:
        decided.append(
            events.HandedOver(
                group_ids=tuple(chosen.masks),
                policy_step=pull.policy_step,
                masked=tuple(mask for masks in chosen.masks.values() for mask in masks),
            )
        )
    groups = [ledger.groups[group_id].verified_group() for group_id in again]
    for group_id, masks in chosen.masks.items():
        spans = {mask.index: mask.spans for mask in masks}
        groups.append(ledger.groups[group_id].masked_group(spans))
    return Decision(tuple(decided), Groups(groups=tuple(groups)) if groups else None)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Groups to hand over with their masks, in order, and those that masks leave empty."""

    masks: dict[int, tuple[MaskedSpans, ...]] = field(default_factory=dict)
    all_masked: list[int] = field(default_factory=list)


def _choose_verified(ledger: Ledger, max_groups: int) -> _Chosen:
    """Verified groups that may go, earliest deadline first."""
    counts = dict(ledger.index.num_by_deadline)
    window = replace(ledger.window(), num_by_deadline=counts)
    chosen = _Chosen()
    for group_id in ledger.index.verified:
        group = ledger.groups[group_id]
        blocked = ledger.is_train and not may_hand_over(window, group.deadline_step)
        if len(chosen.masks) >= max_groups or blocked:
            break
        counts[group.deadline_step] -= 1
        masks = _masks(ledger, group)
        if is_all_masked(group, masks):
            chosen.all_masked.append(group_id)
            continue
        chosen.masks[group_id] = masks
        window = replace(window, num_handed_over=window.num_handed_over + 1)
    return chosen


def _masks(ledger: Ledger, group: GroupRecord) -> tuple[MaskedSpans, ...]:
    """Tokens of ``group`` that are too old for the batch being computed."""
    rules, state = ledger.rules, ledger.state
    if not ledger.is_train or rules.staleness != "mask_tokens":
        return ()
    return mask_group(group, state.timeline, state.policy_step - rules.max_policy_lag)


def _lost_in_reply(ledger: Ledger, pull: Pull) -> list[int]:
    """Groups handed over that the consumer does not have.

    A learner that does not say what it holds asks for all that its batch still lacks; if that is
    more than the ledger knows to be lacking, the newest groups handed over were lost. A collector
    commits what it has before it asks for more, so it has lost whatever is still handed over.
    """
    handed_over = ledger.state.handed_over
    if pull.held is not None:
        held = set(pull.held)
        return [group_id for group_id in handed_over if group_id not in held]
    if not ledger.is_train:
        return handed_over
    lacking = ledger.rules.groups_per_step - len(handed_over)
    num_lost = min(max(pull.max_groups - lacking, 0), len(handed_over))
    return handed_over[len(handed_over) - num_lost :]


def describe_groups(ledger: Ledger, group_ids: Sequence[int]) -> tuple[VerifiedGroup, ...]:
    """Groups that the consumer holds, again; raises :class:`RefusedError` for any other."""
    return tuple(_held_by_consumer(ledger, group_id).verified_group() for group_id in group_ids)


def _held_by_consumer(ledger: Ledger, group_id: int) -> GroupRecord:
    group = ledger.groups.get(group_id)
    if group is None:
        raise RefusedError("gone", f"group {group_id} is trained, evicted or was never admitted")
    if group.place is Place.OPEN:
        raise RefusedError("not_handed_over", f"group {group_id} is not held by the consumer")
    return group


def _check_step(ledger: Ledger, policy_step: int) -> None:
    if policy_step != ledger.state.policy_step:
        raise RefusedError(
            "wrong_step",
            f"the batch being computed is {ledger.state.policy_step}, not {policy_step}",
        )


# --- committing -----------------------------------------------------------------------------------


def commit_step(ledger: Ledger, commit: CommitStep) -> Decision[None]:
    """The groups of a batch are stepped (trained at once in a collect run); repeatable."""
    if not ledger.is_train:
        return _commit_collected(ledger, commit.group_ids)
    state = ledger.state
    if commit.incarnation != state.timeline.incarnation:
        raise RefusedError(
            "stale_incarnation",
            f"the learner's incarnation is {state.timeline.incarnation}, not {commit.incarnation}",
        )
    if commit.policy_step < state.policy_step:
        return _commit_again(ledger, commit)
    _check_step(ledger, commit.policy_step)
    _check_handed_over(ledger, commit.group_ids)
    stepped = events.Stepped(policy_step=commit.policy_step, group_ids=commit.group_ids)
    committed = set(commit.group_ids)
    left = [group_id for group_id in state.handed_over if group_id not in committed]
    back = put_back(left)
    stale = evict_stale(ledger, commit.policy_step + 1, left, state.timeline)
    return Decision((*back, stepped, *stale), None)


def _check_handed_over(ledger: Ledger, group_ids: Sequence[int]) -> None:
    """Only groups of the batch being computed can be committed, each of them once."""
    if len(set(group_ids)) != len(group_ids):
        raise RefusedError("malformed", "a group is in the batch twice")
    for group_id in group_ids:
        if _held_by_consumer(ledger, group_id).place is Place.STEPPED:
            raise RefusedError("stepped", f"group {group_id} is part of an earlier step")


def _commit_again(ledger: Ledger, commit: CommitStep) -> Decision[None]:
    known = ledger.state.stepped.get(commit.policy_step)
    if known is not None and set(known) != set(commit.group_ids):
        raise RefusedError(
            "other_groups", f"step {commit.policy_step} was committed with other groups"
        )
    return Decision((), None)


def _commit_collected(ledger: Ledger, group_ids: Sequence[int]) -> Decision[None]:
    live = tuple(group_id for group_id in group_ids if group_id in ledger.groups)
    _check_handed_over(ledger, live)
    return Decision((events.Collected(group_ids=live),) if live else (), None)


def commit_checkpoint(ledger: Ledger, policy_step: int) -> Decision[None]:
    """Groups of the batches before ``policy_step`` are trained; repeatable."""
    if policy_step > ledger.state.policy_step:
        raise RefusedError(
            "wrong_step",
            f"step {policy_step - 1} is not committed, the next is {ledger.state.policy_step}",
        )
    if not ledger.is_train or policy_step <= ledger.state.checkpoint_step:
        return Decision((), None)
    return Decision((events.Trained(policy_step=policy_step),), None)


# --- leaving, ending, weights ---------------------------------------------------------------------


def evict_groups(ledger: Ledger, group_ids: Sequence[int], reason: EvictReason) -> Decision[None]:
    """Drop groups that are not part of a durable step; those that have ended stay as they are."""
    live = [ledger.groups[group_id] for group_id in group_ids if group_id in ledger.groups]
    for group in live:
        if group.place is Place.STEPPED:
            raise RefusedError("stepped", f"group {group.group_id} is part of a step record")
    if not live:
        return Decision((), None)
    gone = tuple(dict.fromkeys(group.group_id for group in live))
    return Decision((events.Evicted(group_ids=gone, reason=reason),), None)


def end_run(ledger: Ledger) -> Decision[None]:
    """Evict what is in flight and seal; repeatable."""
    if ledger.state.sealed:
        return Decision((), None)
    decided: list[AnyEvent] = []
    if ledger.groups:
        live = tuple(ledger.groups)
        decided.append(events.Evicted(group_ids=live, reason=EvictReason.RUN_END))
    return Decision((*decided, events.Sealed()), None)


def start_collector(ledger: Ledger, nonce: str) -> Decision[None]:
    """A collector registers: a new process gets again what the old one held."""
    if nonce == ledger.state.collector_nonce:
        return Decision((), None)
    started = events.CollectorStarted(nonce=nonce)
    return Decision((started, *put_back(ledger.state.handed_over)), None)


def announce(ledger: Ledger, message: PublishWeights, manifest: bytes) -> Decision[None]:
    """Remember the newest weights; raises :class:`RefusedError` for those of a lost branch."""
    current = ledger.state.timeline.incarnation
    if message.version.incarnation != current:
        raise RefusedError(
            "stale_incarnation",
            f"version {message.version} is not of incarnation {current}",
        )
    if (message, manifest) == (ledger.state.announcement, ledger.state.manifest):
        return Decision((), None)
    return Decision((events.Announced(announcement=message, manifest=manifest),), None)


def report_weights(message: ReportWeights) -> Decision[None]:
    """Count a proof, or a failed one."""
    what = Counter.WEIGHT_SYNC if message.proven else Counter.WEIGHT_PROOF_FAILED
    return Decision((events.Counted(what=what),), None)
