"""A broker that starts under another configuration: what its journal permits, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from broker.kept_settings import JOURNAL_KEYS, Change, keep_settings
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.main import ledger_rules
from broker.prompt_rules import open_prompt_sets
from broker.prompts.opening import open_prompt_source
from broker.reference_rules import drop_unused
from broker.resume_rules import adopt_rules
from common.config import (
    CollectConfig,
    Config,
    LearnerConfig,
    LossConfig,
    ModelConfig,
    PromptsConfig,
    PromptSetConfig,
    RunConfig,
)
from common.errors import ConfigError, FatalError, PromptFileError
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver

Changed = Callable[[Config], Config]


def write_prompts(folder: Path, name: str = "prompts") -> str:
    lines = (
        json.dumps({"prompt_id": f"{name}-{n}", "prompt": "x", "task": "arithmetic", "gold": n})
        for n in range(40)
    )
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def config_in(folder: Path) -> Config:
    return Config(
        run=RunConfig(directory=str(folder / "run")),
        model=ModelConfig(path="model"),
        prompts=PromptsConfig(file=write_prompts(folder)),
        learner=LearnerConfig(
            group_size=2,
            groups_per_step=2,
            max_policy_lag=3,
            num_steps=20,
            reference="verifier",
            loss=LossConfig(kl_coefficient=0.1),
        ),
        collect=CollectConfig(num_prompts=30, samples_per_prompt=2),
    )


def set_to(key: str, value: Any) -> Changed:
    """``config`` with one key changed."""

    def change(config: Config) -> Config:
        *sections, name = key.split(".")
        changed = value
        for depth in range(len(sections), 0, -1):
            section: Any = config
            for part in sections[:depth]:
                section = getattr(section, part)
            changed = replace(section, **{name: changed})
            name = sections[depth - 1]
        return replace(config, **{name: changed})

    return change


OTHERWISE: dict[str, Any] = {
    "run.kind": "collect",
    "learner.group_size": 4,
    "collect.samples_per_prompt": 4,
    "prompts.template": "chat",
    "run.seed": 1,
    "prompts.shuffle": False,
    "prompts.options": {"num_terms": 3},
    "prompts.split": "held-out",
    "learner.max_policy_lag": 1,
    "learner.groups_per_step": 3,
    "learner.num_steps": 30,
    "learner.staleness": "drop_group",
    "learner.reference": "learner",
    "learner.loss.kl_coefficient": 0.0,
    "prompts.epochs": 2,
    "prompts.limit": 30,
    "prompts.retire_pass_rate": 1.0,
    "prompts.retire_after": 3,
    "learner.dynamic_sampling": True,
    "learner.max_dropped_batches": 3,
    "collect.num_prompts": 20,
    "model.max_length": 4096,
    "actor.max_tokens": 100,
    "broker.max_attempts": 5,
    "broker.max_group_s": 60.0,
    "broker.max_outstanding_groups": 8,
    "broker.acks": "relaxed",
    "broker.journal_segment_bytes": 1 << 20,
    "broker.max_journal_bytes": 1 << 30,
    "stores.payloads": "store",
}


def other_value(key: str, folder: Path) -> Changed:
    """How a test changes ``key``."""
    if key == "prompts.file":
        return set_to(key, write_prompts(folder, "others"))
    if key == "prompts.generator":
        return lambda config: replace(config, prompts=PromptsConfig(generator="countdown"))
    if key == "prompts.sets":
        others = (PromptSetConfig(name="default", file=write_prompts(folder, "others")),)
        return lambda config: replace(config, prompts=PromptsConfig(sets=others))
    return set_to(key, OTHERWISE[key])


def base_of(key: str, folder: Path) -> Config:
    """A configuration in which ``key`` has a say."""
    config = config_in(folder)
    if key.startswith("collect.") or key == "broker.max_outstanding_groups":
        config = replace(config, run=replace(config.run, kind="collect"))
    if key in ("prompts.options", "prompts.split"):
        generated = PromptsConfig(generator="chain-addition", limit=100)
        config = replace(config, prompts=generated)
    return config


def started(config: Config, before: Driver | None = None) -> Driver:
    """A broker starts with the journal of ``before``; raises as it would."""
    source = open_prompt_source(config)
    driver = Driver(announced=False)
    driver.rules, driver.source = ledger_rules(config), source
    history = [] if before is None else before.history
    driver.engine.ledger = Ledger.replay(driver.rules, None, history)
    driver.history = list(history)
    driver.do(keep_settings(driver.ledger.state, config))
    driver.do(open_prompt_sets(driver.ledger, source))
    driver.do(drop_unused(driver.ledger))
    driver.do(adopt_rules(driver.ledger))
    return driver


def with_a_history(config: Config) -> Driver:
    """A run with groups in several states: half sampled, judged, leased."""
    driver = started(config)
    if config.run.kind == "train":
        driver.announce(version(0))
    driver.verified()
    half = driver.leased()
    driver.submit(half, 0)
    driver.leased()
    return driver


KEYS_OF = {
    change: [key for key, item in JOURNAL_KEYS.items() if item.change is change]
    for change in Change
}


@pytest.mark.parametrize("key", KEYS_OF[Change.REFUSED])
def test_a_key_that_the_journal_depends_on_may_not_change(key: str, tmp_path: Path) -> None:
    config = base_of(key, tmp_path)
    before = with_a_history(config)
    changed = other_value(key, tmp_path)(config)
    was, got = JOURNAL_KEYS[key].read(config), JOURNAL_KEYS[key].read(changed)
    with pytest.raises(ConfigError, match=rf"{key} must stay {was} .*, got {got} .*run\.directory"):
        started(changed, before)
    assert started(config, before).ledger.state == before.ledger.state


@pytest.mark.parametrize("key", KEYS_OF[Change.REFUSED])
def test_it_may_change_while_nothing_was_admitted(key: str, tmp_path: Path) -> None:
    config = base_of(key, tmp_path)
    changed = other_value(key, tmp_path)(config)
    again = started(changed, started(config))
    with pytest.raises(FatalError, match=key):
        started(config, with_a_history_of(again, changed))


def with_a_history_of(driver: Driver, config: Config) -> Driver:
    """``driver`` with one group admitted."""
    if config.run.kind == "train":
        driver.announce(version(0))
    driver.leased()
    return driver


@pytest.mark.parametrize("key", KEYS_OF[Change.PROMPTS])
def test_prompts_that_the_journal_has_drawn_may_not_become_others(key: str, tmp_path: Path) -> None:
    config = base_of(key, tmp_path)
    before = with_a_history(config)
    with pytest.raises(PromptFileError, match=r"has changed since this run first used it"):
        started(other_value(key, tmp_path)(config), before)


@pytest.mark.parametrize("key", KEYS_OF[Change.ADOPTED])
def test_what_open_groups_are_held_to_may_change_and_holds_for_them(
    key: str, tmp_path: Path
) -> None:
    config = base_of(key, tmp_path)
    before = with_a_history(config)
    after = started(other_value(key, tmp_path)(config), before)
    assert after.ledger.window().holds()
    assert not adopt_rules(after.ledger).events
    assert after.ledger.counts.admitted == before.ledger.counts.admitted
    assert after.ledger.counts.evicted == 0


@pytest.mark.parametrize("key", KEYS_OF[Change.ONWARD])
def test_what_holds_from_here_on_leaves_the_journal_as_it_was(key: str, tmp_path: Path) -> None:
    config = base_of(key, tmp_path)
    before = with_a_history(config)
    changed = other_value(key, tmp_path)(config)
    assert JOURNAL_KEYS[key].read(changed) != JOURNAL_KEYS[key].read(config)
    after = started(changed, before)
    assert after.ledger.state == before.ledger.state
    assert after.lease() is not None


def test_every_rule_of_the_ledger_comes_from_a_key_of_the_table(tmp_path: Path) -> None:
    moved: set[str] = set()
    for key in JOURNAL_KEYS:
        config = base_of(key, tmp_path)
        rules, others = ledger_rules(config), ledger_rules(other_value(key, tmp_path)(config))
        names = (item.name for item in fields(LedgerRules))
        moved.update(name for name in names if getattr(rules, name) != getattr(others, name))
    assert moved == {item.name for item in fields(LedgerRules)}


def test_a_journal_without_settings_keeps_those_of_its_next_start(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    before = Driver()
    before.leased()
    after = started(config, before)
    assert after.ledger.state.settings["run.kind"] == "train"
    with pytest.raises(ConfigError, match=r"run\.kind must stay train"):
        started(set_to("run.kind", "collect")(config), after)
