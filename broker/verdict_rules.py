"""Decisions about verification. Pure: read the ledger, return events.

A verdict is typed: a judgement ends the work on a rollout, an infrastructure failure never becomes
a reward and sends the rollout to another verifier if there is one, and data that no verifier could
judge drops the group.
"""

from __future__ import annotations

from collections.abc import Collection

from broker import difficulty_rules, events
from broker.dead_letters import cap_error, dead_letter_of, describe_error
from broker.events import Counter
from broker.groups import GENERATED, VERIFIED, VERIFYING, GroupRecord, IndexRecord
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.reference_rules import check_length
from broker.rollout_rules import Outcome, counted, dead_letter, group_ended
from common.errors import RefusedError
from common.messages import RolloutLease
from common.types import (
    ReferenceHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    WeightVersion,
)


def lease_rollout(
    ledger: Ledger, owner: str, peers: Collection[str] = ()
) -> Decision[RolloutLease | None]:
    """The most urgent rollout that no verifier holds.

    One at which ``owner`` failed goes to one of its ``peers`` while it has any.
    """

    def permits(group_id: int) -> bool:
        return _first_open_to(ledger.groups[group_id], owner, peers) is not None

    if ledger.state.sealed or not ledger.index.generated:
        return Decision((), None)
    group_id = next(ledger.index.generated.firsts(permits), None)
    if group_id is None:
        return Decision((), None)
    group = ledger.groups[group_id]
    index = _first_open_to(group, owner, peers)
    if index is None:
        raise ValueError("a group is chosen for an index that its owner may verify")
    item = group.indices[index]
    if item.rollout is None:
        raise ValueError("a generated index has a rollout")
    attempt = ledger.state.next_attempt
    event = events.VerifyLeased(group_id=group_id, index=index, attempt=attempt, owner=owner)
    lease = RolloutLease(
        prompt=group.prompt,
        rollout=item.rollout,
        verify_attempt=attempt,
        reference_version=ledger.state.reference,
        verdict=item.verdict,
    )
    return Decision((event,), lease)


def _first_open_to(group: GroupRecord, owner: str, peers: Collection[str]) -> int | None:
    """The first rollout of ``group`` that ``owner`` may verify."""
    waiting = group.in_phase(GENERATED)
    return next((n for n in waiting if not group.indices[n].is_barred_to(owner, peers)), None)


def submit_verdict(
    ledger: Ledger,
    rollout_id: RolloutId,
    verify_attempt: int,
    verdict: Verdict,
    reference: ReferenceHeader | None = None,
) -> Decision[Outcome]:
    """Take a verdict: a judgement, an infrastructure failure (verify again) or bad data (drop).

    Where a verdict stands already, only the ``reference`` is taken: ``accepted`` says that the
    verdict is the one that stands, any other is a ``duplicate`` or ``late``, whatever it brings.
    """
    group = ledger.groups.get(rollout_id.group_id)
    if group is None:
        return group_ended(ledger, rollout_id.group_id)
    if rollout_id.index >= len(group.indices) or verify_attempt >= ledger.state.next_attempt:
        raise RefusedError("unknown_lease", f"{rollout_id} was never leased for verification")
    item = group.indices[rollout_id.index]
    if item.rollout is None or item.attempt != rollout_id.attempt:
        return counted(Counter.LATE, "late")
    if item.phase is VERIFIED:
        if (verify_attempt, verdict) == (item.verify_attempt, item.verdict):
            return Decision((), "accepted")
        return counted(Counter.DUPLICATE, "duplicate")
    if reference is not None:
        check_length(item.rollout, reference.num_tokens)
    version = None if reference is None else reference.reference_version
    if item.verdict is not None:
        return _take_reference(ledger, group, rollout_id.index, verify_attempt, version, verdict)
    if not verdict.status.is_judged:
        return _not_judged(ledger, group, rollout_id.index, verify_attempt, verdict)
    wanted = ledger.state.reference
    verified = events.Verified(
        group_id=group.group_id,
        index=rollout_id.index,
        attempt=verify_attempt,
        verdict=verdict,
        reference=version if version == wanted else None,
    )
    after = difficulty_rules.after_verdict(ledger, group, rollout_id.index, verdict)
    if wanted == version or wanted is None:
        return Decision((verified, *after), "accepted")
    lacking = events.ReferenceWanted(group_id=group.group_id, index=rollout_id.index)
    return Decision((verified, lacking, *after), "accepted")


