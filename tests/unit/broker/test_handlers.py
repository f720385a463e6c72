"""Requests and their answers, without a socket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from broker.engine import Engine
from broker.exchange import Answer, Ask, Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from common import messages
from common.codec import Buffer
from common.content_hash import content_hash
from common.messages import Reply, Request
from common.types import (
    INITIAL_VERSION,
    EvictReason,
    Role,
    RolloutHeader,
    RolloutId,
    RoutingHeader,
    Verdict,
    VerdictStatus,
    WeightVersion,
)
from tests.broker_process import arrays_of
from tests.builders import prompt, rollout_header, version
from tests.scripted_prompts import ScriptedPrompts

_R = TypeVar("_R")
GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)


class Payloads:
    """Payloads in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[RolloutId, tuple[RolloutHeader, list[memoryview]]] = {}

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        self.kept[header.rollout_id] = (header, [memoryview(frame) for frame in frames])

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        gone = set(group_ids)
        self.kept = {key: kept for key, kept in self.kept.items() if key.group_id not in gone}

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        return self.kept[rollout_id]


def first_prompts(number: int) -> ScriptedPrompts:
    return ScriptedPrompts(lambda cursor: prompt(cursor) if cursor < number else None)


class Desk:
    """Handlers with one registered client of each kind, and time to move."""

    def __init__(self, *, kind: str = "train", num_prompts: int = 100) -> None:
        rules = LedgerRules(
            kind="collect" if kind == "collect" else "train",
            group_size=1,
            groups_per_step=2,
            max_policy_lag=0,
            num_steps=50,
        )
        self.now_s = 0.0
        self.engine = Engine(Ledger(rules), LeaseTable(10.0), Payloads(), self.now_s)
        self.fleet = Fleet(10.0)
        identity = Identity("run", "nonce", 2.0, 10.0)
        self.handlers = Handlers(self.engine, self.fleet, first_prompts(num_prompts), identity)
        for role, name in ((Role.ACTOR, "actor"), (Role.LEARNER, "learner")):
            self.register(role, name)
        if kind == "train":
            self.ask("learner", _publish(0), [b"manifest"])

    def register(self, role: Role, name: str, nonce: str = "one") -> Answer:
        message = messages.Register(role=role, name=name, nonce=nonce, host="h", pid=1)
        return self.handlers.register(message, self.now_s)

    def ask(self, client: str, message: Request, frames: Sequence[Buffer] = ()) -> Answer | None:
        return self.handlers.handle(Ask(client, message, frames, self.now_s))

    def reply(self, client: str, message: Request, kind: type[_R], *frames: Buffer) -> _R:
        answer = self.ask(client, message, frames)
        assert answer is not None
        assert isinstance(answer.message, kind), answer.message
        return answer.message

    def lease(
        self, max_groups: int = 1, serving: WeightVersion = INITIAL_VERSION
    ) -> messages.PromptLeases:
        request = messages.LeasePrompts(serving=serving, max_groups=max_groups, wait_s=0.0)
        return self.reply("actor", request, messages.PromptLeases)

    def submit(
        self, lease: messages.PromptLease, serving: WeightVersion = INITIAL_VERSION
    ) -> RolloutHeader:
        header = rollout_header(
            group_id=lease.lease.group_id, attempt=lease.lease.attempt, spans=((0, serving),)
        )
        frames = arrays_of(header.rollout_id).frames()
        self.reply("actor", messages.SubmitRollout(rollout=header), messages.Ack, *frames)
        return header

    def verify_all(self) -> None:
        request = messages.LeaseRollouts(max_rollouts=100, wait_s=0.0)
        for lease in self.reply("verifier", request, messages.RolloutLeases).leases:
            verdict = messages.SubmitVerdict(
                rollout_id=lease.rollout.rollout_id,
                verify_attempt=lease.verify_attempt,
                verdict=GRADED,
            )
            self.reply("verifier", verdict, messages.Ack)


def _publish(policy_step: int) -> messages.PublishWeights:
    return messages.PublishWeights(version=version(policy_step), manifest_digest="d")


def _pull(policy_step: int = 0) -> messages.PullGroups:
    return messages.PullGroups(policy_step=policy_step, max_groups=2, wait_s=0.0)


def _refusal(reply: Reply) -> str:
    assert isinstance(reply, messages.Refused)
    return reply.code


