"""A broker in the test's own process: endless verified groups in a fixed order, and a full memory.

It keeps what the learner promises to make durable (stepped and trained groups) and hands everything
else out again after a restart, as the real one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.arrays import Float32Array, RolloutArrays
from common.codec import Buffer, Decoded
from common.errors import RefusedError
from common.messages import (
    Ack,
    AnyMessage,
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchReferences,
    FetchRollouts,
    GetStatus,
    GroupCounts,
    Groups,
    PullGroups,
    References,
    Request,
    ResumeLearner,
    Rollouts,
    SetReference,
    Status,
)
from common.types import (
    FinishReason,
    Prompt,
    ReferenceHeader,
    RewardComponent,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
    VersionSpan,
    WeightVersion,
)

Sampler = Callable[[int, int], RolloutArrays]
"""(group_id, index) -> the tokens of that rollout."""


class Killed(BaseException):
    """The learner dies here; no ``Exception``, so that nothing in the learner can survive it."""


def random_rollout(vocab_size: int, num_prompt: int = 5, max_completion: int = 12) -> Sampler:
    """Random tokens with plausible log-probabilities, a function of (group_id, index) alone."""

    def sample(group_id: int, index: int) -> RolloutArrays:
        random = np.random.default_rng((group_id, index))
        prompt = np.random.default_rng(group_id).integers(0, vocab_size, num_prompt)
        length = int(random.integers(1, max_completion + 1))
        return RolloutArrays(
            prompt_token_ids=prompt.astype(np.int32),
            completion_token_ids=random.integers(0, vocab_size, length).astype(np.int32),
            behavior_logprobs=random.normal(-np.log(vocab_size), 0.1, length)
            .clip(max=0)
            .astype(np.float32),
        )

    return sample


def reward_of(group_id: int, index: int) -> float:
    """0 or 1, mixed in every group of two or more."""
    return float((group_id + index) % 2)


ReferenceOf = Callable[[WeightVersion, RolloutArrays], Float32Array]
"""(reference policy, rollout) -> log-probabilities of its completion."""
Masks = Callable[[int, int], tuple[tuple[int, ...], tuple[int, ...]]]
"""(group_id, index) -> where the version spans of that rollout start, and which are masked."""


def nothing_masked(group_id: int, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One span, trained."""
    return (0,), ()


