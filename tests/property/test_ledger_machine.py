"""Every decision of the pure core in every order that Hypothesis can think of.

The clients of ``tests.simulation`` behave as clients do; here each message may come at any moment,
with any attempt, any group and any version, right or wrong. A decision may refuse, never raise
anything else, never change the ledger by itself, and never break an invariant.

``HEADRACE_MACHINE_EXAMPLES=2000`` looks longer; without it the examples are the same each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker import (
    payload_rules,
    reference_rules,
    resume_rules,
    rollout_rules,
    step_rules,
    verdict_rules,
)
from broker.engine import Engine
from broker.events import AnyEvent
from broker.group_index import GroupIndex
from broker.groups import IndexRecord, Phase, Place
from broker.leases import Held, LeaseTable, Work
from broker.ledger import Ledger
from broker.ledger_state import Decision, LedgerRules, LedgerState
from broker.snapshots import Snapshot, SnapshotPace, groups_of, unpack_snapshot
from broker.step_rules import Pull
from common.errors import RefusedError
from common.messages import (
    CommitStep,
    Lease,
    PublishWeights,
    ReportWeights,
    ResumeLearner,
    SteppedBatch,
)
from common.types import (
    EvictReason,
    Prompt,
    ReferenceHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    WeightVersion,
)
from tests.builders import rollout_header, version
from tests.scripted_prompts import ScriptedPrompts
from tests.unit.broker.ledger_driver import Payloads

_T = TypeVar("_T")

EXAMPLES = int(os.environ.get("HEADRACE_MACHINE_EXAMPLES", "0"))
LEASE_S = 10.0
OWNERS = ("a", "b", "c")
PROMPTS = ScriptedPrompts(lambda cursor: Prompt(prompt_id=f"p{cursor}", text="1", task="t"))

encode = msgspec.msgpack.encode
owners = st.sampled_from(OWNERS)
small = st.integers(0, 7)
_RARELY = st.sampled_from([False, False, False, True])
verdicts = st.sampled_from(
    [
        Verdict(status=VerdictStatus.GRADED, reward=1.0),
        Verdict(status=VerdictStatus.GRADED, reward=0.0),
        Verdict(status=VerdictStatus.LIMIT_EXCEEDED, reward=0.0),
        Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died"),
        Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason="no gold"),
    ]
)


class WatchedLedger(Ledger):
    """A ledger that looks at what each event changes."""

    def apply(self, event: AnyEvent) -> None:
        """See :meth:`Ledger.apply`."""
        named = groups_of(event)
        others = {key: encode(group) for key, group in self.groups.items() if key not in named}
        super().apply(event)
        for key, before in others.items():
            group = self.groups.get(key)
            assert group is None or encode(group) == before, f"{event} changed group {key}"


class LedgerMachine(RuleBasedStateMachine):
    """One ledger with its leases; ``granted`` are all attempts that anybody was ever given."""

    @initialize(
        lag=st.integers(0, 3),
        group_size=st.integers(1, 3),
        groups_per_step=st.integers(1, 3),
        kind=st.sampled_from(["train", "train", "train", "collect"]),
        staleness=st.sampled_from(["wait", "wait", "mask_tokens", "drop_group"]),
        dynamic_sampling=st.booleans(),
        has_verifier_reference=st.booleans(),
    )
    def start(self, lag: int, **rules: object) -> None:
        self.ledger_rules = LedgerRules(
            max_policy_lag=lag,
            num_steps=8,
            max_outstanding_groups=5,
            **rules,  # type: ignore[arg-type] # drawn
        )
        self.now_s = 0.0
        self.history: list[AnyEvent] = []
        self.granted: list[Lease] = []
        self.verifying: list[tuple[RolloutId, int]] = []
        self.wanted: dict[int, WeightVersion | None] = {}
        self.verdicts: dict[RolloutId, Verdict] = {}
        self.has_forked = False
        self.parts: list[bytes] = []
        ledger = WatchedLedger(self.ledger_rules)
        self.engine = Engine(ledger, LeaseTable(LEASE_S), Payloads(), 0.0)
        self.decide(lambda: step_rules.announce(self.ledger, _publish(version(0)), b""))

    @property
    def ledger(self) -> Ledger:
        return self.engine.ledger

    def decide(self, decision: Callable[[], Decision[_T]]) -> _T | None:
        """Apply what was decided; None when it was refused."""
        before = encode(self.ledger.state)
        try:
            decided = decision()
        except RefusedError:
            decided = None
        assert encode(self.ledger.state) == before, "deciding changed the ledger"
        if decided is None:
            return None
        for event in decided.events:
            self.engine.do(Decision((event,), None), self.now_s)
            assert self.ledger.counts.imbalance == 0, event
        self._remember()
        return decided.outcome

    def _remember(self) -> None:
        self.history.extend(self.engine.events)
        self.engine.events = []

    # --- actors -----------------------------------------------------------------------------------

    @rule(owner=owners, step=small, incarnation=st.integers(0, 2), is_newest=st.booleans())
    def lease_prompt(self, owner: str, step: int, incarnation: int, is_newest: bool) -> None:
        newest = self.ledger.newest_version
        serving = newest if is_newest and newest else version(step, incarnation)
        leased = self.decide(
            lambda: rollout_rules.lease_prompt(self.ledger, owner, serving, PROMPTS, OWNERS)
        )
        if leased is not None:
            assert all(leased.lease.attempt != known.attempt for known in self.granted)
            self.granted.append(leased.lease)

    @rule(
        data=st.data(),
        content=st.sampled_from(["x", "x", "x", "y"]),
        oldest=st.sampled_from([0, 0, 0, 1, 2, 5]),
        store=st.sampled_from(["", "", "store"]),
        is_made_up=st.integers(0, 9).map(lambda n: n == 0),
    )
    def submit_rollout(
        self, data: st.DataObject, content: str, oldest: int, store: str, is_made_up: bool
    ) -> None:
        rollout_id = self._rollout_id(data, is_made_up)
        group = self.ledger.groups.get(rollout_id.group_id)
        leased = group.versions.get(rollout_id.attempt) if group else None
        at = leased or version(0)
        spans = ((0, version(max(at.policy_step - oldest, 0), at.incarnation)),)
        header = rollout_header(
            group_id=rollout_id.group_id,
            index=rollout_id.index,
            attempt=rollout_id.attempt,
            spans=spans,
        )
        header = msgspec.structs.replace(header, store=store)
        first = {} if group is None else dict(enumerate(item.rollout for item in group.indices))
        outcome = self.decide(lambda: rollout_rules.submit_rollout(self.ledger, header, content))
        before = first.get(rollout_id.index)
        if outcome == "accepted" and before is not None:
            assert before.rollout_id == rollout_id, "a second result took the place of the first"

    def _rollout_id(self, data: st.DataObject, is_made_up: bool) -> RolloutId:
        if is_made_up or not self.granted:
            number = st.integers(0, 20)
            return RolloutId(
                group_id=data.draw(number), index=data.draw(small), attempt=data.draw(number)
            )
        lease = data.draw(st.sampled_from(self.granted[-12:]))
        index = data.draw(st.sampled_from(lease.indices))
        return RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt)

    @rule(data=st.data(), lost=st.booleans(), error=st.sampled_from(["", "", "engine error"]))
    def release_prompt(self, data: st.DataObject, lost: bool, error: str) -> None:
        if self.granted:
            lease = data.draw(st.sampled_from(self.granted[-12:]))
            self.decide(
                lambda: rollout_rules.release_prompt(self.ledger, lease, lost=lost, error=error)
            )

    # --- verifiers --------------------------------------------------------------------------------

    @rule(owner=owners)
    def lease_rollout(self, owner: str) -> None:
        leased = self.decide(lambda: verdict_rules.lease_rollout(self.ledger, owner, OWNERS))
        if leased is not None:
            attempt = leased.verify_attempt
            assert all(attempt != known for _, known in self.verifying)
            self.verifying.append((leased.rollout.rollout_id, attempt))
            self.wanted[attempt] = leased.reference_version
            assert leased.reference_version == self.ledger.state.reference
            assert leased.verdict == self.verdicts.get(leased.rollout.rollout_id)

    @rule(data=st.data(), verdict=verdicts, brings=st.sampled_from(["", "wanted", "wanted", "any"]))
    def submit_verdict(self, data: st.DataObject, verdict: Verdict, brings: str) -> None:
        if not self.verifying:
            return
        rollout_id, attempt = data.draw(st.sampled_from(self.verifying[-12:]))
        newer = self._newer_verification(rollout_id, attempt)
        reference = self.wanted.get(attempt) if brings == "wanted" else None
        if brings == "any":
            reference = version(data.draw(small))
        self._submit_verdict(rollout_id, attempt, verdict, reference)
        if newer is not None and verdict.status is VerdictStatus.INFRA_ERROR:
            assert newer.phase is Phase.VERIFYING, "an old lease ended a newer one"

    def _submit_verdict(
        self,
        rollout_id: RolloutId,
        attempt: int,
        verdict: Verdict,
        reference: WeightVersion | None,
    ) -> None:
        header = None
        if reference is not None:
            header = ReferenceHeader(reference_version=reference, num_tokens=5)
        self.decide(
            lambda: verdict_rules.submit_verdict(self.ledger, rollout_id, attempt, verdict, header)
        )

    @rule(step=small, incarnation=st.integers(0, 1))
    def set_reference(self, step: int, incarnation: int) -> None:
        at = version(step, incarnation)
        self.decide(lambda: reference_rules.set_reference(self.ledger, at))

    def _newer_verification(self, rollout_id: RolloutId, attempt: int) -> IndexRecord | None:
        """Where a rollout is being verified under another attempt."""
        group = self.ledger.groups.get(rollout_id.group_id)
        if group is None:
            return None
        item = group.indices[rollout_id.index]
        is_newer = item.phase is Phase.VERIFYING and item.verify_attempt != attempt
        return item if is_newer else None

    @rule(data=st.data(), lost=st.booleans(), error=st.sampled_from(["", "wedged"]))
    def release_rollout(self, data: st.DataObject, lost: bool, error: str) -> None:
        if self.verifying:
            rollout_id, attempt = data.draw(st.sampled_from(self.verifying[-12:]))
            group_id, index = rollout_id.group_id, rollout_id.index
            self.decide(
                lambda: verdict_rules.release_rollout(
                    self.ledger, group_id, index, attempt, lost=lost, error=error
                )
            )

    @rule(stages=st.integers(1, 5), share=st.sampled_from([1.0, 1.0, 0.5]))
    def work_goes_on(self, stages: int, share: float) -> None:
        """As in fair weather, up to some stage: without it no run would ever get far."""
        work = (self._lease_all, self._generate, self._verify_all, self._fill_batch, self._step)
        for stage in work[:stages]:
            stage(share)

    def _lease_all(self, share: float) -> None:
        newest = self.ledger.newest_version
        while newest is not None:
            leased = self.decide(
                lambda: rollout_rules.lease_prompt(self.ledger, "d", newest, PROMPTS)
            )
            if leased is None:
                break
            self.granted.append(leased.lease)

    def _generate(self, share: float) -> None:
        for lease in self.granted[-int(1 + share * len(self.granted)) :]:
            for index in lease.indices:
                self._finish(lease, index)

    def _verify_all(self, share: float) -> None:
        for _ in range(int(1 + share * 20)):
            leased = self.decide(lambda: verdict_rules.lease_rollout(self.ledger, "d"))
            if leased is None:
                break
            rollout_id, attempt = leased.rollout.rollout_id, leased.verify_attempt
            self.verifying.append((rollout_id, attempt))
            self.wanted[attempt] = leased.reference_version
            verdict = Verdict(status=VerdictStatus.GRADED, reward=float(attempt % 2))
            self._submit_verdict(rollout_id, attempt, verdict, leased.reference_version)

    def _fill_batch(self, share: float) -> None:
        state = self.ledger.state
        pull = Pull(state.policy_step, self.ledger_rules.groups_per_step, tuple(state.handed_over))
        self.decide(lambda: step_rules.hand_over(self.ledger, pull))

    def _step(self, share: float) -> None:
        state = self.ledger.state
        if self.ledger.is_train and len(state.handed_over) < self.ledger_rules.groups_per_step:
            return
        if state.handed_over and state.policy_step < self.ledger_rules.num_steps:
            self._commit(state.policy_step, tuple(state.handed_over))
            newest = version(self.ledger.state.policy_step, state.timeline.incarnation)
            self.decide(lambda: step_rules.announce(self.ledger, _publish(newest), b""))

    def _finish(self, lease: Lease, index: int) -> None:
        group = self.ledger.groups.get(lease.group_id)
        if group is None or group.indices[index].phase is not Phase.GENERATING:
            return
        if group.indices[index].attempt != lease.attempt:
            return
        header = rollout_header(
            group_id=lease.group_id,
            index=index,
            attempt=lease.attempt,
            spans=((0, group.versions[lease.attempt]),),
        )
        self.decide(lambda: rollout_rules.submit_rollout(self.ledger, header, "x"))

    # --- the consumer -----------------------------------------------------------------------------

    @rule(max_groups=st.integers(1, 4), says_held=st.booleans(), forgets=st.integers(0, 3))
    def hand_over(self, max_groups: int, says_held: bool, forgets: int) -> None:
        handed_over = list(self.ledger.state.handed_over)
        held = tuple(handed_over[: len(handed_over) - forgets]) if says_held else None
        pull = Pull(self.ledger.state.policy_step, max_groups, held)
        groups = self.decide(lambda: step_rules.hand_over(self.ledger, pull))
        if groups is not None:
            assert len(groups.groups) <= max_groups
            assert {g.group_id for g in groups.groups} <= set(self.ledger.state.handed_over)
            fresh = [g for g in groups.groups if g.group_id not in handed_over]
            brought = {item.reference_version for g in fresh for item in g.rollouts}
            wanted = self.ledger.state.reference
            assert wanted is None or brought <= {wanted}

    @rule(is_whole=st.integers(0, 5).map(lambda n: n > 0))
    def commit_step(self, is_whole: bool) -> None:
        state = self.ledger.state
        group_ids = tuple(state.handed_over if is_whole else state.handed_over[1:])
        full = len(group_ids) == self.ledger_rules.groups_per_step
        if group_ids and (full or not self.ledger.is_train):
            self._commit(state.policy_step, group_ids)

    @rule(policy_step=small, group_ids=st.lists(small, max_size=3))
    def commit_anything_known(self, policy_step: int, group_ids: list[int]) -> None:
        """A step that is committed already changes nothing, whatever it is said to hold."""
        if self.ledger.is_train and policy_step < self.ledger.state.policy_step:
            before = len(self.history)
            self._commit(policy_step, tuple(group_ids))
            assert len(self.history) == before

    def _commit(self, policy_step: int, group_ids: tuple[int, ...]) -> None:
        commit = CommitStep(
            incarnation=self.ledger.state.timeline.incarnation,
            policy_step=policy_step,
            group_ids=group_ids,
        )
        self.decide(lambda: step_rules.commit_step(self.ledger, commit))

    @rule(policy_step=small)
    def commit_checkpoint(self, policy_step: int) -> None:
        self.decide(lambda: step_rules.commit_checkpoint(self.ledger, policy_step))

    @rule(data=st.data(), forked=_RARELY, is_ahead=_RARELY)
    @precondition(lambda self: self.ledger.is_train)
    def resume(self, data: st.DataObject, forked: bool, is_ahead: bool) -> None:
        """A learner restarts at a checkpoint and replays a prefix of what followed, or forks."""
        state = self.ledger.state
        steps = sorted(state.stepped)
        checkpoint = data.draw(st.sampled_from([state.checkpoint_step, *steps]))
        replayed = [step for step in steps if step >= checkpoint]
        is_fork = forked or is_ahead
        if is_fork:
            replayed = []
            self.has_forked = True
        incarnation = state.timeline.incarnation + is_fork
        batches = [SteppedBatch(policy_step=k, group_ids=state.stepped[k]) for k in replayed]
        message = ResumeLearner(
            incarnation=incarnation, policy_step=checkpoint, stepped=tuple(batches), forked=forked
        )
        self.decide(lambda: resume_rules.resume(self.ledger, message))

    @rule(group_ids=st.lists(st.integers(0, 12), max_size=3))
    def evict(self, group_ids: list[int]) -> None:
        reason = EvictReason.ZERO_ADVANTAGE
        self.decide(lambda: step_rules.evict_groups(self.ledger, group_ids, reason))

    @rule(step=small, incarnation=st.integers(0, 2), is_newest=st.booleans())
    def announce(self, step: int, incarnation: int, is_newest: bool) -> None:
        state = self.ledger.state
        newest = version(state.policy_step, state.timeline.incarnation)
        named = version(min(step, state.policy_step), incarnation)
        message = _publish(newest if is_newest else named)
        self.decide(lambda: step_rules.announce(self.ledger, message, b""))

    @rule(proven=st.booleans())
    def report_weights(self, proven: bool) -> None:
        message = ReportWeights(version=version(0), proven=proven)
        self.decide(lambda: step_rules.report_weights(message))

    @rule(nonce=st.sampled_from(["n1", "n2"]))
    @precondition(lambda self: not self.ledger.is_train)
    def start_collector(self, nonce: str) -> None:
        self.decide(lambda: step_rules.start_collector(self.ledger, nonce))

    @rule(number=st.integers(0, 20))
    def end_run(self, number: int) -> None:
        if number == 20:
            self.decide(lambda: step_rules.end_run(self.ledger))

    @rule(limit_s=st.just(60.0), group_id=st.integers(0, 30))
    def give_up(self, limit_s: float, group_id: int) -> None:
        self.decide(lambda: rollout_rules.give_up(self.ledger, group_id, limit_s))

    @rule(data=st.data(), is_server=st.booleans())
    def lose_arrays(self, data: st.DataObject, is_server: bool) -> None:
        if is_server:
            self.decide(lambda: payload_rules.lose_server(self.ledger, "store"))
        elif self.verifying:
            lost = data.draw(st.lists(st.sampled_from(self.verifying[-12:]), max_size=2))
            rollout_ids = [rollout_id for rollout_id, _ in lost]
            self.decide(lambda: payload_rules.report_lost(self.ledger, rollout_ids))

    # --- time and restarts ------------------------------------------------------------------------

    @rule(seconds=st.floats(0.0, LEASE_S), heartbeat_of=st.sampled_from([None, *OWNERS]))
    def time_passes(self, seconds: float, heartbeat_of: str | None) -> None:
        self.now_s += seconds
        if heartbeat_of is not None:
            self.engine.leases.renew(heartbeat_of, self.granted, self.now_s)
        for held in self.engine.leases.take_expired(self.now_s):
            self.engine.give_back(held, self.now_s, lost=True)
        self._remember()

    @rule(owner=owners)
    def owner_restarts(self, owner: str) -> None:
        for held in self.engine.leases.take_owned(owner):
            self.engine.give_back(held, self.now_s, lost=True)
        self._remember()

    @rule(data=st.data())
    def broker_restarts(self, data: st.DataObject) -> None:
        """A snapshot anywhere and the events after it lead to the same state."""
        cut = data.draw(st.integers(0, len(self.history)))
        early = Ledger.replay(self.ledger_rules, None, self.history[:cut])
        snapshot = msgspec.msgpack.decode(encode(early.state), type=LedgerState)
        replayed = WatchedLedger.replay(self.ledger_rules, snapshot, self.history[cut:])
        assert replayed.state == self.ledger.state
        assert replayed.counts == self.ledger.counts
        self.engine = Engine(replayed, LeaseTable(LEASE_S), self.engine.payloads, self.now_s)

    @rule(num_rollouts=st.integers(1, 4))
    def take_a_slice_of_a_snapshot(self, num_rollouts: int) -> None:
        """Whatever happens between its slices, it is the state as it was at its beginning."""
        if self.engine.snapshot is None:
            self.engine.snapshot = Snapshot(len(self.history), self.ledger.state)
            self.parts = []
        snapshot = self.engine.snapshot
        self.parts.append(snapshot.next_part(SnapshotPace(slice_rollouts=num_rollouts)))
        if snapshot.is_done:
            self.engine.snapshot = None
            number, state = unpack_snapshot(self.parts)
            begun = Ledger.replay(self.ledger_rules, None, self.history[:number])
            assert state == begun.state
            assert list(state.groups) == list(begun.groups), "in the order of admission"

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def groups_are_conserved(self) -> None:
        counts = self.ledger.counts
        leased = sum(group.is_leased for group in self.ledger.groups.values())
        assert counts.imbalance == 0
        assert (counts.leased, counts.pending) == (leased, len(self.ledger.groups) - leased)

    @invariant()
    def the_index_is_what_it_would_be_if_filed_anew(self) -> None:
        fresh = GroupIndex()
        for group in self.ledger.groups.values():
            fresh.file(group)
        index = self.ledger.index
        assert index.num_by_deadline == fresh.num_by_deadline
        assert (index.num_leased, index.num_pending) == (fresh.num_leased, fresh.num_pending)
        for name in ("waiting", "generated", "verified"):
            assert set(getattr(index, name)) == set(getattr(fresh, name)), name

    @invariant()
    def every_open_group_has_a_place_in_a_batch_before_its_deadline(self) -> None:
        if self.ledger.is_train and self.ledger_rules.staleness == "wait":
            assert self.ledger.window().holds(), self.ledger.window()

    @invariant()
    def a_broker_that_starts_again_under_the_same_rules_changes_nothing(self) -> None:
        assert not resume_rules.adopt_rules(self.ledger).events

    @invariant()
    def nothing_goes_stale_unless_the_learner_forked(self) -> None:
        if self.ledger_rules.staleness == "wait" and not self.has_forked:
            assert EvictReason.STALE not in self.ledger.state.num_evicted

    @invariant()
    def the_consumer_holds_what_its_lists_say(self) -> None:
        state = self.ledger.state
        stepped = [group for members in state.stepped.values() for group in members]
        listed = [*state.handed_over, *stepped]
        assert len(listed) == len(set(listed)), "a group is in two batches"
        placed = {g.group_id for g in self.ledger.groups.values() if g.place is not Place.OPEN}
        assert placed == set(listed)

    @invariant()
    def an_open_group_is_verified_exactly_with_the_reference_of_now(self) -> None:
        wanted = self.ledger.state.reference
        for group in self.ledger.groups.values():
            if group.place is not Place.OPEN:
                assert group.is_verified
                continue
            for index, item in enumerate(group.indices):
                has_it = wanted is None or group.references.get(index) == wanted
                if item.phase is Phase.VERIFIED:
                    assert item.verdict is not None
                    assert has_it
                elif item.phase is Phase.GENERATED and item.verdict is not None:
                    assert not has_it

    @invariant()
    def a_verdict_stands_as_long_as_its_rollout(self) -> None:
        for group in self.ledger.groups.values():
            for item in group.indices:
                if item.verdict is not None and item.rollout is not None:
                    rollout_id = item.rollout.rollout_id
                    assert self.verdicts.setdefault(rollout_id, item.verdict) == item.verdict

    @invariant()
    def a_lease_is_in_force_exactly_while_its_index_is_worked_on(self) -> None:
        working = set()
        for group in self.ledger.groups.values():
            for index, item in enumerate(group.indices):
                if item.phase is Phase.GENERATING:
                    working.add((item.attempt, index, item.owner, Work.GENERATE))
                elif item.phase is Phase.VERIFYING:
                    working.add((item.verify_attempt, index, item.owner, Work.VERIFY))
        assert working == {
            (held.lease.attempt, index, held.owner, held.work)
            for held in _leases_of(self.engine.leases, self.ledger.state.next_attempt)
            for index in held.lease.indices
        }


def _leases_of(table: LeaseTable, next_attempt: int) -> list[Held]:
    held = (table.get(attempt) for attempt in range(next_attempt))
    return [item for item in held if item is not None]


def _publish(at: WeightVersion) -> PublishWeights:
    return PublishWeights(version=at, manifest_digest="0")


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=EXAMPLES or 60,
    stateful_step_count=80,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
)
