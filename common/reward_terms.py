"""The terms that a reward may be made of, what each may be told, and R1's rewards by name.

A term is judged by a check (``accuracy`` and ``preference`` by the verifier of the prompt's own
task, the others by the kind of their name), or computed from the length and the token ids of the
answer (``overlong``, ``cosine``, ``repetition``). The model of that kind in ``verifier.models``
judges ``helpful``, ``safety``, ``process`` and ``judge``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from common.config import RewardWeight, VerifierConfig
from common.errors import ConfigError
from common.language_tags import parse_language_tag

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the options of a term."""


class NoOptions(_Options, frozen=True):
    """A term without options."""


class FormatOptions(_Options, frozen=True):
    """``format``: the form that a completion must have."""

    template: Literal["r1-zero", "special-token"] = "r1-zero"
    token: Annotated[str, msgspec.Meta(min_length=1)] = "|special_token|"


class LanguageOptions(_Options, frozen=True):
    """``language``: the language of the chain of thought, and others to tell it from."""

    target: str = "en"
    rivals: str = ""

    def __post_init__(self) -> None:
        for tag in (self.target, *self.rivals.split()):
            parse_language_tag(tag)


class OverlongOptions(_Options, frozen=True, kw_only=True):
    """``overlong`` (DAPO, arXiv 2503.14476, equation 13): L_max and L_cache in tokens."""

    max_tokens: _Positive
    cache_tokens: _Positive

    def __post_init__(self) -> None:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"cache_tokens must be at most max_tokens ({self.max_tokens}), "
                f"got {self.cache_tokens}"
            )


class CosineOptions(_Options, frozen=True, kw_only=True):
    """``cosine`` (arXiv 2502.03373, section 4): values at length 0 and at ``max_tokens``."""

    max_tokens: _Positive
    right_short: float = 1.0
    right_long: float = 0.5
    wrong_short: float = -1.0
    wrong_long: float = -0.5
    exceeded: float = -1.0


class RepetitionOptions(_Options, frozen=True, kw_only=True):
    """``repetition`` (arXiv 2502.03373, appendix C.2): n, and the value of pure repetition."""

    ngram: _Positive = 20
    max_penalty: Annotated[float, msgspec.Meta(le=0.0)] = -1.0


TERMS: dict[str, type[_Options]] = {
    "accuracy": NoOptions,
    "preference": NoOptions,
    "format": FormatOptions,
    "language": LanguageOptions,
    "overlong": OverlongOptions,
    "cosine": CosineOptions,
    "repetition": RepetitionOptions,
    "helpful": NoOptions,
    "safety": NoOptions,
    "process": NoOptions,
    "judge": NoOptions,
}
"""Name of a term -> its options."""

TASK_TERMS = frozenset({"accuracy", "preference"})
"""Judged by the verifier of the prompt's own task."""

MODEL_TERMS = frozenset({"helpful", "safety", "process", "judge"})
"""Judged by the model of the same kind in ``verifier.models``."""

SHAPING_TERMS = frozenset({"overlong", "cosine", "repetition"})
"""Computed from the answer's tokens and accuracy: no check is run for them."""

GENERAL_TASKS = frozenset({"helpful", "safety"})
"""Tasks without a rule: a model says how good the answer is. All others are reasoning."""

PRESETS: dict[str, tuple[RewardWeight, ...]] = {
    "r1-zero": (RewardWeight(name="accuracy"), RewardWeight(name="format")),
    "r1-stage-1": (
        RewardWeight(name="accuracy"),
        RewardWeight(name="format"),
        RewardWeight(name="language"),
    ),
    "r1-stage-2": (
        RewardWeight(name="accuracy", data="reasoning"),
        RewardWeight(name="preference", data="general"),
        RewardWeight(name="format"),
        RewardWeight(name="language"),
    ),
}
"""Nature 645, 633-638, Methods: equation 4; rules and language; equations 8 to 10."""


def term_options(term: RewardWeight) -> _Options:
    """The options of a term without a ``kind`` of its own; raises :class:`ConfigError`."""
    try:
        return msgspec.convert(term.options, TERMS[term.name], strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(item.name for item in msgspec.structs.fields(TERMS[term.name]))
        raise ConfigError(
            f"verifier.rewards: {term.name}: {error} (its options: {known or 'none'})"
        ) from None


def data_kind(task: str) -> Literal["reasoning", "general"]:
    """Whether a rule or a model judges prompts of ``task``."""
    return "general" if task in GENERAL_TASKS else "reasoning"


def resolved(verifier: VerifierConfig) -> VerifierConfig:
    """The section with its preset written out and the target of each ``language`` term filled in.

    Raises :class:`ConfigError` where a preset and other terms are given.
    """
    default = VerifierConfig.rewards
    rewards = verifier.rewards
    if verifier.preset:
        expected = _with_language(PRESETS[verifier.preset], verifier.language)
        if rewards not in (default, expected):
            raise ConfigError(
                f'verifier.preset = "{verifier.preset}" and verifier.rewards cannot both be given '
                "(remove one of them)"
            )
        rewards = expected
    return dataclasses.replace(verifier, rewards=_with_language(rewards, verifier.language))


def _with_language(terms: tuple[RewardWeight, ...], target: str) -> tuple[RewardWeight, ...]:
    return tuple(
        dataclasses.replace(term, options={"target": target, **term.options})
        if term.name == "language" and not term.kind
        else term
        for term in terms
    )


def applies_to(term: RewardWeight, task: str, prompt_set: str) -> bool:
    """Whether ``term`` is part of the reward of a prompt of this task and set."""
    return term.data in ("all", data_kind(task)) and (
        not term.prompt_sets or prompt_set in term.prompt_sets
    )


def as_reference(options: _Options, fields: Mapping[str, object]) -> str:
    """Options of a term as the reference of its check; ``fields`` of the prompt come on top."""
    return msgspec.json.encode({**msgspec.to_builtins(options), **fields}).decode()
