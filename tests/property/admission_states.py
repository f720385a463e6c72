"""Every reachable state of a small broker: an explicit-state model checker around the real ledger.

A state is the ledger's; an action is anything that an actor, a verifier, the learner or a failure
may do next. Two states are the same if they differ by names only (group ids, attempts): no decision
looks at those, except to order groups of one deadline, which are interchangeable. Answers have one
rollout, so that a group is as small as it can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from broker import events, resume_rules, rollout_rules, step_rules
from broker.events import AnyEvent
from broker.groups import GroupRecord, Phase, Place
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules, LedgerState
from broker.step_rules import Pull
from common.messages import CommitStep, PublishWeights, ResumeLearner, SteppedBatch
from common.types import EvictReason, Verdict, VerdictStatus, WeightVersion
from tests.builders import prompt, rollout_header, version
from tests.scripted_prompts import ScriptedPrompts

GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)
HEALTHY = frozenset({"lease", "finish", "pull", "publish", "commit"})
"""What goes on while nothing fails."""

_SOURCE = ScriptedPrompts(prompt)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LedgerState)

Key = tuple[object, ...]


@dataclass(frozen=True)
class Scope:
    """How large a world is explored."""

    rules: LedgerRules
    max_open: int
    """Groups open or handed over at once: the environment asks for no more."""
    max_unchecked: int = 0
    """Steps that no checkpoint covers; with 0 every commit comes with its checkpoint."""
    max_forks: int = 0
    late_results: bool = False
    """Whether a result may come under a lease that was lost."""


@dataclass
class Graph:
    """What was found: healthy successors by state, and states whose next action commits."""

    successors: dict[Key, list[Key]] = field(default_factory=dict)
    committing: set[Key] = field(default_factory=set)
    finished: set[Key] = field(default_factory=set)
    num_transitions: int = 0

    def stuck(self) -> set[Key]:
        """States from which no healthy actions lead to a commit."""
        sources: dict[Key, list[Key]] = {}
        for key, following in self.successors.items():
            for successor in following:
                sources.setdefault(successor, []).append(key)
        reached = set(self.committing)
        frontier = list(reached)
        while frontier:
            for key in sources.get(frontier.pop(), ()):
                if key not in reached:
                    reached.add(key)
                    frontier.append(key)
        return set(self.successors) - reached - self.finished


Check = Callable[[Ledger, str, tuple[AnyEvent, ...], Ledger], None]
"""(before, name of the action, its events, after)."""


def explore(scope: Scope, check: Check) -> Graph:
    """Visit every state that is reachable in ``scope`` and ``check`` every transition."""
    graph = Graph()
    start = Ledger(scope.rules)
    for event in _publish(start):
        start.apply(event)
    first = canonical(scope, start)
    known = {first}
    frontier = deque([(first, _encoder.encode(start.state))])
    while frontier:
        key, encoded = frontier.popleft()
        before = Ledger(scope.rules, _decoder.decode(encoded))
        if before.state.policy_step == scope.rules.num_steps:
            graph.finished.add(key)
        healthy: list[Key] = []
        for name, decided in _actions(scope, before):
            after = Ledger(scope.rules, _decoder.decode(encoded))
            for event in decided:
                after.apply(event)
                assert after.counts.imbalance == 0
            check(before, name, decided, after)
            graph.num_transitions += 1
            successor = canonical(scope, after)
            if name in HEALTHY:
                healthy.append(successor)
            if name == "commit":
                graph.committing.add(key)
            if successor not in known:
                known.add(successor)
                frontier.append((successor, _encoder.encode(after.state)))
        graph.successors[key] = healthy
    return graph


def canonical(scope: Scope, ledger: Ledger) -> Key:
    """The state without names, and without earlier leases where none of them matters."""
    state = ledger.state
    stepped = {group_id: step for step, ids in state.stepped.items() for group_id in ids}
    groups = sorted(
        _describe(scope, group, stepped.get(group.group_id, -1)) for group in state.groups.values()
    )
    newest = ledger.newest_version
    return (
        state.policy_step,
        state.checkpoint_step,
        state.timeline.incarnation,
        tuple(fork.policy_step for fork in state.timeline.forks),
        None if newest is None else str(newest),
        tuple(groups),
    )


def _describe(scope: Scope, group: GroupRecord, step: int) -> tuple[object, ...]:
    (item,) = group.indices
    spans = () if item.rollout is None else item.rollout.version_spans
    leased = str(group.versions[item.attempt]) if item.phase is Phase.GENERATING else ""
    return (
        group.place.value,
        item.phase.value,
        group.deadline_step,
        leased,
        tuple(str(span.version) for span in spans),
        item.masked_spans if group.place is not Place.OPEN else (),
        tuple(sorted({str(at) for at in group.versions.values()})) if scope.late_results else (),
        step,
    )


# --- actions --------------------------------------------------------------------------------------

_Step = tuple[str, tuple[AnyEvent, ...]]


def _actions(scope: Scope, ledger: Ledger) -> Iterator[_Step]:
    if ledger.state.policy_step < scope.rules.num_steps:
        yield from _actor_actions(scope, ledger)
        yield from _learner_actions(scope, ledger)
    yield from _failures(scope, ledger)


def _actor_actions(scope: Scope, ledger: Ledger) -> Iterator[_Step]:
    newest = ledger.newest_version
    assert newest is not None
    num_present = ledger.num_outstanding + len(ledger.state.handed_over)
    for served in range(
        max(0, newest.policy_step - scope.rules.max_policy_lag - 1), newest.policy_step + 1
    ):
        serving = version(served, newest.incarnation)
        decision = rollout_rules.lease_prompt(ledger, "actor", serving, _SOURCE)
        admits = any(isinstance(event, events.Admitted) for event in decision.events)
        if decision.events and not (admits and num_present >= scope.max_open):
            yield ("lease" if serving == newest else "lease under old weights"), decision.events
    for group in _distinct(scope, ledger, Phase.GENERATING):
        (item,) = group.indices
        leased = group.versions[item.attempt]
        yield from _finish(ledger, group, item.attempt, (leased,), "finish")
        if newest != leased and newest.incarnation == leased.incarnation:
            yield from _finish(ledger, group, item.attempt, (leased, newest), "finish in flight")
    if scope.late_results:
        for group in _distinct(scope, ledger, Phase.WAITING, Phase.GENERATING):
            for attempt, leased in group.versions.items():
                if attempt != group.indices[0].attempt or group.indices[0].phase is Phase.WAITING:
                    yield from _finish(ledger, group, attempt, (leased,), "finish late")


def _finish(
    ledger: Ledger,
    group: GroupRecord,
    attempt: int,
    versions: tuple[WeightVersion, ...],
    name: str,
) -> Iterator[_Step]:
    """Submit a rollout and, if it counts, its verdict."""
    header = rollout_header(
        group_id=group.group_id, attempt=attempt, spans=tuple(enumerate(versions))
    )
    submitted = rollout_rules.submit_rollout(ledger, header, "a").events
    if not any(isinstance(event, events.Generated) for event in submitted):
        yield name, submitted
        return
    verify = ledger.state.next_attempt
    leased = events.VerifyLeased(group_id=group.group_id, index=0, attempt=verify, owner="verifier")
    verified = events.Verified(group_id=group.group_id, index=0, attempt=verify, verdict=GRADED)
    yield name, (*submitted, leased, verified)


def _learner_actions(scope: Scope, ledger: Ledger) -> Iterator[_Step]:
    state = ledger.state
    held = tuple(state.handed_over)
    is_full = len(held) == scope.rules.groups_per_step
    if not is_full:
        decided = step_rules.hand_over(ledger, Pull(state.policy_step, 1, held)).events
        if decided:
            yield "pull", decided
    elif state.policy_step - state.checkpoint_step < scope.max_unchecked:
        yield "commit", _commit(ledger, held)
    else:
        covered = events.Trained(policy_step=state.policy_step + 1)
        yield "commit", (*_commit(ledger, held), covered)
    if held:
        gone = held[:1]
        yield "learner evicts", (events.Evicted(group_ids=gone, reason=EvictReason.NONFINITE),)
    published = _publish(ledger)
    if published:
        yield "publish", published
    if state.checkpoint_step < state.policy_step:
        decision = step_rules.commit_checkpoint(ledger, state.policy_step)
        yield "checkpoint", decision.events


def _commit(ledger: Ledger, held: tuple[int, ...]) -> tuple[AnyEvent, ...]:
    state = ledger.state
    message = CommitStep(
        incarnation=state.timeline.incarnation, policy_step=state.policy_step, group_ids=held
    )
    return step_rules.commit_step(ledger, message).events


def _publish(ledger: Ledger) -> tuple[AnyEvent, ...]:
    state = ledger.state
    current = version(state.policy_step, state.timeline.incarnation)
    message = PublishWeights(version=current, manifest_digest="0")
    return step_rules.announce(ledger, message, b"").events


def _failures(scope: Scope, ledger: Ledger) -> Iterator[_Step]:
    state = ledger.state
    for group in _distinct(scope, ledger, Phase.GENERATING):
        lost = events.Released(
            group_id=group.group_id, indices=(0,), attempt=group.indices[0].attempt, lost=True
        )
        yield "lose", (lost,)
    for group in _distinct(scope, ledger, *Phase):
        yield "dead-letter", (events.DeadLettered(group_id=group.group_id, reason="poison"),)
    records = [
        SteppedBatch(policy_step=step, group_ids=ids) for step, ids in sorted(state.stepped.items())
    ]
    yield from _resume(ledger, records, forked=False)
    if len(state.handed_over) == scope.rules.groups_per_step:
        durable = SteppedBatch(policy_step=state.policy_step, group_ids=tuple(state.handed_over))
        yield from _resume(ledger, [*records, durable], forked=False)
    if len(state.timeline.forks) < scope.max_forks:
        yield from _resume(ledger, [], forked=True)


def _resume(ledger: Ledger, records: list[SteppedBatch], *, forked: bool) -> Iterator[_Step]:
    state = ledger.state
    message = ResumeLearner(
        incarnation=state.timeline.incarnation + forked,
        policy_step=state.checkpoint_step,
        stepped=tuple(records),
        forked=forked,
    )
    decision = resume_rules.resume(ledger, message)
    if not forked:
        yield "resume", decision.events
        return
    at_fork = version(message.policy_step, message.incarnation)  # published before anything else
    announced = events.Announced(
        announcement=PublishWeights(version=at_fork, manifest_digest="0"), manifest=b""
    )
    yield "fork", (*decision.events, announced)


def _distinct(scope: Scope, ledger: Ledger, *phases: Phase) -> list[GroupRecord]:
    """One open group of each description."""
    found = {
        _describe(scope, group, -1): group
        for group in ledger.groups.values()
        if group.place is Place.OPEN and group.indices[0].phase in phases
    }
    return list(found.values())
