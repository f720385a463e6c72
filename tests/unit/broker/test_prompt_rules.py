"""Prompt sets in the ledger: what is journaled, and what a rollback of the learner does to them."""

from __future__ import annotations

import msgspec

from broker import events
from broker.events import SetWeight
from broker.ledger import Ledger
from broker.ledger_state import LedgerState
from broker.prompt_rules import open_prompt_sets
from broker.prompts.metrics import export_prompts
from broker.prompts.mixture import Mixture, PromptSet
from broker.prompts.sequences import EpochSequence, StreamSequence
from broker.prompts.state import RETIRED, SetState
from common.metrics import Metrics
from tests.builders import prompt
from tests.unit.broker.ledger_driver import Driver


def _mixture(limit: int = 0) -> Mixture:
    finite = EpochSequence(5, prompt, order_seed="a", limit=limit)
    return Mixture(
        [
            PromptSet("finite", 1.0, finite, "a.jsonl", "5 prompts"),
            PromptSet("endless", 1.0, StreamSequence(prompt), "sums", "sums of seed 0"),
        ]
    )


def _driver(limit: int = 0) -> Driver:
    driver = Driver(groups_per_step=4)
    driver.source = _mixture(limit)
    return driver


def _prompt_of(driver: Driver, group_id: int) -> tuple[str, str]:
    group = driver.ledger.groups[group_id]
    return group.prompt.prompt_set, group.prompt.prompt_id


def test_the_content_of_a_set_is_recorded_once() -> None:
    driver = _driver()
    decision = open_prompt_sets(driver.ledger, _mixture())
    driver.do(decision)
    opened = [event for event in driver.history if isinstance(event, events.PromptSetOpened)]
    assert [event.fingerprint for event in opened] == ["5 prompts", "sums of seed 0"]
    assert open_prompt_sets(driver.ledger, _mixture()).events == ()


def test_the_mix_is_journaled_when_it_changes_and_not_at_every_prompt() -> None:
    driver = _driver(limit=2)
    for _ in range(7):
        driver.leased()
    mixes = [event.mix for event in driver.history if isinstance(event, events.MixBegan)]
    both = (SetWeight(name="finite", weight=1.0), SetWeight(name="endless", weight=1.0))
    assert mixes == [both, both[1:]]


def test_a_rollback_of_the_learner_puts_groups_back_with_their_prompts_and_draws_none_again() -> (
    None
):
    driver, untouched = _driver(), _driver()
    batch = [driver.verified() for _ in range(4)]
    expected = [untouched.leased().prompt for _ in range(8)]
    prompts = [_prompt_of(driver, group_id) for group_id in batch]
    assert driver.pull(0, 4) == batch
    driver.commit(0, batch)
    driver.resume(0, incarnation=1, forked=True)  # the checkpoint is older than the step
    assert [_prompt_of(driver, group_id) for group_id in batch] == prompts
    assert [(item.prompt_set, item.prompt_id) for item in expected[:4]] == prompts
    following = [driver.source.draw(driver.ledger.state.prompts)]
    assert [draw.prompt for draw in following if draw is not None] == expected[4:5]


def test_a_snapshot_of_a_million_prompts_is_a_megabyte_and_reads_back() -> None:
    state = LedgerState()
    state.prompts.sets["big"] = SetState(solved_in_a_row=bytearray(10**6))
    state.prompts.sets["big"].note(999_999, 1, retired=True)
    state.prompts.sets["big"].note(5, 3, retired=False)
    encoded = msgspec.msgpack.encode(state)
    assert len(encoded) < 10**6 + 4096
    back = msgspec.msgpack.decode(encoded, type=LedgerState)
    assert back == state
    assert back.prompts.of("big").is_retired(999_999)
    back.prompts.of("big").note(999_999, 0, retired=False)
    assert back.prompts.of("big").solved(999_999) == RETIRED


def test_an_unsolved_visit_takes_no_memory() -> None:
    state = SetState()
    state.note(10**6, 0, retired=False)
    assert len(state.solved_in_a_row) == 0


def test_each_set_has_gauges_of_its_own() -> None:
    driver = _driver()
    for _ in range(4):
        driver.verified()
    batch = driver.pull(0, 4)
    driver.commit(0, batch)
    metrics = Metrics()
    export_prompts(metrics, driver.ledger.state.prompts)

    def value(name: str, prompt_set: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"prompt_set": prompt_set})

    assert value("headrace_prompts_drawn", "finite") == 2
    assert value("headrace_answers_judged", "endless") == 4
    assert value("headrace_answers_passed", "endless") == 4
    assert value("headrace_pass_ratio", "finite") == 1.0
    assert value("headrace_prompts_retired", "finite") == 0
    assert metrics.registry.get_sample_value("headrace_prompts_per_batch") == 4


def test_a_replayed_history_draws_the_same_next_prompt() -> None:
    driver = _driver()
    for _ in range(7):
        driver.leased()
    replayed = Ledger.replay(driver.rules, None, driver.history)
    assert _mixture().draw(replayed.state.prompts) == driver.source.draw(
        driver.ledger.state.prompts
    )
