"""What the broker answers to each request: one handler a message, no sockets, time passed in.

A handler returns an :class:`Answer`, or None when it has nothing to give yet; the server then holds
the request and asks again when something has changed. A :class:`RefusedError` becomes ``Refused``.
Here are the handlers of what everybody may send; the others lie in a module for each role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from broker import (
    actor_handlers,
    consumer_handlers,
    payload_handlers,
    payload_rules,
    rollout_rules,
    step_rules,
    verifier_handlers,
)
from broker.engine import Engine, ReferenceStore
from broker.exchange import Answer, Ask, Identity
from broker.fleet import Fleet
from broker.handler_state import HandlerState
from broker.leases import Held
from broker.prompts.mixture import PromptSource
from broker.status import run_status
from common import messages
from common.errors import RefusedError
from common.messages import Request
from common.types import Role


class Handlers:
    """Dispatch from request to answer, and what happens to clients that come and go."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        source: PromptSource,
        identity: Identity,
        references: ReferenceStore | None = None,
    ) -> None:
        """``references`` keeps reference log-probabilities, where verifiers compute them."""
        self._engine = engine
        self._ledger = engine.ledger
        self._fleet = fleet
        self._state = HandlerState(engine, fleet, source, identity, references)

    def handle(self, ask: Ask[Request]) -> Answer | None:
        """Answer a request of a registered client, or None to hold it.

        Asking again for a held request is no sign of life: :meth:`Fleet.hear` is the server's.
        """
        try:
            return _HANDLERS[type(ask.message)](self._state, ask)
        except RefusedError as error:
            return Answer(messages.Refused(code=error.code, reason=error.reason))

    def note_parked(self, num_by_kind: dict[str, int]) -> None:
        """Let :class:`Status` tell how many requests of each kind are held."""
        self._state.num_parked = num_by_kind

    # --- clients that come and go -----------------------------------------------------------------

    def register(self, message: messages.Register, now_s: float, user_id: str = "") -> Answer:
        """Take in a client; an earlier process of the same name loses its leases."""
        if self._fleet.register(message, now_s, user_id):
            self._take_work(message.name, now_s)
            if message.role is Role.ACTOR:
                self._engine.do(payload_rules.lose_server(self._ledger, message.name), now_s)
        if message.role is Role.COLLECTOR:
            started = step_rules.start_collector(self._ledger, message.nonce)
            self._engine.do(started, now_s)
            self._state.has_ended = self._state.has_ended and not started.events
        identity = self._state.identity
        return Answer(
            messages.Registered(
                run_id=identity.run_id,
                broker_nonce=identity.broker_nonce,
                heartbeat_s=identity.heartbeat_s,
                lease_s=identity.lease_s,
            )
        )

    def sweep(self, now_s: float) -> list[str]:
        """Give back the work of clients that are gone, give up groups; returns their names."""
        for held in self._engine.leases.take_expired(now_s):
            self._engine.give_back(held, now_s, lost=True)
        self._give_up_overdue(now_s)
        gone = self._fleet.remove_silent(now_s)
        for name in gone:
            self._forget_peer(name)
        return gone

    def expel(self, names: Iterable[str], now_s: float) -> None:
        """Give back the work of clients that may take part no longer."""
        for name in names:
            self._take_work(name, now_s)

    def _take_work(self, name: str, now_s: float) -> None:
        self._forget_peer(name)
        for held in self._engine.leases.take_owned(name):
            self._engine.give_back(held, now_s, lost=True)

    def _give_up_overdue(self, now_s: float) -> None:
        limit_s = self._ledger.rules.max_group_s
        if not limit_s:
            return
        for group_id in self._engine.ages.take_overdue(now_s, limit_s):
            self._engine.do(rollout_rules.give_up(self._ledger, group_id, limit_s), now_s)

    def _forget_peer(self, name: str) -> None:
        self._state.samplers.discard(name)
        self._state.judges.discard(name)


def _heartbeat(state: HandlerState, ask: Ask[messages.Heartbeat]) -> Answer:
    if ask.message.serving is not None:
        state.fleet.set_serving(ask.client, ask.message.serving)
    revoked = state.engine.leases.renew(ask.client, ask.message.leases, ask.now_s)
    return Answer(messages.HeartbeatReply(revoked=revoked))


def _return_lease(state: HandlerState, ask: Ask[messages.ReturnLease]) -> Answer:
    lease = ask.message.lease
    held = state.engine.leases.get(lease.attempt)
    if held is not None and held.owner == ask.client:
        part = Held(held.owner, lease, held.work)
        state.engine.give_back(part, ask.now_s, error=ask.message.error)
    return Answer(messages.Ack())


def _get_fleet(state: HandlerState, ask: Ask[messages.GetFleet]) -> Answer:
    return Answer(messages.Fleet(members=state.fleet.members(ask.now_s)))


def _get_status(state: HandlerState, _: Ask[messages.GetStatus]) -> Answer:
    return Answer(run_status(state.ledger, state.identity.run_id, state.num_parked))


_HANDLERS: dict[type[Request], Callable[[HandlerState, Ask[Any]], Answer | None]] = {
    messages.Heartbeat: _heartbeat,
    messages.ReturnLease: _return_lease,
    messages.GetFleet: _get_fleet,
    messages.GetStatus: _get_status,
    messages.LeasePrompts: actor_handlers.lease_prompts,
    messages.SubmitRollout: actor_handlers.submit_rollout,
    messages.WatchWeights: actor_handlers.watch_weights,
    messages.ReportWeights: actor_handlers.report_weights,
    messages.LeaseRollouts: verifier_handlers.lease_rollouts,
    messages.SubmitVerdict: verifier_handlers.submit_verdict,
    messages.PullGroups: consumer_handlers.pull_groups,
    messages.DescribeGroups: consumer_handlers.describe_groups,
    messages.SetReference: consumer_handlers.set_reference,
    messages.CommitStep: consumer_handlers.commit_step,
    messages.CommitCheckpoint: consumer_handlers.commit_checkpoint,
    messages.ResumeLearner: consumer_handlers.resume_learner,
    messages.EvictGroups: consumer_handlers.evict_groups,
    messages.EndRun: consumer_handlers.end_run,
    messages.PublishWeights: consumer_handlers.publish_weights,
    messages.FetchRollouts: payload_handlers.fetch_rollouts,
    messages.FetchReferences: payload_handlers.fetch_references,
    messages.GetStores: payload_handlers.get_stores,
    messages.ListEnded: payload_handlers.list_ended,
    messages.ReportLost: payload_handlers.report_lost,
}
REQUESTS = frozenset((*_HANDLERS, messages.Register, messages.ReserveBytes))
"""Kinds of message that the broker answers; the server itself sees to wishes for credit."""