@dataclass
class FakeBroker:
    """Answers the learner's requests."""

    sample: Sampler
    group_size: int
    chunk_sizes: Sequence[int] = (1,)
    """Groups of one reply, taken in turn inside a step."""
    num_groups: int = 1 << 30
    lag: int = 0
    """Every group was sampled so many steps before it is pulled (never before step 0)."""
    reward: Callable[[int, int], float] = reward_of
    masks: Masks = nothing_masked
    reference: ReferenceOf | None = None
    """Computes reference log-probabilities, where verifiers do."""
    kill_at: int | None = None
    """The learner dies at this request (counted from 1), once."""
    kill_after_effect: bool = False
    """It dies when the broker has done what it asked for, before the answer arrives."""
    policy_step: int = 0
    checkpoint_step: int = 0
    incarnation: int = 0
    next_group: int = 0
    waiting: list[int] = field(default_factory=list)
    handed_over: list[int] = field(default_factory=list)
    stepped: dict[int, tuple[int, ...]] = field(default_factory=dict)
    trained: set[int] = field(default_factory=set)
    evicted: dict[int, str] = field(default_factory=dict)
    versions: dict[int, WeightVersion] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    ended: bool = False
    run_id: str = "run"
    num_events: int = 0
    """How long its journal is."""
    reference_version: WeightVersion | None = None
    """As the learner said last."""
    references: dict[int, WeightVersion] = field(default_factory=dict)
    """Those that groups were handed over with."""

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Answer as the broker would; at ``kill_at`` die instead of it."""
        dies_now = self._counts_down()
        if dies_now and not self.kill_after_effect:
            raise Killed
        self.log.append(type(message).__name__)
        answer = getattr(self, f"on_{type(message).__name__}")(message)
        reply, arrays = answer if isinstance(answer, tuple) else (answer, [])
        if dies_now:
            raise Killed
        return Decoded(1, reply, [memoryview(frame).cast("B") for frame in arrays])

    def on_PullGroups(self, message: PullGroups) -> AnyMessage:
        """The next groups in order; those that the learner does not hold come again."""
        assert message.policy_step == self.policy_step
        assert message.held is not None
        lost = [group_id for group_id in self.handed_over if group_id not in message.held]
        self.handed_over = [item for item in self.handed_over if item not in lost]
        self.waiting = lost + self.waiting
        room = self.chunk_sizes[len(message.held) % len(self.chunk_sizes)]
        taken = [self._next() for _ in range(min(room, message.max_groups)) if self._has_more()]
        self.handed_over += taken
        if self.reference_version is not None:
            self.references |= dict.fromkeys(taken, self.reference_version)
        return Groups(
            groups=tuple(self.group(item) for item in taken), exhausted=not self._has_more()
        )

    def on_DescribeGroups(self, message: DescribeGroups) -> AnyMessage:
        """Groups handed over or stepped; others are gone."""
        known = {*self.handed_over, *(item for batch in self.stepped.values() for item in batch)}
        if not known.issuperset(message.group_ids) or self.trained & {*message.group_ids}:
            raise RefusedError("gone", "ended")
        return Groups(groups=tuple(self.group(item) for item in message.group_ids))

    def on_FetchRollouts(self, message: FetchRollouts) -> tuple[AnyMessage, list[memoryview]]:
        """The arrays, in the order asked for."""
        headers, frames = [], []
        for rollout_id in message.rollout_ids:
            arrays = self.sample(rollout_id.group_id, rollout_id.index)
            headers.append(self._header(rollout_id, arrays))
            frames += arrays.frames()
        return Rollouts(rollouts=tuple(headers)), frames

    def on_SetReference(self, message: SetReference) -> AnyMessage:
        """Groups that are handed over from here on bring it; the learner holds none of them."""
        self.waiting = sorted({*self.waiting, *self.handed_over})
        self.handed_over = []
        self.reference_version = message.version
        return Ack()

    def on_FetchReferences(self, message: FetchReferences) -> tuple[AnyMessage, list[memoryview]]:
        """The log-probabilities, in the order asked for."""
        assert self.reference is not None
        headers, frames = [], []
        for rollout_id in message.rollout_ids:
            version = self.references[rollout_id.group_id]
            logprobs = self.reference(version, self.sample(rollout_id.group_id, rollout_id.index))
            headers.append(ReferenceHeader(reference_version=version, num_tokens=len(logprobs)))
            frames.append(logprobs.data)
        return References(references=tuple(headers)), frames

    def on_CommitStep(self, message: CommitStep) -> AnyMessage:
        """A step is committed once; repeating it changes nothing."""
        assert message.incarnation == self.incarnation
        if message.policy_step == self.policy_step:
            assert set(message.group_ids) == set(self.handed_over)
            self.stepped[message.policy_step] = message.group_ids
            self.handed_over = []
            self.policy_step += 1
        assert self.stepped.get(message.policy_step) == message.group_ids
        return self._noted()

    def on_CommitCheckpoint(self, message: CommitCheckpoint) -> AnyMessage:
        """Steps before it are trained and their payloads may go."""
        assert message.policy_step <= self.policy_step
        self._train_before(message.policy_step)
        return self._noted()

    def on_ResumeLearner(self, message: ResumeLearner) -> AnyMessage:
        """What no checkpoint covers and no record lists waits again, in the old order."""
        if self.num_events < message.num_journal_events:
            raise RefusedError("older_journal", "the journal is an older copy")
        if message.policy_step < self.checkpoint_step and not message.forked:
            raise RefusedError("trained", "an older checkpoint")
        if not message.forked:
            self._train_before(message.policy_step)
        listed = {item for batch in message.stepped for item in batch.group_ids}
        held = [item for batch in self.stepped.values() for item in batch] + self.handed_over
        self.waiting = sorted({*self.waiting, *held} - listed)
        self.stepped = {batch.policy_step: batch.group_ids for batch in message.stepped}
        self.handed_over = []
        self.incarnation = message.incarnation
        self.policy_step = message.policy_step + len(message.stepped)
        return self._noted()

    def on_EvictGroups(self, message: EvictGroups) -> AnyMessage:
        """Gone for a reason."""
        self.handed_over = [item for item in self.handed_over if item not in message.group_ids]
        self.evicted |= dict.fromkeys(message.group_ids, message.reason.value)
        return Ack()

    def on_GetStatus(self, message: GetStatus) -> AnyMessage:
        """How far the journal has come."""
        return Status(
            run_id=self.run_id,
            groups=GroupCounts(),
            evicted=(),
            policy_step=self.policy_step,
            incarnation=self.incarnation,
            newest_version=None,
            waiting=(),
        )

    def on_EndRun(self, message: EndRun) -> AnyMessage:
        """The run is over."""
        self.ended = True
        return Ack()

    def group(self, group_id: int) -> VerifiedGroup:
        """The verified group, as it was first handed over."""
        sampled_at = max(0, self.policy_step - self.lag)
        version = WeightVersion(incarnation=self.incarnation, policy_step=sampled_at)
        self.versions.setdefault(group_id, version)
        rollouts = []
        for index in range(self.group_size):
            rollout_id = RolloutId(group_id=group_id, index=index, attempt=1)
            header = self._header(rollout_id, self.sample(group_id, index))
            _, masked = self.masks(group_id, index)
            rollouts.append(
                VerifiedRollout(
                    rollout=header,
                    verdict=self._verdict(rollout_id),
                    masked_spans=masked,
                    reference_version=self.references.get(group_id),
                )
            )
        prompt = Prompt(prompt_id=f"p{group_id}", text="1+2=", task="arithmetic")
        return VerifiedGroup(
            group_id=group_id, prompt=prompt, deadline_step=sampled_at, rollouts=tuple(rollouts)
        )

    def _noted(self) -> Ack:
        self.num_events += 1
        return Ack(num_journal_events=self.num_events)

    def _header(self, rollout_id: RolloutId, arrays: RolloutArrays) -> RolloutHeader:
        return RolloutHeader(
            rollout_id=rollout_id,
            num_prompt_tokens=len(arrays.prompt_token_ids),
            num_completion_tokens=len(arrays.completion_token_ids),
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            version_spans=tuple(
                VersionSpan(start=start, version=self._version_of(rollout_id))
                for start in self.masks(rollout_id.group_id, rollout_id.index)[0]
            ),
            actor="actor-0",
        )

    def _version_of(self, rollout_id: RolloutId) -> WeightVersion:
        """As handed over; a rank that only fetches has its own broker, which never handed over."""
        unknown = WeightVersion(incarnation=0, policy_step=0)
        return self.versions.get(rollout_id.group_id, unknown)

    def _verdict(self, rollout_id: RolloutId) -> Verdict:
        reward = self.reward(rollout_id.group_id, rollout_id.index)
        return Verdict(
            status=VerdictStatus.GRADED,
            reward=reward,
            components=(RewardComponent(name="accuracy", value=reward),),
        )

    def _counts_down(self) -> bool:
        if self.kill_at is None:
            return False
        self.kill_at -= 1
        if self.kill_at > 0:
            return False
        self.kill_at = None
        return True

    def _train_before(self, policy_step: int) -> None:
        """A checkpoint covers these steps, whether or not the learner lived to say so."""
        self.checkpoint_step = max(self.checkpoint_step, policy_step)
        for step in [step for step in self.stepped if step < policy_step]:
            self.trained |= {*self.stepped.pop(step)}

    def _has_more(self) -> bool:
        return bool(self.waiting) or self.next_group < self.num_groups

    def _next(self) -> int:
        if self.waiting:
            return self.waiting.pop(0)
        self.next_group += 1
        return self.next_group - 1
