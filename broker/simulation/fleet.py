"""A fleet of clients around the broker without socket and disk; only the broker's time counts.

Each turn takes a fixed number of requests, so that a small fleet does not pay more a request for
turns that are nearly empty.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from broker.exchange import Ask
from broker.ledger_state import LedgerRules
from broker.simulation.agenda import Agenda
from broker.simulation.front_desk import HEARTBEAT_S, SMALL_FRAMES, FrontDesk
from common import messages
from common.messages import Lease, Reply, Request
from common.types import (
    FinishReason,
    Role,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    VersionSpan,
    WeightVersion,
)

GROUP_SIZE = 8
GROUPS_PER_ACTOR = 2
"""Groups that an actor samples at once; it asks for the next one as soon as it has room."""
LATENCY_S = 20.0
LEARNER = "learner"
TURN_MESSAGES = 64
TURN_S = 2.5
"""A turn comes so late at the latest, full or not."""
NUM_CHUNKS = 32
"""Pulls of the learner in the time of a step, at most: each chunk costs it a pass of its own."""
VERIFY_S = 0.2
VERIFIER_ROLLOUTS = 64
_WAIT_S = 10.0
_GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)


class FleetRun:
    """``num_actors`` actors, verifiers and a learner, all asking as the real clients do."""

    def __init__(self, num_actors: int, groups_per_step: int, seed: int = 0) -> None:
        self.num_actors = num_actors
        self.num_sampled = 0
        self.num_trained = 0
        self.busy_ns = 0
        self.num_messages = 0
        self.num_calls = 0
        self.counts_calls = False
        """Count function calls inside the broker: work that no noise and no cache changes."""
        self.groups_per_step = groups_per_step
        self._step_s = LATENCY_S * groups_per_step / (num_actors * GROUPS_PER_ACTOR)
        self._random = random.Random(seed)
        self._agenda = Agenda()
        rules = LedgerRules(
            group_size=GROUP_SIZE,
            groups_per_step=self.groups_per_step,
            max_policy_lag=2,
            num_steps=1 << 40,
        )
        self._desk = FrontDesk(rules)
        self._asked: list[Ask[Request]] = []
        self._version = WeightVersion(incarnation=0, policy_step=0)
        self._leases: dict[str, dict[int, tuple[int, set[int]]]] = {}
        self._held: list[int] = []
        self._answered = {
            messages.PromptLeases: self._on_prompts,
            messages.RolloutLeases: self._on_rollouts,
            messages.Groups: self._on_groups,
            messages.WeightNotice: self._on_weights,
        }

    def start(self) -> None:
        """Everybody registers, the learner publishes its first weights, everybody asks."""
        verifiers = [f"v{n}" for n in range(max(1, self.num_actors // 16))]
        actors = [f"a{n}" for n in range(self.num_actors)]
        self._register(LEARNER, Role.LEARNER)
        for name in verifiers:
            self._register(name, Role.VERIFIER)
        for name in actors:
            self._register(name, Role.ACTOR)
        self._turn()
        self._ask(LEARNER, messages.ResumeLearner(incarnation=0, policy_step=0))
        self._publish()
        for name in verifiers:
            self._ask_for_rollouts(name)
            self._agenda.after(self._random.uniform(0, HEARTBEAT_S), self._heartbeat, name)
        for name in actors:
            self._leases[name] = {}
            self._ask(name, messages.WatchWeights(known=None, wait_s=_WAIT_S))
            for _ in range(GROUPS_PER_ACTOR):
                self._ask_for_prompts(name)
            self._agenda.after(self._random.uniform(0, HEARTBEAT_S), self._heartbeat, name)
        self._pull()

    def advance(self, num_rollouts: int) -> float:
        """Go on until so many more rollouts are sampled; CPU seconds of the server for each."""
        sampled, busy_ns = self.num_sampled, self.busy_ns
        while self.num_sampled - sampled < num_rollouts:
            self._agenda.step()
        return (self.busy_ns - busy_ns) / 1e9 / (self.num_sampled - sampled)

    # --- the broker -------------------------------------------------------------------------------

    def _register(self, name: str, role: Role) -> None:
        self._ask(name, messages.Register(role=role, name=name, nonce=name, host="host", pid=1))

    def _ask(self, name: str, message: Request, frames: Sequence[memoryview] = ()) -> None:
        self._asked.append(Ask(name, message, frames, self._agenda.now_s))
        if len(self._asked) >= TURN_MESSAGES:
            self._turn()
        elif len(self._asked) == 1:
            self._agenda.after(TURN_S, self._turn)

    def _turn(self) -> None:
        """One turn of the broker over what has arrived; its replies come a moment later."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        self.num_messages += len(asked)
        if self.counts_calls:
            sys.setprofile(self._count_call)
        began_ns = time.process_time_ns()
        replies = self._desk.turn(asked, self._agenda.now_s)
        self.busy_ns += time.process_time_ns() - began_ns
        sys.setprofile(None)
        self._agenda.after(0.0, self._receive, replies)

    def _count_call(self, frame: object, event: str, argument: object) -> None:
        self.num_calls += event in ("call", "c_call")

    def _receive(self, replies: list[tuple[str, Reply]]) -> None:
        for name, message in replies:
            answered = self._answered.get(type(message))
            if answered is not None:
                answered(name, message)

    # --- actors -----------------------------------------------------------------------------------

    def _ask_for_prompts(self, name: str) -> None:
        self._ask(name, messages.LeasePrompts(serving=self._version, max_groups=1, wait_s=_WAIT_S))

    def _on_prompts(self, name: str, message: Any) -> None:
        if not message.leases:
            self._ask_for_prompts(name)
        for item in message.leases:
            lease = item.lease
            self._leases[name][lease.attempt] = (lease.group_id, set(lease.indices))
            for index in lease.indices:
                took_s = LATENCY_S * self._random.uniform(0.2, 1.8)
                rollout_id = RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt)
                self._agenda.after(took_s, self._finish, name, rollout_id, self._version)

    def _finish(self, name: str, rollout_id: RolloutId, version: WeightVersion) -> None:
        self.num_sampled += 1
        _, indices = self._leases[name][rollout_id.attempt]
        indices.discard(rollout_id.index)
        header = RolloutHeader(
            rollout_id=rollout_id,
            num_prompt_tokens=16,
            num_completion_tokens=16,
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            version_spans=(VersionSpan(start=0, version=version),),
            actor=name,
        )
        self._ask(name, messages.SubmitRollout(rollout=header), SMALL_FRAMES)
        if not indices:
            del self._leases[name][rollout_id.attempt]
            self._ask_for_prompts(name)

    def _heartbeat(self, name: str) -> None:
        leases = tuple(
            Lease(group_id=group_id, indices=tuple(sorted(indices)), attempt=attempt)
            for attempt, (group_id, indices) in self._leases.get(name, {}).items()
        )
        is_actor = name in self._leases
        serving = self._version if is_actor else None
        self._ask(name, messages.Heartbeat(leases=leases, serving=serving))
        self._agenda.after(HEARTBEAT_S, self._heartbeat, name)

    def _on_weights(self, name: str, message: Any) -> None:
        known = None if message.announcement is None else message.announcement.version
        if known is not None:
            self._ask(name, messages.ReportWeights(version=known, proven=True))
        self._ask(name, messages.WatchWeights(known=known or self._version, wait_s=_WAIT_S))

    # --- verifiers --------------------------------------------------------------------------------

    def _ask_for_rollouts(self, name: str) -> None:
        self._ask(name, messages.LeaseRollouts(max_rollouts=VERIFIER_ROLLOUTS, wait_s=_WAIT_S))

    def _on_rollouts(self, name: str, message: Any) -> None:
        for lease in message.leases:
            self._agenda.after(VERIFY_S, self._judge, name, lease)
        self._agenda.after(VERIFY_S if message.leases else 0.0, self._ask_for_rollouts, name)

    def _judge(self, name: str, lease: messages.RolloutLease) -> None:
        self._ask(
            name,
            messages.SubmitVerdict(
                rollout_id=lease.rollout.rollout_id,
                verify_attempt=lease.verify_attempt,
                verdict=_GRADED,
            ),
        )

    # --- learner ----------------------------------------------------------------------------------

    def _pull(self) -> None:
        lacking = self.groups_per_step - len(self._held)
        self._ask(
            LEARNER,
            messages.PullGroups(
                policy_step=self._version.policy_step,
                max_groups=lacking,
                wait_s=_WAIT_S,
                held=tuple(self._held),
            ),
        )

    def _on_groups(self, name: str, message: Any) -> None:
        self._held.extend(group.group_id for group in message.groups)
        if len(self._held) == self.groups_per_step:
            self._commit()
        self._agenda.after(self._step_s / NUM_CHUNKS, self._pull)

    def _commit(self) -> None:
        step = self._version.policy_step
        self._ask(
            LEARNER,
            messages.CommitStep(incarnation=0, policy_step=step, group_ids=tuple(self._held)),
        )
        self._ask(LEARNER, messages.CommitCheckpoint(policy_step=step + 1))
        self.num_trained += len(self._held) * GROUP_SIZE
        self._held = []
        self._version = WeightVersion(incarnation=0, policy_step=step + 1)
        self._publish()

    def _publish(self) -> None:
        message = messages.PublishWeights(version=self._version, manifest_digest="0")
        self._ask(LEARNER, message, [memoryview(b"{}")])
