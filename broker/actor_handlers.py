"""What actors are answered: prompts for as long as they may sample, and news of weights."""

from __future__ import annotations

from broker import rollout_rules, step_rules
from broker.exchange import Answer, Ask
from broker.handler_state import MAX_LEASES_PER_REPLY, HandlerState
from common import messages
from common.content_hash import content_hash
from common.errors import RefusedError
from common.types import RolloutHeader, WeightVersion


def lease_prompts(state: HandlerState, ask: Ask[messages.LeasePrompts]) -> Answer | None:
    """As many prompts as may be sampled with the weights that the actor serves."""
    state.refuse_ended()
    leases: list[messages.PromptLease] = []
    serving = _proven(state, ask.client, ask.message.serving)
    state.samplers.note(ask.client, serving)
    while len(leases) < min(ask.message.max_groups, MAX_LEASES_PER_REPLY):
        decision = rollout_rules.lease_prompt(
            state.ledger, ask.client, serving, state.source, state.samplers.names
        )
        lease = state.engine.do(decision, ask.now_s)
        if lease is None:
            break
        leases.append(lease)
    return Answer(messages.PromptLeases(leases=tuple(leases))) if leases else None


def _proven(state: HandlerState, client: str, claimed: WeightVersion) -> WeightVersion:
    """What an actor serves now: it may have proved newer weights since it asked."""
    reported = state.fleet.serving(client)
    return claimed if reported is None else max(claimed, reported)


def submit_rollout(state: HandlerState, ask: Ask[messages.SubmitRollout]) -> Answer:
    """Keep a rollout, and say what it survives from here on."""
    header = ask.message.rollout
    decision = rollout_rules.submit_rollout(state.ledger, header, _content_hash(ask))
    if decision.events and decision.outcome == "accepted" and not header.store:
        state.engine.payloads.add_payload(header, ask.frames)
    outcome = state.engine.do(decision, ask.now_s)
    promise = _promise(state, header) if outcome == "accepted" else ""
    return Answer(messages.Ack(outcome=outcome, promise=promise))


def _content_hash(ask: Ask[messages.SubmitRollout]) -> str:
    """Hash of the rollout: of its frames, or as the client says where they are elsewhere.

    Raises :class:`RefusedError` when there is neither.
    """
    message = ask.message
    if not message.rollout.store:
        return content_hash(message.rollout, ask.frames)
    if not message.content_hash:
        raise RefusedError("malformed", "a rollout with a store needs the hash of its content")
    return message.content_hash


def _promise(state: HandlerState, header: RolloutHeader) -> messages.Promise:
    """What this rollout survives: the weaker promise of those that hold a part of it."""
    if not header.store:
        return state.identity.promise
    if header.store == header.actor:
        return "direct"
    both = (state.identity.promise, state.identity.store_promise)
    return "relaxed" if "relaxed" in both else "durable"


def watch_weights(state: HandlerState, ask: Ask[messages.WatchWeights]) -> Answer | None:
    """The newest announcement, once it is another than the one that the actor knows."""
    ledger = state.ledger.state
    if ledger.announcement is None or ledger.announcement.version == ask.message.known:
        return None
    return Answer(messages.WeightNotice(announcement=ledger.announcement), [ledger.manifest])


def report_weights(state: HandlerState, ask: Ask[messages.ReportWeights]) -> Answer:
    """Note what became of weights on an actor, which serves them if it has proved them."""
    if ask.message.proven:
        state.fleet.set_serving(ask.client, ask.message.version)
    state.engine.do(step_rules.report_weights(ask.message), ask.now_s)
    return Answer(messages.Ack())
