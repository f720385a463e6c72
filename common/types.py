"""What flows between the processes: prompts, rollouts, verdicts, verified groups.

All records are frozen msgspec Structs encoded as MessagePack arrays, so a message has no map keys
to repeat or to invent. New fields go last and have defaults. Per-token data never stands in a
record: it travels beside it as raw little-endian arrays (see ``common.codec``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Endpoint = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]
Reason = Annotated[str, msgspec.Meta(max_length=4096)]
FiniteFloat = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
MAX_EXPERTS = 1 << 15
"""Experts of a layer, at most: their numbers fit int16."""
MAX_STEPS = 4096
"""Steps of one answer that are rewarded by themselves, at most."""
SpanNumbers = Annotated[tuple[Count, ...], msgspec.Meta(max_length=4096)]


class Record(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    gc=False,  # a record is a tree, so the collector of cycles need not walk it
):
    """Base of everything that crosses a socket."""


class Role(enum.Enum):
    """The kinds of process that speak to the broker."""

    ACTOR = "actor"
    VERIFIER = "verifier"
    LEARNER = "learner"
    COLLECTOR = "collector"
    SUPERVISOR = "supervisor"
    STORE = "store"

    __hash__ = object.__hash__  # members are single objects; Enum would hash their names in Python


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


INITIAL_VERSION = WeightVersion(incarnation=0, policy_step=0)
"""The weights in the model directory."""


class VersionSpan(Record, frozen=True):
    """Completion tokens from ``start`` up to the next span were sampled under ``version``."""

    start: Count
    version: WeightVersion


class Prompt(Record, frozen=True):
    """One task to answer.

    ``reference_json`` holds the fields of the task's own kind as JSON text, for ``arithmetic``
    ``{"gold": ...}``; only the verifier of that kind reads it. ``prompt_set`` names the set that it
    was drawn from.
    """

    prompt_id: Name
    text: Text
    task: Name
    reference_json: Text = "{}"
    prompt_set: Annotated[str, msgspec.Meta(max_length=128)] = ""


class RolloutId(Record, frozen=True, order=True):
    """A sampled answer inside a run: (group, index in the group, lease attempt)."""

    group_id: Count
    index: Annotated[int, msgspec.Meta(ge=0, lt=4096)]
    attempt: Count


class FinishReason(enum.Enum):
    """Why sampling stopped."""

    STOP = "stop"
    LENGTH = "length"


class RoutingHeader(Record, frozen=True):
    """Which experts of a mixture computed the tokens of a rollout, without the array.

    The frame that follows: ``[num_tokens, num_layers, top_k]`` expert numbers, one byte each up to
    256 experts, else uint16. Its first row belongs to token ``start``, counted from the beginning
    of the prompt. All decoder layers are there; what stands for one without experts has no meaning.
    """

    start: Count
    num_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    num_layers: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    top_k: Annotated[int, msgspec.Meta(ge=1, le=256)]
    num_experts: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPERTS)]

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k must be at most {self.num_experts} experts, got {self.top_k}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the array."""
        return self.num_tokens, self.num_layers, self.top_k

    @property
    def element_bytes(self) -> int:
        """1 or 2."""
        return 1 if self.num_experts <= 256 else 2

    def frame_bytes(self) -> int:
        """Exact byte length of the frame that must follow."""
        return self.num_tokens * self.num_layers * self.top_k * self.element_bytes


