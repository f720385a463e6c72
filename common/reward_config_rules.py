"""Rules for the rewards and the monitor of the ``[verifier]`` section of a run file."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator

from common.config import Config, RewardWeight
from common.errors import ConfigError
from common.references.math import SYMBOLIC_KIND
from common.reward_terms import MODEL_TERMS, TERMS, term_options
from common.task_reference import REFERENCES
from common.user_rewards import FUNCTION_KIND

CHECK_KINDS = frozenset(
    {*REFERENCES, *MODEL_TERMS, "format", "language", FUNCTION_KIND, SYMBOLIC_KIND}
)
"""Every kind of check: those of the tasks, and those that any completion can be put to."""


def reward_rules(config: Config) -> Iterator[str]:
    """What is wrong with ``config.verifier.rewards``, each with its cure."""
    terms = config.verifier.rewards
    names = [term.name for term in terms]
    if not names or len(names) != len(set(names)):
        yield (
            f"verifier.rewards must name each reward once, got {names} "
            '(for example [{name = "accuracy"}])'
        )
    for term in terms:
        yield from _term_rules(term)
        yield from _set_rules(term, config)
        yield from _model_rules(term, config)
    yield from _coverage_rules(config)
    if "cosine" in names and "accuracy" not in names:
        yield (
            'verifier.rewards: "cosine" depends on whether the answer is right, got no "accuracy" '
            '(add {name = "accuracy"}, with weight 0 if it is not to count itself)'
        )
    yield from _monitor_rules(config)


def _term_rules(term: RewardWeight) -> Iterator[str]:
    if not math.isfinite(term.weight):
        yield f"verifier.rewards: {term.name}: weight must be finite, got {term.weight} (use 1.0)"
    if term.kind:
        if term.kind not in CHECK_KINDS:
            cure = _nearest(term.kind, CHECK_KINDS)
            yield f"verifier.rewards: {term.name}: no kind of check is {term.kind!r} ({cure})"
        return
    if term.name not in TERMS:
        cure = _nearest(term.name, TERMS)
        yield f"verifier.rewards: no term is called {term.name!r} ({cure}; or set its kind)"
        return
    try:
        term_options(term)
    except ConfigError as error:
        yield str(error)


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _set_rules(term: RewardWeight, config: Config) -> Iterator[str]:
    known = [item.name for item in config.prompts.all_sets]
    for name in term.prompt_sets:
        if name not in known:
            yield (
                f"verifier.rewards: {term.name}: prompt_sets must name sets of the run, got "
                f"{name!r} (known: {', '.join(known)})"
            )


def _model_rules(term: RewardWeight, config: Config) -> Iterator[str]:
    kind = term.kind or term.name
    if kind in MODEL_TERMS and kind not in {model.kind for model in config.verifier.models}:
        yield (
            f"verifier.rewards: {term.name} is judged by a model, got none of kind {kind!r} "
            "(add it to [[verifier.models]])"
        )


def _coverage_rules(config: Config) -> Iterator[str]:
    for item in config.prompts.all_sets:
        if not any(
            not term.prompt_sets or item.name in term.prompt_sets
            for term in config.verifier.rewards
        ):
            yield (
                f"verifier.rewards: no term applies to prompt set {item.name!r} "
                "(add one, or name the set in prompt_sets)"
            )


def _monitor_rules(config: Config) -> Iterator[str]:
    monitor = config.verifier.monitor
    names = [term.name for term in config.verifier.rewards]
    for key, name in (("proxy", monitor.proxy), ("truth", monitor.truth)):
        if name and name not in names:
            yield (
                f"verifier.monitor.{key} must name a term of verifier.rewards, got {name!r} "
                f"(known: {', '.join(names)}; a term of weight 0 is judged and does not count)"
            )
    if monitor.window < 2:
        yield f"verifier.monitor.window must be >= 2, got {monitor.window} (use 512)"
