"""Terms and weights -> the checks to run -> one verdict.

The total is the weighted sum of the terms of ``[verifier]`` that apply to the prompt. R1-Zero's is
accuracy + format (Nature 645, equation 4), that of R1's last stage reasoning + general + language
(equations 8 to 10), each by configuration. Every component stands in the verdict beside its weight,
so the sum can be checked by whoever reads it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence

import msgspec

from actors.verification.judgement import Check, JobReply, Judgement
from actors.verification.math.symbolic import routed
from actors.verification.shaping import cosine_reward, overlong_penalty, repetition_penalty
from common.config import RewardWeight
from common.errors import ConfigError, DataError
from common.language_tags import parse_language_tag
from common.reward_terms import (
    SHAPING_TERMS,
    TASK_TERMS,
    CosineOptions,
    LanguageOptions,
    NoOptions,
    OverlongOptions,
    RepetitionOptions,
    applies_to,
    term_options,
)
from common.task_reference import read_reference
from common.types import Prompt, RewardComponent, Verdict, VerdictStatus

LIMIT_EXCEEDED_VALUE = 0.0
"""Value of every judged component of an answer that could not be judged within the limits.

The answer is at fault, not the machine: a policy must not gain by hanging its judge.
"""


def check_rewards(terms: Sequence[RewardWeight], kinds: Collection[str]) -> None:
    """Raise :class:`ConfigError` for a term whose kind of check no verifier provides."""
    for term in terms:
        kind = term.kind or term.name
        if kind not in kinds and not _is_shaping(term) and not _is_of_task(term):
            raise ConfigError(
                f"verifier.rewards: {term.name} must be judged by a known kind of check, got "
                f"{kind!r} (known: {', '.join(sorted(kinds))})"
            )
        options = None if term.kind else term_options(term)
        if isinstance(options, LanguageOptions) and options.rivals:
            _check_rivals(options)


def _check_rivals(options: LanguageOptions) -> None:
    """Raise :class:`ConfigError` unless the target can be told from its rivals here."""
    from actors.verification.language import unidentifiable

    tags = (options.target, *options.rivals.split())
    try:
        unknown = unidentifiable(tuple(parse_language_tag(tag).language for tag in tags))
    except ModuleNotFoundError:
        raise ConfigError(
            "verifier.rewards: language: rivals need lingua, which is not installed here "
            "(pip install 'headrace[language]')"
        ) from None
    if unknown:
        raise ConfigError(
            f"verifier.rewards: language: {unknown[0]!r} cannot be told from others (remove it)"
        )


def needed_kinds(terms: Sequence[RewardWeight]) -> tuple[str, ...]:
    """Kinds of check that the terms need whatever the prompts are."""
    return tuple(
        term.kind or term.name
        for term in terms
        if not _is_shaping(term) and (term.kind or not _is_of_task(term))
    )


def terms_for(terms: Sequence[RewardWeight], prompt: Prompt) -> tuple[RewardWeight, ...]:
    """The terms that make the reward of ``prompt``, in order."""
    return tuple(term for term in terms if applies_to(term, prompt.task, prompt.prompt_set))


def needs_tokens(terms: Sequence[RewardWeight]) -> bool:
    """Whether a term is computed from the token ids of the answer."""
    return any(_is_shaping(term) for term in terms)


def plan_checks(terms: Sequence[RewardWeight], prompt: Prompt) -> tuple[Check, ...]:
    """One check for each of ``terms`` that is judged, in order; shaping needs none."""
    return tuple(routed(_check(term, prompt)) for term in terms if not _is_shaping(term))


def compose_verdict(
    terms: Sequence[RewardWeight], reply: JobReply, token_ids: Sequence[int] = ()
) -> Verdict:
    """Verdict over ``terms``, in order: sum of weight x value when every term was judged.

    ``token_ids`` of the completion, as sampled, are what shaping terms are computed from.

    ``bad-input`` of any term is the verdict's status; otherwise ``limit-exceeded`` when a limit
    cost an answer something, or ``wrong-format`` when the required form was missing. Failures of
    the machinery carry no reward, except ``limit-exceeded`` of a whole job, where every judged
    component is :data:`LIMIT_EXCEEDED_VALUE`.
    """
    if not terms:
        reason = "no term of verifier.rewards applies to this prompt's task and set"
        return Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason=reason)
    if reply.failure is VerdictStatus.LIMIT_EXCEEDED:
        values = _term_values(terms, itertools.repeat(LIMIT_EXCEEDED_VALUE), token_ids)
        return _judged(terms, values, VerdictStatus.LIMIT_EXCEEDED, reply.reason)
    if reply.failure is not None:
        return Verdict(status=reply.failure, reward=None, reason=reply.reason)
    unjudged = [item for item in reply.judgements if item.value is None]
    if unjudged:
        return Verdict(
            status=VerdictStatus.BAD_INPUT, reward=None, reason=_joined_reasons(unjudged)
        )
    statuses = {item.status for item in reply.judgements}
    gravest = (VerdictStatus.LIMIT_EXCEEDED, VerdictStatus.WRONG_FORMAT)
    status = next((item for item in gravest if item in statuses), VerdictStatus.GRADED)
    judged = (item.value or 0.0 for item in reply.judgements)
    values = _term_values(terms, judged, token_ids)
    return _judged(terms, values, status, _joined_reasons(reply.judgements))


def _check(term: RewardWeight, prompt: Prompt) -> Check:
    if term.kind:
        return Check(kind=term.kind, reference_json=_with_options(prompt.reference_json, term))
    if term.name in TASK_TERMS:
        return Check(kind=prompt.task, reference_json=prompt.reference_json)
    options = term_options(term)
    if isinstance(options, LanguageOptions):
        target = _answer_language(prompt.reference_json) or options.target
        options = msgspec.structs.replace(options, target=target)
    elif isinstance(options, NoOptions):
        return Check(kind=term.name, reference_json=prompt.reference_json)
    return Check(kind=term.name, reference_json=msgspec.json.encode(options).decode())


class _AnswerLanguage(msgspec.Struct, frozen=True):
    answer_language: str = ""


def _answer_language(reference_json: str) -> str:
    """The tag in the prompt's field ``answer_language``, empty where it has none."""
    if '"answer_language"' not in reference_json:
        return ""
    try:
        return read_reference(reference_json, _AnswerLanguage).answer_language
    except DataError:
        return "malformed"  # no tag: the check itself says so, as bad input