class RolloutHeader(Record, frozen=True):
    """A rollout without its arrays.

    Frames that follow, in order: prompt token ids ``int32[num_prompt_tokens]``, completion token
    ids ``int32[num_completion_tokens]``, behavior log-probabilities
    ``float32[num_completion_tokens]`` in nats, under the distribution that was really sampled
    (temperature applied); with ``routing`` a fourth, see :class:`RoutingHeader`.

    ``store`` names the payload server that holds the frames, "" where they are with the broker.
    """

    rollout_id: RolloutId
    num_prompt_tokens: Count
    num_completion_tokens: Count
    finish_reason: FinishReason
    temperature: FiniteFloat
    version_spans: Annotated[tuple[VersionSpan, ...], msgspec.Meta(min_length=1, max_length=4096)]
    actor: Name
    generation_s: FiniteFloat = 0.0
    store: Annotated[str, msgspec.Meta(max_length=128)] = ""
    routing: RoutingHeader | None = None

    def __post_init__(self) -> None:
        if self.routing is not None:
            end = self.routing.start + self.routing.num_tokens
            if end > self.num_tokens:
                raise ValueError(f"routing must end by token {self.num_tokens}, got {end}")

    @property
    def num_tokens(self) -> int:
        """Prompt and completion."""
        return self.num_prompt_tokens + self.num_completion_tokens

    @property
    def num_frames(self) -> int:
        """How many frames follow."""
        return 3 if self.routing is None else 4

    @property
    def oldest_version(self) -> WeightVersion:
        """The version that sampled the oldest token."""
        return min(span.version for span in self.version_spans)

    @property
    def newest_version(self) -> WeightVersion:
        """The version that sampled the newest token."""
        return max(span.version for span in self.version_spans)

    def span_ranges(self) -> tuple[tuple[int, int], ...]:
        """First and end completion token of each version span; an end before it is no token."""
        starts = [min(span.start, self.num_completion_tokens) for span in self.version_spans]
        return tuple(zip(starts, (*starts[1:], self.num_completion_tokens), strict=True))

    def num_tokens_in(self, spans: Iterable[int]) -> int:
        """Completion tokens of the version spans with these numbers."""
        ranges = self.span_ranges()
        return sum(max(0, ranges[number][1] - ranges[number][0]) for number in spans)

    def frame_bytes(self) -> tuple[int, ...]:
        """Exact byte lengths of the frames that must follow."""
        prompt, completion = 4 * self.num_prompt_tokens, 4 * self.num_completion_tokens
        if self.routing is None:
            return prompt, completion, completion
        return prompt, completion, completion, self.routing.frame_bytes()


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
        return self in _JUDGED


_JUDGED = (VerdictStatus.GRADED, VerdictStatus.WRONG_FORMAT, VerdictStatus.LIMIT_EXCEEDED)


class RewardComponent(Record, frozen=True):
    """One named part of a reward, before weighting."""

    name: Name
    value: FiniteFloat
    weight: FiniteFloat = 1.0


class StepReward(Record, frozen=True):
    """What one step of an answer is worth by itself."""

    end: Count
    """Index of the completion token that it ends with."""
    value: FiniteFloat
    """Weight included."""


class Verdict(Record, frozen=True):
    """The outcome of verifying one rollout.

    ``reward`` is None exactly when the answer was not judged: an infrastructure failure is never a
    reward of 0. ``steps`` are the rewards of single steps, in order, where a process model scored
    them; the reward of the whole answer stands beside them.
    """

    status: VerdictStatus
    reward: FiniteFloat | None
    components: Annotated[tuple[RewardComponent, ...], msgspec.Meta(max_length=64)] = ()
    reason: Reason = ""
    steps: Annotated[tuple[StepReward, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()

    def __post_init__(self) -> None:
        if self.steps and not self.status.is_judged:
            raise ValueError(f"only a judged verdict has steps, got {self.status.value!r}")
        if self.status.is_judged != (self.reward is not None):
            raise ValueError(
                f"a verdict has a reward exactly when it is judged, got status "
                f"{self.status.value!r} with reward {self.reward!r}"
            )

    def component(self, name: str) -> float | None:
        """Value of the component called ``name``, or None."""
        return next((part.value for part in self.components if part.name == name), None)


class ReferenceHeader(Record, frozen=True):
    """Log-probabilities of one completion under the reference policy, without the array.

    The frame that follows: ``float32[num_tokens]``, one a completion token, in nats, temperature
    applied. ``reference_version`` names the weights that computed them.
    """

    reference_version: WeightVersion
    num_tokens: Count

    def frame_bytes(self) -> int:
        """Exact byte length of the frame that must follow."""
        return 4 * self.num_tokens


class VerifiedRollout(Record, frozen=True):
    """A rollout header with its verdict, as the learner plans with it.

    ``masked_spans`` numbers the version spans whose tokens are too old for the batch that the group
    was handed over for: they carry no gradient and no lag. The reward counts nevertheless.
    ``reference_version`` names the reference policy whose log-probabilities the broker keeps for
    it, None where it keeps none.
    """

    rollout: RolloutHeader
    verdict: Verdict
    masked_spans: SpanNumbers = ()
    reference_version: WeightVersion | None = None

    @property
    def trained_spans(self) -> tuple[int, ...]:
        """Numbers of the version spans that are not masked."""
        masked = frozenset(self.masked_spans)
        return tuple(n for n in range(len(self.rollout.version_spans)) if n not in masked)

    @property
    def num_trained_tokens(self) -> int:
        """Completion tokens that are not masked."""
        masked = self.rollout.num_tokens_in(self.masked_spans)
        return self.rollout.num_completion_tokens - masked


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
