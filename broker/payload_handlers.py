"""What those are answered who read arrays, and those who keep them (stores and actors)."""

from __future__ import annotations

from broker import payload_rules
from broker.exchange import Answer, Ask
from broker.handler_state import HandlerState
from common import messages
from common.codec import Buffer
from common.errors import RefusedError
from common.types import ReferenceHeader, RolloutHeader, RolloutId


def fetch_rollouts(state: HandlerState, ask: Ask[messages.FetchRollouts]) -> Answer:
    """Arrays of rollouts that are kept here; raises :class:`RefusedError` if one is gone."""
    headers: list[RolloutHeader] = []
    frames: list[Buffer] = []
    for rollout_id in ask.message.rollout_ids:
        try:
            header, arrays = state.engine.payloads.payload(rollout_id)
        except KeyError:
            raise RefusedError("gone", f"no arrays of {rollout_id} are kept") from None
        headers.append(header)
        frames.extend(arrays)
    return Answer(messages.Rollouts(rollouts=tuple(headers)), frames)


def fetch_references(state: HandlerState, ask: Ask[messages.FetchReferences]) -> Answer:
    """Reference log-probabilities; raises :class:`RefusedError` if those of one are gone."""
    found = [_reference(state, rollout_id) for rollout_id in ask.message.rollout_ids]
    headers = tuple(header for header, _ in found)
    return Answer(messages.References(references=headers), [frame for _, frame in found])


def _reference(state: HandlerState, rollout_id: RolloutId) -> tuple[ReferenceHeader, Buffer]:
    group = state.ledger.groups.get(rollout_id.group_id)
    version = None if group is None else group.references.get(rollout_id.index)
    try:
        if version is not None:
            return state.references.reference(rollout_id, version)
    except KeyError:
        pass
    raise RefusedError("gone", f"no reference log-probabilities of {rollout_id} are kept")


def get_stores(state: HandlerState, ask: Ask[messages.GetStores]) -> Answer:
    """Where arrays are served."""
    return Answer(messages.Stores(stores=state.fleet.stores(ask.message.names)))


def list_ended(state: HandlerState, ask: Ask[messages.ListEnded]) -> Answer:
    """Which of these groups nobody needs the arrays of any longer."""
    message = ask.message
    ended = payload_rules.ended_groups(state.ledger, message.group_ids, stepped=message.stepped)
    return Answer(messages.Ended(group_ids=ended))


def report_lost(state: HandlerState, ask: Ask[messages.ReportLost]) -> Answer:
    """Have rollouts sampled anew whose arrays are nowhere to be had."""
    decision = payload_rules.report_lost(state.ledger, ask.message.rollout_ids)
    state.engine.do(decision, ask.now_s)
    return Answer(messages.Ack())
