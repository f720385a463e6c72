"""Judgements and weights -> one verdict.

The total is the weighted sum of the terms that ``[verifier].rewards`` names: R1-Zero's rule-based
reward is accuracy + format with equal weights (Nature 645, equation 4). Every component stands in
the verdict beside its weight, so the sum can be checked by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from common.config import RewardWeight
from common.errors import ConfigError
from common.types import RewardComponent, Verdict, VerdictStatus

LIMIT_EXCEEDED_VALUE = 0.0
"""Value of every component of an answer that could not be judged within the limits.

The answer is at fault, not the machine: a policy must not gain by hanging its judge.
"""

REWARD_TERMS = ("accuracy", "format")
DEFAULT_FORMAT_JSON = '{"template":"r1-zero"}'


def check_rewards(rewards: Sequence[RewardWeight]) -> None:
    """Raise :class:`ConfigError` for a term that no verifier provides."""
    for term in rewards:
        if term.name not in REWARD_TERMS:
            raise ConfigError(
                f"verifier.rewards must name {' or '.join(REWARD_TERMS)}, got {term.name!r} "
                "(remove the term)"
            )


def plan_job(
    completion: str,
    kind: str,
    reference_json: str,
    rewards: Sequence[RewardWeight],
    *,
    format_json: str = DEFAULT_FORMAT_JSON,
) -> VerifyJob:
    """The checks that the reward terms need: ``accuracy`` asks the verifier of the task's kind."""
    checks = tuple(
        Check(kind="format", reference_json=format_json)
        if term.name == "format"
        else Check(kind=kind, reference_json=reference_json)
        for term in rewards
    )
    return VerifyJob(completion=completion, checks=checks)


def compose_verdict(rewards: Sequence[RewardWeight], reply: JobReply) -> Verdict:
    """Verdict over the terms, in order: sum of weight x value when every term was judged.

    ``bad-input`` of any term is the verdict's status; otherwise ``wrong-format`` when any term
    found the required form missing. Failures of the child carry no reward, except
    ``limit-exceeded``, where every component is :data:`LIMIT_EXCEEDED_VALUE`.
    """
    if reply.failure is VerdictStatus.LIMIT_EXCEEDED:
        values = [LIMIT_EXCEEDED_VALUE] * len(rewards)
        return _judged(rewards, values, VerdictStatus.LIMIT_EXCEEDED, reply.reason)
    if reply.failure is not None:
        return Verdict(status=reply.failure, reward=None, reason=reply.reason)
    unjudged = [item for item in reply.judgements if item.value is None]
    if unjudged:
        return Verdict(
            status=VerdictStatus.BAD_INPUT, reward=None, reason=_joined_reasons(unjudged)
        )
    statuses = {item.status for item in reply.judgements}
    wrong_format = VerdictStatus.WRONG_FORMAT in statuses
    status = VerdictStatus.WRONG_FORMAT if wrong_format else VerdictStatus.GRADED
    values = [item.value or 0.0 for item in reply.judgements]
    return _judged(rewards, values, status, _joined_reasons(reply.judgements))


def _judged(
    rewards: Sequence[RewardWeight], values: Sequence[float], status: VerdictStatus, reason: str
) -> Verdict:
    components = tuple(
        RewardComponent(name=term.name, value=value, weight=term.weight)
        for term, value in zip(rewards, values, strict=True)
    )
    total = sum(part.weight * part.value for part in components)
    return Verdict(status=status, reward=total, components=components, reason=reason)


def _joined_reasons(judgements: Sequence[Judgement]) -> str:
    return "; ".join(dict.fromkeys(item.reason for item in judgements if item.reason))[:4096]
