"""What of the configuration may change under a journal that exists, and what may not. Pure.

A journal holds groups that were admitted, sampled and judged under the configuration of its time.
:data:`JOURNAL_KEYS` says for each key that has a say in that what a broker does which starts under
another value.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broker import events
from broker.ledger_state import Decision, LedgerState
from common.config import Config
from common.errors import ConfigError


class Change(enum.Enum):
    """What becomes of the journal where a key has another value than before."""

    REFUSED = "refused"
    """The broker does not start: what the journal holds would mean something else."""
    PROMPTS = "prompts"
    """Refused where other prompts would come than did: a set has a fingerprint in the journal."""
    ADOPTED = "adopted"
    """It holds for the groups that are open, too (:func:`broker.resume_rules.adopt_rules`)."""
    ONWARD = "onward"
    """It holds for what is decided from here on; what was decided stays."""


@dataclass(frozen=True, slots=True)
class JournalKey:
    """One key: how to read it, and what its change does."""

    change: Change
    read: Callable[[Config], Any]
    when: Callable[[Config], bool] = lambda _: True
    """Whether a run of this configuration uses it."""


def _is_train(config: Config) -> bool:
    return config.run.kind == "train"


def _is_collect(config: Config) -> bool:
    return config.run.kind == "collect"


JOURNAL_KEYS: Mapping[str, JournalKey] = {
    "run.kind": JournalKey(Change.REFUSED, lambda c: c.run.kind),
    "learner.group_size": JournalKey(Change.REFUSED, lambda c: c.learner.group_size, _is_train),
    "collect.samples_per_prompt": JournalKey(
        Change.REFUSED, lambda c: c.collect.samples_per_prompt, _is_collect
    ),
    "prompts.template": JournalKey(Change.REFUSED, lambda c: c.prompts.template),
    "run.seed": JournalKey(Change.PROMPTS, lambda c: c.run.seed),
    "prompts.file": JournalKey(Change.PROMPTS, lambda c: c.prompts.file),
    "prompts.generator": JournalKey(Change.PROMPTS, lambda c: c.prompts.generator),
    "prompts.options": JournalKey(Change.PROMPTS, lambda c: c.prompts.options),
    "prompts.split": JournalKey(Change.PROMPTS, lambda c: c.prompts.split),
    "prompts.shuffle": JournalKey(Change.PROMPTS, lambda c: c.prompts.shuffle),
    "prompts.sets": JournalKey(Change.PROMPTS, lambda c: c.prompts.sets),
    "learner.max_policy_lag": JournalKey(Change.ADOPTED, lambda c: c.learner.max_policy_lag),
    "learner.groups_per_step": JournalKey(Change.ADOPTED, lambda c: c.learner.groups_per_step),
    "learner.num_steps": JournalKey(Change.ADOPTED, lambda c: c.learner.num_steps),
    "learner.staleness": JournalKey(Change.ADOPTED, lambda c: c.learner.staleness),
    "learner.reference": JournalKey(Change.ADOPTED, lambda c: c.learner.reference),
    "learner.loss.kl_coefficient": JournalKey(
        Change.ADOPTED, lambda c: c.learner.loss.kl_coefficient
    ),
    "prompts.epochs": JournalKey(Change.ONWARD, lambda c: c.prompts.epochs),
    "prompts.limit": JournalKey(Change.ONWARD, lambda c: c.prompts.limit),
    "prompts.retire_pass_rate": JournalKey(Change.ONWARD, lambda c: c.prompts.retire_pass_rate),
    "prompts.retire_after": JournalKey(Change.ONWARD, lambda c: c.prompts.retire_after),
    "learner.dynamic_sampling": JournalKey(Change.ONWARD, lambda c: c.learner.dynamic_sampling),
    "learner.max_dropped_batches": JournalKey(
        Change.ONWARD, lambda c: c.learner.max_dropped_batches
    ),
    "collect.num_prompts": JournalKey(Change.ONWARD, lambda c: c.collect.num_prompts),
    "model.max_length": JournalKey(Change.ONWARD, lambda c: c.model.max_length),
    "actor.max_tokens": JournalKey(Change.ONWARD, lambda c: c.actor.max_tokens),
    "broker.max_attempts": JournalKey(Change.ONWARD, lambda c: c.broker.max_attempts),
    "broker.max_group_s": JournalKey(Change.ONWARD, lambda c: c.broker.max_group_s),
    "broker.max_outstanding_groups": JournalKey(
        Change.ONWARD, lambda c: c.broker.max_outstanding_groups
    ),
    "broker.acks": JournalKey(Change.ONWARD, lambda c: c.broker.acks),
    "broker.journal_segment_bytes": JournalKey(
        Change.ONWARD, lambda c: c.broker.journal_segment_bytes
    ),
    "broker.max_journal_bytes": JournalKey(Change.ONWARD, lambda c: c.broker.max_journal_bytes),
    "stores.payloads": JournalKey(Change.ONWARD, lambda c: c.stores.payloads),
}


def kept_settings(config: Config) -> dict[str, str]:
    """Values of the keys that may not change, as a journal keeps them."""
    return {
        name: str(key.read(config))
        for name, key in JOURNAL_KEYS.items()
        if key.change is Change.REFUSED and key.when(config)
    }


def keep_settings(state: LedgerState, config: Config) -> Decision[None]:
    """Record what the journal depends on; while nothing was admitted, that is nothing yet.

    Raises :class:`ConfigError` where such a key has another value than the journal was begun with.
    """
    settings = kept_settings(config)
    if state.next_group_id:
        for key, value in settings.items():
            _check(key, value, state.settings.get(key, value))
    changed = {key: value for key, value in settings.items() if state.settings.get(key) != value}
    return Decision(
        tuple(events.SettingKept(key=key, value=value) for key, value in changed.items()), None
    )


def _check(key: str, value: str, known: str) -> None:
    if value != known:
        raise ConfigError(
            f"{key} must stay {known} for as long as its journal exists, got {value} "
            "(set it back, or start in another run.directory)"
        )