def _with_options(reference_json: str, term: RewardWeight) -> str:
    """The prompt's fields with the options of the term on top."""
    if not term.options:
        return reference_json
    try:
        fields = msgspec.json.decode(reference_json, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return reference_json  # the check itself says what is wrong
    return msgspec.json.encode({**fields, **term.options}).decode()


def _term_values(
    terms: Sequence[RewardWeight], judged: Iterable[float], token_ids: Sequence[int]
) -> list[float]:
    """A value for each term: the next judged one, or computed from the tokens."""
    remaining = iter(judged)
    values = [0.0 if _is_shaping(term) else next(remaining) for term in terms]
    is_right = any(
        term.name == "accuracy" and value >= 1.0 for term, value in zip(terms, values, strict=True)
    )
    return [
        _shaped(term, token_ids, is_right) if _is_shaping(term) else value
        for term, value in zip(terms, values, strict=True)
    ]


def _shaped(term: RewardWeight, token_ids: Sequence[int], is_right: bool) -> float:
    match term_options(term):
        case OverlongOptions() as options:
            return overlong_penalty(len(token_ids), options)
        case CosineOptions() as options:
            return cosine_reward(len(token_ids), is_right, options)
        case RepetitionOptions() as options:
            return repetition_penalty(token_ids, options)
    raise ValueError(f"{term.name} is not computed from tokens")


def _is_shaping(term: RewardWeight) -> bool:
    return not term.kind and term.name in SHAPING_TERMS


def _is_of_task(term: RewardWeight) -> bool:
    return not term.kind and term.name in TASK_TERMS


def _judged(
    terms: Sequence[RewardWeight], values: Sequence[float], status: VerdictStatus, reason: str
) -> Verdict:
    components = tuple(
        RewardComponent(name=term.name, value=value, weight=term.weight)
        for term, value in zip(terms, values, strict=True)
    )
    total = sum(part.weight * part.value for part in components)
    if not math.isfinite(total):
        told = f"the weighted sum of the terms is {total}, not a finite number"
        return Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason=told)
    return Verdict(status=status, reward=total, components=components, reason=reason)


def _joined_reasons(judgements: Sequence[Judgement]) -> str:
    return "; ".join(dict.fromkeys(item.reason for item in judgements if item.reason))[:4096]
