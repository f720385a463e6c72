"""What learners and collectors are answered: groups, and that their steps are on record."""

from __future__ import annotations

from broker import reference_rules, resume_rules, step_rules
from broker.exchange import Answer, Ask
from broker.handler_state import HandlerState
from broker.ledger_state import Decision
from broker.step_rules import Pull
from common import messages


def pull_groups(state: HandlerState, ask: Ask[messages.PullGroups]) -> Answer | None:
    """Complete groups for the step that is being computed, or word that none will come again."""
    state.refuse_ended()
    message = ask.message
    pull = Pull(message.policy_step, message.max_groups, message.held)
    groups = state.engine.do(step_rules.hand_over(state.ledger, pull), ask.now_s)
    if groups is not None:
        return Answer(groups)
    return Answer(messages.Groups(exhausted=True)) if _is_exhausted(state) else None


def _is_exhausted(state: HandlerState) -> bool:
    """Whether no group will ever come again."""
    if state.ledger.num_outstanding:
        return False
    return state.source.draw(state.ledger.state.prompts) is None


def describe_groups(state: HandlerState, ask: Ask[messages.DescribeGroups]) -> Answer:
    """Groups that were handed over before."""
    groups = step_rules.describe_groups(state.ledger, ask.message.group_ids)
    return Answer(messages.Groups(groups=groups))


def set_reference(state: HandlerState, ask: Ask[messages.SetReference]) -> Answer:
    """Have verifiers compute log-probabilities under another reference."""
    state.engine.do(reference_rules.set_reference(state.ledger, ask.message.version), ask.now_s)
    return Answer(messages.Ack())


def commit_step(state: HandlerState, ask: Ask[messages.CommitStep]) -> Answer:
    """Note that groups are stepped."""
    return _committed(state, step_rules.commit_step(state.ledger, ask.message), ask.now_s)


def commit_checkpoint(state: HandlerState, ask: Ask[messages.CommitCheckpoint]) -> Answer:
    """Note that the groups of steps up to a checkpoint are trained."""
    decision = step_rules.commit_checkpoint(state.ledger, ask.message.policy_step)
    return _committed(state, decision, ask.now_s)


def resume_learner(state: HandlerState, ask: Ask[messages.ResumeLearner]) -> Answer:
    """Go on from the checkpoint and the step records that a learner has."""
    resume_rules.refuse_older_journal(ask.message, state.engine.num_events)
    answer = _committed(state, resume_rules.resume(state.ledger, ask.message), ask.now_s)
    state.has_ended = False
    return answer


def _committed(state: HandlerState, decision: Decision[None], now_s: float) -> Answer:
    """Done, and how long the journal is with it.

    That is told only with events that are durable under any acknowledgement: the events since may
    still be lost with the machine.
    """
    state.engine.do(decision, now_s)
    num_events = state.engine.num_events if decision.events else 0
    return Answer(messages.Ack(num_journal_events=num_events))


def evict_groups(state: HandlerState, ask: Ask[messages.EvictGroups]) -> Answer:
    """Give up groups that the consumer cannot use."""
    decision = step_rules.evict_groups(state.ledger, ask.message.group_ids, ask.message.reason)
    state.engine.do(decision, ask.now_s)
    return Answer(messages.Ack())


def end_run(state: HandlerState, ask: Ask[messages.EndRun]) -> Answer:
    """Seal the ledger: nobody is given work from here on."""
    state.engine.do(step_rules.end_run(state.ledger), ask.now_s)
    state.has_ended = True
    return Answer(messages.Ack())


def publish_weights(state: HandlerState, ask: Ask[messages.PublishWeights]) -> Answer:
    """Announce weights, whose manifest is the one frame of the request."""
    manifest = bytes(ask.frames[0])
    decision = step_rules.announce(state.ledger, ask.message, manifest)
    state.engine.do(decision, ask.now_s)
    return Answer(messages.Ack())