def test_registration_tells_the_run_and_how_often_to_be_heard_of() -> None:
    answer = Desk().register(Role.ACTOR, "actor-1")
    assert answer.message == messages.Registered(
        run_id="run", broker_nonce="nonce", heartbeat_s=2.0, lease_s=10.0
    )


def test_a_verifier_receives_the_arrays_that_the_actor_sent() -> None:
    desk = Desk()
    header = desk.submit(desk.lease().leases[0])
    answer = desk.ask("verifier", messages.LeaseRollouts(max_rollouts=9, wait_s=0.0))
    assert answer is not None
    assert isinstance(answer.message, messages.RolloutLeases)
    assert [lease.rollout for lease in answer.message.leases] == [header]
    sent = arrays_of(header.rollout_id).frames()
    assert [bytes(frame) for frame in answer.frames] == [bytes(frame) for frame in sent]


def test_a_verifier_is_spared_the_record_of_experts_and_a_learner_gets_it() -> None:
    desk = Desk()
    lease = desk.lease().leases[0].lease
    plain = rollout_header(group_id=lease.group_id, attempt=lease.attempt)
    shape = RoutingHeader(start=0, num_tokens=2, num_layers=1, top_k=2, num_experts=4)
    header = replace(plain, routing=shape)
    frames = [*arrays_of(header.rollout_id).frames(), memoryview(bytes([0, 3, 2, 1]))]
    desk.reply("actor", messages.SubmitRollout(rollout=header), messages.Ack, *frames)
    answer = desk.ask("verifier", messages.LeaseRollouts(max_rollouts=9, wait_s=0.0))
    assert answer is not None
    assert isinstance(answer.message, messages.RolloutLeases)
    assert [item.rollout for item in answer.message.leases] == [plain]
    assert [bytes(frame) for frame in answer.frames] == [bytes(frame) for frame in frames[:3]]
    kept = desk.ask("learner", messages.FetchRollouts(rollout_ids=(header.rollout_id,)))
    assert kept is not None
    assert kept.message == messages.Rollouts(rollouts=(header,))
    assert bytes(kept.frames[3]) == bytes([0, 3, 2, 1])


def test_a_request_with_nothing_to_give_is_held() -> None:
    desk = Desk()
    assert desk.ask("learner", _pull()) is None
    assert desk.ask("verifier", messages.LeaseRollouts(max_rollouts=1, wait_s=1.0)) is None
    desk.lease(max_groups=2)
    full = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=1.0)
    assert desk.ask("actor", full) is None


def test_arrays_are_kept_until_the_checkpoint_and_then_refused() -> None:
    desk = Desk()
    headers = [desk.submit(lease) for lease in desk.lease(max_groups=2).leases]
    desk.verify_all()
    groups = desk.reply("learner", _pull(), messages.Groups).groups
    group_ids = tuple(group.group_id for group in groups)
    commit = messages.CommitStep(incarnation=0, policy_step=0, group_ids=group_ids)
    desk.reply("learner", commit, messages.Ack)
    fetch = messages.FetchRollouts(rollout_ids=(headers[0].rollout_id,))
    assert desk.reply("learner", fetch, messages.Rollouts).rollouts == (headers[0],)
    desk.reply("learner", messages.CommitCheckpoint(policy_step=1), messages.Ack)
    answer = desk.ask("learner", fetch)
    assert answer is not None
    assert _refusal(answer.message) == "gone"


def _train(desk: Desk, at: WeightVersion) -> messages.Ack:
    """Publish, then fill and commit one batch; returns what the learner is told."""
    published = messages.PublishWeights(version=at, manifest_digest="d")
    desk.reply("learner", published, messages.Ack, b"manifest")
    for lease in desk.lease(2, at).leases:
        desk.submit(lease, at)
    desk.verify_all()
    return _commit(desk, at)


def _commit(desk: Desk, at: WeightVersion) -> messages.Ack:
    groups = desk.reply("learner", _pull(at.policy_step), messages.Groups).groups
    commit = messages.CommitStep(
        incarnation=at.incarnation,
        policy_step=at.policy_step,
        group_ids=tuple(group.group_id for group in groups),
    )
    return desk.reply("learner", commit, messages.Ack)


