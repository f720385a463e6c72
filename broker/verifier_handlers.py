"""What verifiers are answered: rollouts to judge, with their arrays."""

from __future__ import annotations

import functools

import msgspec

from broker import difficulty_rules, rollout_rules, verdict_rules
from broker.events import Verified
from broker.exchange import Answer, Ask
from broker.handler_state import MAX_LEASES_PER_REPLY, HandlerState
from broker.ledger_state import Decision
from common import messages
from common.codec import Buffer
from common.types import ReferenceHeader, RolloutId

_VERIFIED_FRAMES = 3


def lease_rollouts(state: HandlerState, ask: Ask[messages.LeaseRollouts]) -> Answer | None:
    """Rollouts that wait for a verdict, with the arrays of those that are kept here."""
    state.refuse_ended()
    state.judges.note(ask.client)
    leases: list[messages.RolloutLease] = []
    while len(leases) < min(ask.message.max_rollouts, MAX_LEASES_PER_REPLY):
        decision = verdict_rules.lease_rollout(state.ledger, ask.client, state.judges.names)
        lease = state.engine.do(decision, ask.now_s)
        if lease is None:
            break
        leases.append(lease)
    if not leases:
        return None
    held_here = [item.rollout for item in leases if not item.rollout.store]
    payloads = [state.engine.payloads.payload(rollout.rollout_id) for rollout in held_here]
    frames = [frame for _, arrays in payloads for frame in arrays[:_VERIFIED_FRAMES]]
    told = tuple(_without_routing(lease) for lease in leases)
    return Answer(messages.RolloutLeases(leases=told), frames)


def _without_routing(lease: messages.RolloutLease) -> messages.RolloutLease:
    """No verifier reads which experts were used, and the record outweighs all else."""
    if lease.rollout.routing is None or lease.rollout.store:
        return lease
    rollout = msgspec.structs.replace(lease.rollout, routing=None)
    return msgspec.structs.replace(lease, rollout=rollout)


def submit_verdict(state: HandlerState, ask: Ask[messages.SubmitVerdict]) -> Answer:
    """Take in a verdict, and the reference log-probabilities that came with it."""
    message = ask.message
    decision = verdict_rules.submit_verdict(
        state.ledger,
        message.rollout_id,
        message.verify_attempt,
        message.verdict,
        message.reference,
    )
    if message.reference is not None:
        _keep_reference(state, message.rollout_id, message.reference, decision, ask.frames[0])
    outcome = state.engine.do(decision, ask.now_s)
    difficulty_rules.check_yield(state.ledger)
    return _acknowledged(outcome)


def _keep_reference(
    state: HandlerState,
    rollout_id: RolloutId,
    header: ReferenceHeader,
    decision: Decision[rollout_rules.Outcome],
    frame: Buffer,
) -> None:
    """Keep log-probabilities that were taken; others are of no use to anybody."""
    taken = (event for event in decision.events if isinstance(event, Verified))
    if any(event.reference is not None for event in taken):
        state.references.add_reference(rollout_id, header, frame)


@functools.cache
def _acknowledged(outcome: rollout_rules.Outcome) -> Answer:
    """The acknowledgement of a verdict, which says nothing of its own."""
    return Answer(messages.Ack(outcome=outcome))