def _take_reference(
    ledger: Ledger,
    group: GroupRecord,
    index: int,
    verify_attempt: int,
    version: WeightVersion | None,
    verdict: Verdict,
) -> Decision[Outcome]:
    """Take log-probabilities for a rollout whose verdict stands; ``verdict`` came with them.

    Those of another reference than the present one are of no use; sent for the lease in force,
    they end it, and the rollout waits again.
    """
    item, wanted = group.indices[index], ledger.state.reference
    if item.verdict is None:
        raise ValueError("only a judged rollout waits for its reference")
    is_known = (verify_attempt, verdict) == (item.verify_attempt, item.verdict)
    outcome = _outcome_beside(item.verdict, verdict)
    if wanted is None or version == wanted:
        verified = events.Verified(
            group_id=group.group_id,
            index=index,
            attempt=verify_attempt,
            verdict=item.verdict,
            reference=wanted,
        )
        if wanted is None:
            return Decision((verified,), outcome)
        repeated = events.Counted(what=Counter.REFERENCE_REPEATED)
        return Decision((verified, repeated), outcome)
    if _is_verifying(item, verify_attempt):
        error = "" if version is not None else "the reference pass gave no log-probabilities"
        released = release_rollout(ledger, group.group_id, index, verify_attempt, error=error)
        return Decision(released.events, outcome)
    return Decision((), "accepted") if is_known else counted(Counter.LATE, "late")


def _outcome_beside(standing: Verdict, verdict: Verdict) -> Outcome:
    """What the sender of ``verdict`` is told where ``standing`` is never replaced.

    Two verifiers judge one rollout where a lease expired and both held it. The second one may bring
    the reference that the first lacks, yet to accept its verdict would promise what is not kept. A
    failure of the infrastructure is no verdict: it ends its lease, and that is all it asks for.
    """
    is_kept = verdict == standing or verdict.status is VerdictStatus.INFRA_ERROR
    return "accepted" if is_kept else "duplicate"


def _not_judged(
    ledger: Ledger, group: GroupRecord, index: int, verify_attempt: int, verdict: Verdict
) -> Decision[Outcome]:
    if verdict.status is VerdictStatus.INFRA_ERROR:
        return _verify_again(ledger, group, index, verify_attempt, verdict.reason)
    reason = f"no verifier can judge index {index}: {verdict.status.value}"
    told = describe_error(index, group.indices[index].owner, cap_error(verdict.reason))
    return Decision((dead_letter_of(group, reason, [told]),), "accepted")


def _verify_again(
    ledger: Ledger, group: GroupRecord, index: int, verify_attempt: int, reason: str
) -> Decision[Outcome]:
    if not _is_verifying(group.indices[index], verify_attempt):
        return counted(Counter.LATE, "late")
    error = reason or "infrastructure error"
    decision = release_rollout(ledger, group.group_id, index, verify_attempt, error=error)
    return Decision(decision.events, "accepted")


def release_rollout(
    ledger: Ledger,
    group_id: int,
    index: int,
    verify_attempt: int,
    *,
    lost: bool = False,
    error: str = "",
) -> Decision[None]:
    """Let a rollout wait for a verifier again; a stale lease changes nothing."""
    group = ledger.groups.get(group_id)
    if group is None or not _is_verifying(group.indices[index], verify_attempt):
        return Decision((), None)
    error = cap_error(error)
    released = events.VerifyReleased(
        group_id=group_id, index=index, attempt=verify_attempt, lost=lost, error=error
    )
    item = group.indices[index]
    latest = [describe_error(index, item.owner, error)] if error else []
    return Decision((released, *dead_letter(ledger, group, [item], lost, latest)), None)


def _is_verifying(item: IndexRecord, verify_attempt: int) -> bool:
    return item.phase is VERIFYING and item.verify_attempt == verify_attempt