def test_the_learner_is_told_how_long_the_journal_is_with_what_it_committed() -> None:
    desk = Desk()
    committed = _train(desk, version(0))
    assert committed.num_journal_events == len(desk.engine.events) > 0
    checkpoint = messages.CommitCheckpoint(policy_step=1)
    trained = desk.reply("learner", checkpoint, messages.Ack)
    assert trained.num_journal_events == len(desk.engine.events) > committed.num_journal_events
    again = desk.reply("learner", checkpoint, messages.Ack)
    assert again.num_journal_events == 0, "what others added since may still be lost"


def test_a_journal_that_is_shorter_than_the_checkpoint_knows_is_refused_with_the_cure() -> None:
    desk = Desk()
    known = _train(desk, version(0)).num_journal_events
    resume = messages.ResumeLearner(incarnation=0, policy_step=1, num_journal_events=known)
    assert desk.reply("learner", resume, messages.Ack).num_journal_events > known
    num_events = desk.engine.num_events
    longer = replace(resume, num_journal_events=num_events + 1)
    refused = desk.reply("learner", longer, messages.Refused)
    assert refused.code == "older_journal"
    assert refused.reason == (
        f"the journal must have the {num_events + 1} events that the checkpoint of step 1 knows "
        f"of, it has {num_events}: groups could be trained twice (look at the journal with "
        "headrace journal check and restore the newest copy, or delete the checkpoints that are "
        "newer than it)"
    )
    assert desk.engine.num_events == num_events, "a refusal changes nothing"


def test_a_copy_from_before_a_fork_is_refused_though_it_has_more_steps() -> None:
    desk = Desk()
    _train(desk, version(0))
    _train(desk, version(1))
    copied = list(desk.engine.events)
    fork = messages.ResumeLearner(incarnation=1, policy_step=0, forked=True)
    desk.reply("learner", fork, messages.Ack)
    known = _commit(desk, version(0, 1)).num_journal_events

    copy = Ledger.replay(desk.engine.ledger.rules, None, copied)
    assert copy.state.policy_step == 2
    engine = Engine(copy, LeaseTable(10.0), Payloads(), 0.0, num_events=len(copied))
    restored = Handlers(engine, desk.fleet, first_prompts(9), Identity("run", "n", 2.0, 10.0))
    resume = messages.ResumeLearner(incarnation=1, policy_step=1, num_journal_events=known)
    answer = restored.handle(Ask("learner", resume, (), 0.0))
    assert answer is not None
    assert _refusal(answer.message) == "older_journal"


def test_the_hash_of_a_rollout_covers_its_header_and_every_array() -> None:
    header = rollout_header()
    frames = [bytes(frame) for frame in arrays_of(header.rollout_id).frames()]
    base = content_hash(header, frames)
    assert content_hash(header, frames) == base
    for place in range(3):
        changed = list(frames)
        changed[place] = bytes(len(frames[place]))
        assert content_hash(header, changed) != base
    assert content_hash(rollout_header(num_prompt=4), frames) != base


def test_a_group_held_too_long_without_a_heartbeat_goes_to_another_actor() -> None:
    desk = Desk()
    lost = desk.lease().leases[0].lease
    desk.now_s = 10.0
    assert desk.handlers.sweep(10.0) == ["actor", "learner"]
    again = desk.lease().leases[0].lease
    assert (again.group_id, again.indices) == (lost.group_id, lost.indices)
    assert again.attempt > lost.attempt
    reply = desk.reply("actor", messages.Heartbeat(leases=(lost,)), messages.HeartbeatReply)
    assert reply.revoked == (lost,)


def test_only_the_holder_can_give_a_lease_back() -> None:
    desk = Desk()
    lease = desk.lease().leases[0].lease
    desk.reply("verifier", messages.ReturnLease(lease=lease), messages.Ack)
    assert desk.engine.ledger.counts.leased == 1
    desk.reply("actor", messages.ReturnLease(lease=lease, error="oom"), messages.Ack)
    assert desk.engine.ledger.counts.leased == 0
    assert desk.engine.ledger.groups[0].errors == ("index 0, actor: oom",)


