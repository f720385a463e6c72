"""What the broker answers to each request: one method a message, no sockets, time passed in.

A handler returns an :class:`Answer`, or None when it has nothing to give yet; the server then holds
the request and asks again when something has changed. A :class:`RefusedError` becomes ``Refused``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from broker import (
    difficulty_rules,
    payload_rules,
    reference_rules,
    resume_rules,
    rollout_rules,
    step_rules,
    verdict_rules,
)
from broker.engine import Engine, ReferenceStore
from broker.events import Verified
from broker.exchange import Answer, Ask, Identity
from broker.fleet import Fleet
from broker.leases import Held
from broker.ledger_state import Decision
from broker.peers import Peers
from broker.prompts.mixture import PromptSource
from broker.status import run_status
from broker.step_rules import Pull
from common import messages
from common.codec import Buffer
from common.content_hash import content_hash
from common.errors import RefusedError
from common.messages import Request
from common.types import ReferenceHeader, Role, RolloutHeader, RolloutId, WeightVersion

MAX_LEASES_PER_REPLY = 1024


class Handlers:
    """Dispatch from request to answer over the engine, the fleet and the prompt source."""

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
        self._source = source
        self._identity = identity
        self._references = references
        self._ended = False
        self._samplers = Peers()
        self._judges = Peers()
        self.num_parked: dict[str, int] = {}
        """Requests held for now, by kind; the server keeps it up to date for :class:`Status`."""

    def handle(self, ask: Ask[Request]) -> Answer | None:
        """Answer a request of a registered client, or None to hold it.

        Asking again for a held request is no sign of life: :meth:`Fleet.hear` is the server's.
        """
        try:
            return _HANDLERS[type(ask.message)](self, ask)
        except RefusedError as error:
            return Answer(messages.Refused(code=error.code, reason=error.reason))

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
        self._samplers.discard(name)
        self._judges.discard(name)

    # --- membership -------------------------------------------------------------------------------

    def register(self, message: messages.Register, now_s: float, user_id: str = "") -> Answer:
        """Take in a client; an earlier process of the same name loses its leases."""
        if self._fleet.register(message, now_s, user_id):
            self._take_work(message.name, now_s)
            if message.role is Role.ACTOR:
                self._engine.do(payload_rules.lose_server(self._ledger, message.name), now_s)
        if message.role is Role.COLLECTOR:
            started = step_rules.start_collector(self._ledger, message.nonce)
            self._engine.do(started, now_s)
            self._ended = self._ended and not started.events
        identity = self._identity
        return Answer(
            messages.Registered(
                run_id=identity.run_id,
                broker_nonce=identity.broker_nonce,
                heartbeat_s=identity.heartbeat_s,
                lease_s=identity.lease_s,
            )
        )

    def _heartbeat(self, ask: Ask[messages.Heartbeat]) -> Answer:
        if ask.message.serving is not None:
            self._fleet.set_serving(ask.client, ask.message.serving)
        revoked = self._engine.leases.renew(ask.client, ask.message.leases, ask.now_s)
        return Answer(messages.HeartbeatReply(revoked=revoked))

    # --- generation -------------------------------------------------------------------------------

    def _lease_prompts(self, ask: Ask[messages.LeasePrompts]) -> Answer | None:
        self._refuse_ended()
        leases: list[messages.PromptLease] = []
        serving = self._proven(ask.client, ask.message.serving)
        self._samplers.note(ask.client, serving)
        while len(leases) < min(ask.message.max_groups, MAX_LEASES_PER_REPLY):
            decision = rollout_rules.lease_prompt(
                self._ledger, ask.client, serving, self._source, self._samplers.names
            )
            lease = self._engine.do(decision, ask.now_s)
            if lease is None:
                break
            leases.append(lease)
        return Answer(messages.PromptLeases(leases=tuple(leases))) if leases else None

    def _proven(self, client: str, claimed: WeightVersion) -> WeightVersion:
        """What an actor serves now: it may have proved newer weights since it asked."""
        reported = self._fleet.serving(client)
        return claimed if reported is None else max(claimed, reported)

    def _submit_rollout(self, ask: Ask[messages.SubmitRollout]) -> Answer:
        header = ask.message.rollout
        decision = rollout_rules.submit_rollout(self._ledger, header, _content_hash(ask))
        if decision.events and decision.outcome == "accepted" and not header.store:
            self._engine.payloads.add_payload(header, ask.frames)
        outcome = self._engine.do(decision, ask.now_s)
        promise = self._promise(header) if outcome == "accepted" else ""
        return Answer(messages.Ack(outcome=outcome, promise=promise))

    def _promise(self, header: RolloutHeader) -> messages.Promise:
        """What this rollout survives: the weaker promise of those that hold a part of it."""
        if not header.store:
            return self._identity.promise
        if header.store == header.actor:
            return "direct"
        both = (self._identity.promise, self._identity.store_promise)
        return "relaxed" if "relaxed" in both else "durable"

    def _return_lease(self, ask: Ask[messages.ReturnLease]) -> Answer:
        lease = ask.message.lease
        held = self._engine.leases.get(lease.attempt)
        if held is not None and held.owner == ask.client:
            part = Held(held.owner, lease, held.work)
            self._engine.give_back(part, ask.now_s, error=ask.message.error)
        return Answer(messages.Ack())

    # --- verification -----------------------------------------------------------------------------

    def _lease_rollouts(self, ask: Ask[messages.LeaseRollouts]) -> Answer | None:
        self._refuse_ended()
        self._judges.note(ask.client)
        leases: list[messages.RolloutLease] = []
        while len(leases) < min(ask.message.max_rollouts, MAX_LEASES_PER_REPLY):
            decision = verdict_rules.lease_rollout(self._ledger, ask.client, self._judges.names)
            lease = self._engine.do(decision, ask.now_s)
            if lease is None:
                break
            leases.append(lease)
        if not leases:
            return None
        held_here = [item.rollout for item in leases if not item.rollout.store]
        payloads = [self._engine.payloads.payload(rollout.rollout_id) for rollout in held_here]
        frames = [frame for _, arrays in payloads for frame in arrays]
        return Answer(messages.RolloutLeases(leases=tuple(leases)), frames)

    def _submit_verdict(self, ask: Ask[messages.SubmitVerdict]) -> Answer:
        message = ask.message
        decision = verdict_rules.submit_verdict(
            self._ledger,
            message.rollout_id,
            message.verify_attempt,
            message.verdict,
            message.reference,
        )
        if message.reference is not None:
            self._keep_reference(message.rollout_id, message.reference, decision, ask.frames[0])
        outcome = self._engine.do(decision, ask.now_s)
        difficulty_rules.check_yield(self._ledger)
        return _acknowledged(outcome)

    def _keep_reference(
        self,
        rollout_id: RolloutId,
        header: ReferenceHeader,
        decision: Decision[rollout_rules.Outcome],
        frame: Buffer,
    ) -> None:
        """Keep log-probabilities that were taken; others are of no use to anybody."""
        taken = (event for event in decision.events if isinstance(event, Verified))
        if any(event.reference is not None for event in taken):
            self._kept_references().add_reference(rollout_id, header, frame)

    def _kept_references(self) -> ReferenceStore:
        if self._references is None:
            raise RefusedError("gone", "no reference log-probabilities are kept here")
        return self._references

    # --- consumption ------------------------------------------------------------------------------

    def _pull_groups(self, ask: Ask[messages.PullGroups]) -> Answer | None:
        self._refuse_ended()
        message = ask.message
        pull = Pull(message.policy_step, message.max_groups, message.held)
        groups = self._engine.do(step_rules.hand_over(self._ledger, pull), ask.now_s)
        if groups is not None:
            return Answer(groups)
        return Answer(messages.Groups(exhausted=True)) if self._is_exhausted() else None

    def _is_exhausted(self) -> bool:
        """Whether no group will ever come again."""
        if self._ledger.num_outstanding:
            return False
        return self._source.draw(self._ledger.state.prompts) is None

    def _describe_groups(self, ask: Ask[messages.DescribeGroups]) -> Answer:
        groups = step_rules.describe_groups(self._ledger, ask.message.group_ids)
        return Answer(messages.Groups(groups=groups))

    def _fetch_rollouts(self, ask: Ask[messages.FetchRollouts]) -> Answer:
        headers: list[RolloutHeader] = []
        frames: list[Buffer] = []
        for rollout_id in ask.message.rollout_ids:
            try:
                header, arrays = self._engine.payloads.payload(rollout_id)
            except KeyError:
                raise RefusedError("gone", f"no arrays of {rollout_id} are kept") from None
            headers.append(header)
            frames.extend(arrays)
        return Answer(messages.Rollouts(rollouts=tuple(headers)), frames)

    def _set_reference(self, ask: Ask[messages.SetReference]) -> Answer:
        self._engine.do(reference_rules.set_reference(self._ledger, ask.message.version), ask.now_s)
        return Answer(messages.Ack())

    def _fetch_references(self, ask: Ask[messages.FetchReferences]) -> Answer:
        found = [self._reference(rollout_id) for rollout_id in ask.message.rollout_ids]
        headers = tuple(header for header, _ in found)
        return Answer(messages.References(references=headers), [frame for _, frame in found])

    def _reference(self, rollout_id: RolloutId) -> tuple[ReferenceHeader, Buffer]:
        group = self._ledger.groups.get(rollout_id.group_id)
        version = None if group is None else group.references.get(rollout_id.index)
        try:
            if version is not None:
                return self._kept_references().reference(rollout_id, version)
        except KeyError:
            pass
        raise RefusedError("gone", f"no reference log-probabilities of {rollout_id} are kept")

    def _commit_step(self, ask: Ask[messages.CommitStep]) -> Answer:
        self._engine.do(step_rules.commit_step(self._ledger, ask.message), ask.now_s)
        return Answer(messages.Ack())

    def _commit_checkpoint(self, ask: Ask[messages.CommitCheckpoint]) -> Answer:
        decision = step_rules.commit_checkpoint(self._ledger, ask.message.policy_step)
        self._engine.do(decision, ask.now_s)
        return Answer(messages.Ack())

    def _resume_learner(self, ask: Ask[messages.ResumeLearner]) -> Answer:
        self._engine.do(resume_rules.resume(self._ledger, ask.message), ask.now_s)
        self._ended = False
        return Answer(messages.Ack())

    def _evict_groups(self, ask: Ask[messages.EvictGroups]) -> Answer:
        decision = step_rules.evict_groups(self._ledger, ask.message.group_ids, ask.message.reason)
        self._engine.do(decision, ask.now_s)
        return Answer(messages.Ack())

    def _end_run(self, ask: Ask[messages.EndRun]) -> Answer:
        self._engine.do(step_rules.end_run(self._ledger), ask.now_s)
        self._ended = True
        return Answer(messages.Ack())

    def _refuse_ended(self) -> None:
        """A run that ended under this process is over; one found sealed waits to be resumed."""
        if self._ended:
            raise RefusedError("sealed", "the run has ended")

    # --- weights ----------------------------------------------------------------------------------

    def _publish_weights(self, ask: Ask[messages.PublishWeights]) -> Answer:
        manifest = bytes(ask.frames[0])
        decision = step_rules.announce(self._ledger, ask.message, manifest)
        self._engine.do(decision, ask.now_s)
        return Answer(messages.Ack())

    def _watch_weights(self, ask: Ask[messages.WatchWeights]) -> Answer | None:
        state = self._ledger.state
        if state.announcement is None or state.announcement.version == ask.message.known:
            return None
        return Answer(messages.WeightNotice(announcement=state.announcement), [state.manifest])

    def _report_weights(self, ask: Ask[messages.ReportWeights]) -> Answer:
        if ask.message.proven:
            self._fleet.set_serving(ask.client, ask.message.version)
        self._engine.do(step_rules.report_weights(ask.message), ask.now_s)
        return Answer(messages.Ack())

    # --- payload servers --------------------------------------------------------------------------

    def _get_stores(self, ask: Ask[messages.GetStores]) -> Answer:
        return Answer(messages.Stores(stores=self._fleet.stores(ask.message.names)))

    def _list_ended(self, ask: Ask[messages.ListEnded]) -> Answer:
        message = ask.message
        ended = payload_rules.ended_groups(self._ledger, message.group_ids, stepped=message.stepped)
        return Answer(messages.Ended(group_ids=ended))

    def _report_lost(self, ask: Ask[messages.ReportLost]) -> Answer:
        decision = payload_rules.report_lost(self._ledger, ask.message.rollout_ids)
        self._engine.do(decision, ask.now_s)
        return Answer(messages.Ack())

    # --- watching ---------------------------------------------------------------------------------

    def _get_fleet(self, ask: Ask[messages.GetFleet]) -> Answer:
        return Answer(messages.Fleet(members=self._fleet.members(ask.now_s)))

    def _get_status(self, ask: Ask[messages.GetStatus]) -> Answer:
        return Answer(run_status(self._ledger, self._identity.run_id, self.num_parked))


@functools.cache
def _acknowledged(outcome: rollout_rules.Outcome) -> Answer:
    """The acknowledgement of a verdict, which says nothing of its own."""
    return Answer(messages.Ack(outcome=outcome))


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


_HANDLERS: dict[type[Request], Callable[[Handlers, Ask[Any]], Answer | None]] = {
    messages.Register: lambda handlers, ask: handlers.register(ask.message, ask.now_s),
    messages.Heartbeat: Handlers._heartbeat,
    messages.LeasePrompts: Handlers._lease_prompts,
    messages.SubmitRollout: Handlers._submit_rollout,
    messages.ReturnLease: Handlers._return_lease,
    messages.LeaseRollouts: Handlers._lease_rollouts,
    messages.SubmitVerdict: Handlers._submit_verdict,
    messages.PullGroups: Handlers._pull_groups,
    messages.DescribeGroups: Handlers._describe_groups,
    messages.FetchRollouts: Handlers._fetch_rollouts,
    messages.SetReference: Handlers._set_reference,
    messages.FetchReferences: Handlers._fetch_references,
    messages.CommitStep: Handlers._commit_step,
    messages.CommitCheckpoint: Handlers._commit_checkpoint,
    messages.ResumeLearner: Handlers._resume_learner,
    messages.EvictGroups: Handlers._evict_groups,
    messages.EndRun: Handlers._end_run,
    messages.PublishWeights: Handlers._publish_weights,
    messages.WatchWeights: Handlers._watch_weights,
    messages.ReportWeights: Handlers._report_weights,
    messages.GetFleet: Handlers._get_fleet,
    messages.GetStatus: Handlers._get_status,
    messages.GetStores: Handlers._get_stores,
    messages.ListEnded: Handlers._list_ended,
    messages.ReportLost: Handlers._report_lost,
}
REQUESTS = frozenset((*_HANDLERS, messages.ReserveBytes))
"""Kinds of message that the broker answers; wishes for credit are the server's own affair."""
