"""What flows between the processes: prompts, rollouts, verdicts, verified groups.

All records are frozen msgspec Structs encoded as MessagePack arrays, so a message has no map keys
to repeat or to invent. New fields go last and have defaults. Per-token data never stands in a
record: it travels beside it as raw little-endian arrays (see ``common.codec``).
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]
Reason = Annotated[str, msgspec.Meta(max_length=4096)]
FiniteFloat = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class Record(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """Base of everything that crosses a socket."""


class Role(enum.Enum):
    """The kinds of process that speak to the broker."""

    ACTOR = "actor"
    VERIFIER = "verifier"
    LEARNER = "learner"
    COLLECTOR = "collector"
    SUPERVISOR = "supervisor"


class WeightVersion(Record, frozen=True, order=True):
    """Identity of a set of weights: ``incarnation.policy_step``; never used twice.

    ``policy_step`` counts the training batches that the weights have seen. ``incarnation`` rises
    when a restarted learner could not reproduce weights that it had published.
    """

    incarnation: Count
    policy_step: Count

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.policy_step}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """Read ``"incarnation.policy_step"``; raises ``ValueError`` on anything else."""
        incarnation, _, policy_step = text.partition(".")
        return cls(incarnation=int(incarnation), policy_step=int(policy_step))


class VersionSpan(Record, frozen=True):
    """Completion tokens from ``start`` up to the next span were sampled under ``version``."""

    start: Count
    version: WeightVersion


class Prompt(Record, frozen=True):
    """One task to answer.

    ``reference_json`` holds the fields of the task's own kind as JSON text, for ``arithmetic``
    ``{"gold": ...}``; only the verifier of that kind reads it.
    """

    prompt_id: Name
    text: Text
    task: Name
    reference_json: Text = "{}"


class RolloutId(Record, frozen=True, order=True):
    """A sampled answer inside a run: (group, index in the group, lease attempt)."""

    group_id: Count
    index: Annotated[int, msgspec.Meta(ge=0, lt=4096)]
    attempt: Count


class FinishReason(enum.Enum):
    """Why sampling stopped."""

    STOP = "stop"
    LENGTH = "length"


class RolloutHeader(Record, frozen=True):
    """A rollout without its arrays.

    Frames that follow, in order: prompt token ids ``int32[num_prompt_tokens]``, completion token
    ids ``int32[num_completion_tokens]``, behavior log-probabilities
    ``float32[num_completion_tokens]`` in nats, under the distribution that was really sampled
    (temperature applied).
    """

    rollout_id: RolloutId
    num_prompt_tokens: Count
    num_completion_tokens: Count
    finish_reason: FinishReason
    temperature: FiniteFloat
    version_spans: Annotated[tuple[VersionSpan, ...], msgspec.Meta(min_length=1, max_length=4096)]
    actor: Name
    generation_s: FiniteFloat = 0.0

    @property
    def oldest_version(self) -> WeightVersion:
        """The version that sampled the oldest token."""
        return min(span.version for span in self.version_spans)

    @property
    def newest_version(self) -> WeightVersion:
        """The version that sampled the newest token."""
        return max(span.version for span in self.version_spans)

    def frame_bytes(self) -> tuple[int, int, int]:
        """Exact byte lengths of the three frames that must follow."""
        return (
            4 * self.num_prompt_tokens,
            4 * self.num_completion_tokens,
            4 * self.num_completion_tokens,
        )


class VerdictStatus(enum.Enum):
    """How a verification ended. Only the first three were judged and carry a reward."""

    GRADED = "graded"
    WRONG_FORMAT = "wrong-format"
    LIMIT_EXCEEDED = "limit-exceeded"
    BAD_INPUT = "bad-input"
    INFRA_ERROR = "infra-error"

    @property
    def is_judged(self) -> bool:
        """True where the answer itself was judged, so that a reward exists."""
        return self in (
            VerdictStatus.GRADED,
            VerdictStatus.WRONG_FORMAT,
            VerdictStatus.LIMIT_EXCEEDED,
        )


class RewardComponent(Record, frozen=True):
    """One named part of a reward, before weighting."""

    name: Name
    value: FiniteFloat
    weight: FiniteFloat = 1.0


class Verdict(Record, frozen=True):
    """The outcome of verifying one rollout.

    ``reward`` is None exactly when the answer was not judged: an infrastructure failure is never a
    reward of 0.
    """

    status: VerdictStatus
    reward: FiniteFloat | None
    components: Annotated[tuple[RewardComponent, ...], msgspec.Meta(max_length=64)] = ()
    reason: Reason = ""

    def __post_init__(self) -> None:
        if self.status.is_judged != (self.reward is not None):
            raise ValueError(
                f"a verdict has a reward exactly when it is judged, got status "
                f"{self.status.value!r} with reward {self.reward!r}"
            )

    def component(self, name: str) -> float | None:
        """Value of the component called ``name``, or None."""
        return next((part.value for part in self.components if part.name == name), None)


class VerifiedRollout(Record, frozen=True):
    """A rollout header with its verdict, as the learner plans with it."""

    rollout: RolloutHeader
    verdict: Verdict


class VerifiedGroup(Record, frozen=True):
    """All rollouts of one prompt, verified: the unit of training."""

    group_id: Count
    prompt: Prompt
    deadline_step: Count
    rollouts: Annotated[tuple[VerifiedRollout, ...], msgspec.Meta(min_length=1, max_length=4096)]

    @property
    def oldest_version(self) -> WeightVersion:
        """The version that sampled the group's oldest token."""
        return min(item.rollout.oldest_version for item in self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens over all rollouts."""
        return sum(
            item.rollout.num_prompt_tokens + item.rollout.num_completion_tokens
            for item in self.rollouts
        )


class EvictReason(enum.Enum):
    """Why a group left without being trained."""

    STALE = "stale"
    ZERO_ADVANTAGE = "zero_advantage"
    NONFINITE = "nonfinite"
    RETIRED = "retired"
    ALL_MASKED = "all_masked"
    QUARANTINED = "quarantined"
    RUN_END = "run_end"