def test_an_actor_that_proved_newer_weights_while_it_waited_is_leased_under_those() -> None:
    desk = Desk()
    desk.engine.ledger.state.policy_step = 3
    desk.reply("learner", _publish(3), messages.Ack, b"manifest")
    stale = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=1.0)
    assert desk.ask("actor", stale) is None
    proof = messages.ReportWeights(version=version(3), proven=True)
    desk.reply("actor", proof, messages.Ack)
    leases = desk.reply("actor", stale, messages.PromptLeases).leases
    assert desk.engine.ledger.groups[leases[0].lease.group_id].deadline_step == 3


def test_announced_weights_are_told_once_to_whoever_does_not_know_them() -> None:
    desk = Desk()
    answer = desk.ask("actor", messages.WatchWeights(known=None, wait_s=1.0))
    assert answer is not None
    assert answer.message == messages.WeightNotice(announcement=_publish(0))
    assert list(answer.frames) == [b"manifest"]
    assert desk.ask("actor", messages.WatchWeights(known=version(0), wait_s=1.0)) is None


def test_proofs_and_failed_proofs_are_counted_and_only_proofs_change_what_is_served() -> None:
    desk = Desk()
    for proven, step in ((True, 0), (False, 1), (False, 1)):
        report = messages.ReportWeights(version=version(step), proven=proven)
        desk.reply("actor", report, messages.Ack)
    status = desk.reply("learner", messages.GetStatus(), messages.Status)
    assert (status.weight_syncs, status.weight_proofs_failed) == (1, 2)
    fleet = desk.reply("learner", messages.GetFleet(), messages.Fleet)
    assert {member.name: member.serving for member in fleet.members}["actor"] == version(0)


def test_status_says_what_live_groups_wait_for() -> None:
    desk = Desk()
    first, _ = desk.lease(max_groups=2).leases
    desk.submit(first)
    desk.handlers.note_parked({"PullGroups": 1})
    status = desk.reply("learner", messages.GetStatus(), messages.Status)
    waiting = {item.name: item.count for item in status.waiting}
    assert waiting == {"groups_generated": 1, "groups_generating": 1, "request_PullGroups": 1}
    assert status.groups.imbalance == 0


def test_a_used_up_source_with_nothing_outstanding_is_exhausted() -> None:
    desk = Desk(kind="collect", num_prompts=1)
    lease = desk.lease().leases[0]
    assert desk.ask("collector", _pull()) is None
    desk.submit(lease)
    desk.verify_all()
    groups = desk.reply("collector", _pull(), messages.Groups)
    assert (len(groups.groups), groups.exhausted) == (1, False)
    commit = messages.CommitStep(incarnation=0, policy_step=0, group_ids=(0,))
    desk.reply("collector", commit, messages.Ack)
    assert desk.reply("collector", _pull(), messages.Groups) == messages.Groups(exhausted=True)


def test_after_the_end_every_kind_of_work_is_refused_as_sealed() -> None:
    desk = Desk()
    desk.reply("learner", messages.EndRun(), messages.Ack)
    work: list[Request] = [
        messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=0.0),
        messages.LeaseRollouts(max_rollouts=1, wait_s=0.0),
        _pull(),
    ]
    for request in work:
        answer = desk.ask("actor", request)
        assert answer is not None
        assert _refusal(answer.message) == "sealed"
    resume = messages.ResumeLearner(incarnation=0, policy_step=0)
    desk.reply("learner", resume, messages.Ack)
    assert len(desk.lease().leases) == 1


def test_leases_on_a_group_that_has_ended_are_revoked() -> None:
    desk = Desk()
    lease = desk.lease().leases[0].lease
    evict = messages.EvictGroups(group_ids=(lease.group_id,), reason=EvictReason.RETIRED)
    desk.reply("learner", evict, messages.Ack)
    reply = desk.reply("actor", messages.Heartbeat(leases=(lease,)), messages.HeartbeatReply)
    assert reply.revoked == (lease,)


def test_a_broker_that_finds_its_run_sealed_holds_requests_until_a_learner_resumes() -> None:
    desk = Desk()
    desk.reply("learner", messages.EndRun(), messages.Ack)
    found = Handlers(desk.engine, desk.fleet, first_prompts(9), Identity("run", "n", 2.0, 10.0))
    request = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=5.0)
    assert found.handle(Ask("actor", request, (), 0.0)) is None
    found.handle(Ask("learner", messages.ResumeLearner(incarnation=0, policy_step=0), (), 0.0))
    assert found.handle(Ask("actor", request, (), 0.0)) is not None
