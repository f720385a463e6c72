"""Decisions about the reference policy whose log-probabilities verifiers compute. Pure.

While the learner has named one, a group waits for the consumer only when the log-probabilities of
*that* reference are kept for every rollout. A rollout that is judged and lacks them waits for a
verifier again, with its verdict: only the reference pass is repeated, never the reward. Groups that
the consumer holds stay as they are: a step is replayed with the reference that it was taken with.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker import events
from broker.groups import OPEN, VERIFYING, GroupRecord
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.resume_rules import put_back
from common.errors import RefusedError
from common.types import RolloutHeader, WeightVersion


def set_reference(ledger: Ledger, version: WeightVersion) -> Decision[None]:
    """The learner trains with the reference ``version`` from here on; repeatable.

    It holds no group of the next batch then: what was handed over for that is put back. Raises
    :class:`RefusedError` in a run whose verifiers compute no reference.
    """
    if not ledger.rules.has_verifier_reference:
        raise RefusedError(
            "other_reference",
            "the learner counts on verifiers for its reference, the broker's configuration does "
            "not (start broker and learner from one configuration)",
        )
    if version == ledger.state.reference:
        return Decision((), None)
    handed_over = ledger.state.handed_over
    return Decision((*put_back(handed_over), _reference_set(ledger, version, handed_over)), None)


def drop_unused(ledger: Ledger) -> Decision[None]:
    """Let groups wait for no reference that the configuration asks for no more."""
    if ledger.rules.has_verifier_reference or ledger.state.reference is None:
        return Decision((), None)
    return Decision((_reference_set(ledger, None, ()),), None)


def _reference_set(
    ledger: Ledger, version: WeightVersion | None, returned: Sequence[int]
) -> events.ReferenceSet:
    """``returned`` are groups that are about to be open."""
    open_groups = [group for group in ledger.groups.values() if group.place is OPEN]
    judged = tuple(group.group_id for group in open_groups if _has_judged(group))
    return events.ReferenceSet(version=version, group_ids=(*judged, *returned))


def _has_judged(group: GroupRecord) -> bool:
    return any(item.verdict is not None and item.phase is not VERIFYING for item in group.indices)


def check_length(rollout: RolloutHeader, num_tokens: int) -> None:
    """Raise :class:`RefusedError` unless there is one log-probability a completion token."""
    if num_tokens != rollout.num_completion_tokens:
        raise RefusedError(
            "malformed",
            f"{rollout.rollout_id}: {num_tokens} reference log-probabilities came for "
            f"{rollout.num_completion_tokens} completion tokens",
        )
