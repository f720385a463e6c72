"""Dynamic sampling and retirement, decided from the verdicts of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from broker import events, rollout_rules, verdict_rules
from broker.admission import Window
from broker.difficulty_rules import check_yield, has_equal_rewards, is_fully_rewarded
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.prompts.mixture import Draw, Mixture, PromptSet
from broker.prompts.sequences import EpochSequence
from broker.prompts.state import PromptsState
from common.errors import FatalError
from common.messages import PromptLease
from common.types import EvictReason, RewardComponent, Verdict, VerdictStatus
from learner.objectives.advantages import normalized_advantages
from tests.builders import prompt, rollout_header
from tests.unit.broker.ledger_driver import Driver

RIGHT = Verdict(status=VerdictStatus.GRADED, reward=1.0)
WRONG = Verdict(status=VerdictStatus.GRADED, reward=0.0)


def _judge(driver: Driver, lease: PromptLease, verdicts: Sequence[Verdict]) -> int:
    """Sample a group and judge its answers in order; returns its id."""
    for index in lease.lease.indices:
        assert driver.submit(lease, index) == "accepted"
    for verdict in verdicts:
        rollout = driver.lease_rollout()
        assert rollout is not None
        assert driver.judge(rollout, verdict) == "accepted"
    return lease.lease.group_id


def _visit(driver: Driver, *verdicts: Verdict) -> int:
    return _judge(driver, driver.leased(), verdicts)


def _num_evicted(driver: Driver, reason: EvictReason) -> int:
    return driver.ledger.state.num_evicted.get(reason, 0)


# --- dynamic sampling -----------------------------------------------------------------------------


def test_a_group_of_equal_rewards_leaves_with_its_last_verdict_and_its_place_is_filled() -> None:
    driver = Driver(dynamic_sampling=True)
    first = driver.leased()
    num_groups = 1 + driver.num_leasable()
    group_id = first.lease.group_id
    for index in first.lease.indices:
        driver.submit(first, index)
    for expected_live in (True, False):
        rollout = driver.lease_rollout()
        assert rollout is not None
        driver.judge(rollout, RIGHT)
        assert (group_id in driver.ledger.groups) is expected_live
    assert _num_evicted(driver, EvictReason.ZERO_ADVANTAGE) == 1
    assert not any(key.group_id == group_id for key in driver.payloads.kept)
    refill = driver.leased()
    assert refill.prompt.prompt_id == f"p{num_groups}"
    assert driver.lease() is None


def test_a_group_with_a_difference_is_kept_and_handed_over() -> None:
    driver = Driver(dynamic_sampling=True)
    kept = [_visit(driver, RIGHT, WRONG), _visit(driver, WRONG, RIGHT)]
    assert driver.pull(0) == kept


def test_without_dynamic_sampling_every_group_stays() -> None:
    driver = Driver()
    kept = [_visit(driver, RIGHT, RIGHT), _visit(driver, WRONG, WRONG)]
    assert driver.pull(0) == kept


@pytest.mark.parametrize("std", ["sample", "population", "none"])
@pytest.mark.parametrize(
    "rewards", [(0.1 + 0.2, 0.3), (0.3, 0.3), (0.0, 0.0), (1.0, 1.2), (1.0,), (-0.0, 0.0)]
)
def test_a_group_is_dropped_exactly_when_the_learner_would_give_it_no_advantage(
    rewards: tuple[float, ...], std: str
) -> None:
    answers = [
        (rollout_header(index=index), Verdict(status=VerdictStatus.GRADED, reward=reward))
        for index, reward in enumerate(rewards)
    ]
    advantages = normalized_advantages(rewards, std=std, epsilon=0.0)  # type: ignore[arg-type]
    assert has_equal_rewards(answers) is not bool(advantages.any())


def test_an_answer_without_a_token_has_no_say_and_a_group_of_such_is_left_to_the_learner() -> None:
    empty = rollout_header(num_completion=0)
    assert has_equal_rewards([(rollout_header(), RIGHT), (empty, WRONG)])
    assert not has_equal_rewards([(empty, RIGHT), (empty, WRONG)])


def test_a_group_put_back_by_a_restarted_learner_is_judged_once() -> None:
    driver = Driver(dynamic_sampling=True)
    kept = [_visit(driver, RIGHT, WRONG), _visit(driver, WRONG, RIGHT)]
    assert driver.pull(0) == kept
    driver.resume(0)
    assert driver.pull(0) == kept
    assert driver.ledger.state.prompts.num_judged == 2


def test_a_lost_answer_that_is_sampled_again_is_no_second_visit() -> None:
    driver = _few(1, retire_after=2)
    lease = driver.leased()
    group_id = _judge(driver, lease, (RIGHT, RIGHT))
    attempt = driver.ledger.groups[group_id].indices[1].attempt
    lost = events.PayloadLost(group_id=group_id, index=1, attempt=attempt)
    driver.do(Decision((lost,), None))
    again = driver.leased()
    assert again.lease.group_id == group_id
    _judge(driver, again, (RIGHT,))
    state = driver.ledger.state.prompts
    assert (state.num_judged, state.num_retired) == (1, 0)
    assert driver.pull(0) == [group_id]


def test_the_cost_of_a_batch_counts_the_groups_dropped_for_it_and_a_replay_counts_nothing() -> None:
    driver = Driver(dynamic_sampling=True)
    for verdict in (RIGHT, WRONG, RIGHT):
        _visit(driver, verdict, verdict)
    batch = [_visit(driver, RIGHT, WRONG), _visit(driver, WRONG, RIGHT)]
    assert driver.pull(0) == batch
    driver.commit(0, batch)
    assert driver.ledger.state.prompts.judged_per_batch == 5
    assert driver.ledger.state.prompts.of("").pass_ratio == 6 / 10
    driver.resume(0, [batch])
    assert driver.ledger.state.prompts.judged_per_batch == 5


def test_a_run_that_keeps_nothing_is_stopped_with_the_shares_and_a_cure() -> None:
    driver = Driver(dynamic_sampling=True, max_dropped_batches=2)
    for verdict in (RIGHT, RIGHT, RIGHT, WRONG):
        _visit(driver, verdict, verdict)
        check_yield(driver.ledger)
    _visit(driver, RIGHT, RIGHT)
    with pytest.raises(FatalError) as caught:
        check_yield(driver.ledger)
    message = str(caught.value)
    assert "dropped 5 groups in a row" in message
    assert "80% solved by every answer, 20% by none" in message
    assert "raise learner.max_dropped_batches" in message


def test_one_kept_group_ends_the_count_and_no_limit_never_stops() -> None:
    driver = Driver(dynamic_sampling=True, max_dropped_batches=1)
    for verdicts in [(RIGHT, RIGHT), (WRONG, WRONG), (RIGHT, WRONG), (RIGHT, RIGHT)]:
        _visit(driver, *verdicts)
        check_yield(driver.ledger)
    endless = Driver(dynamic_sampling=True, max_dropped_batches=0)
    for _ in range(50):
        _visit(endless, RIGHT, RIGHT)
        check_yield(endless.ledger)


def test_dropped_groups_never_endanger_a_deadline() -> None:
    driver = Driver(dynamic_sampling=True, groups_per_step=4, max_policy_lag=2)
    for number in range(200):
        verdicts = (RIGHT, WRONG) if number % 9 == 0 else (RIGHT, RIGHT)
        if (lease := driver.lease()) is None:
            break
        _judge(driver, lease, verdicts)
        window: Window = driver.ledger.window()
        assert window.slack(window.policy_step) >= 0
    assert driver.ledger.index.num_pending == 12


# --- what counts as solved ------------------------------------------------------------------------


def _verdict(reward: float, **components: float) -> Verdict:
    parts = tuple(RewardComponent(name=name, value=value) for name, value in components.items())
    return Verdict(status=VerdictStatus.GRADED, reward=reward, components=parts)


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        (_verdict(1.0, accuracy=1.0, format=0.0), True),
        (_verdict(1.0, accuracy=0.0, format=1.0), False),
        (_verdict(2.0, accuracy=1.0, format=1.0), True),
        (_verdict(1.0, format=1.0, language=0.0), False),
        (_verdict(2.0, format=1.0, language=1.0), True),
        (_verdict(1.0), True),
        (_verdict(0.5), False),
        (Verdict(status=VerdictStatus.LIMIT_EXCEEDED, reward=0.0), False),
    ],
)
def test_an_answer_passes_by_its_accuracy_or_else_by_the_largest_reward(
    verdict: Verdict, passed: bool
) -> None:
    assert is_fully_rewarded(verdict) is passed


# --- retirement -----------------------------------------------------------------------------------


@dataclass
class FewPrompts:
    """A file of ``size`` prompts in order, without end."""

    size: int

    def draw(self, state: PromptsState) -> Draw | None:
        sequence = EpochSequence(self.size, prompt, order_seed=None)
        return Mixture([PromptSet("few", 1.0, sequence, "few.jsonl", "few")]).draw(state)


def _few(
    size: int,
    *,
    retire_after: int = 2,
    retire_pass_rate: float = 1.0,
    group_size: int = 2,
    dynamic_sampling: bool = False,
) -> Driver:
    driver = Driver(
        groups_per_step=50,
        group_size=group_size,
        retire_after=retire_after,
        retire_pass_rate=retire_pass_rate,
        dynamic_sampling=dynamic_sampling,
    )
    driver.source = FewPrompts(size)
    return driver


def _rounds(driver: Driver, *rounds: Sequence[Verdict]) -> list[str]:
    """Visits in order of the leases; the prompt of each."""
    seen = []
    for verdicts in rounds:
        lease = driver.leased()
        seen.append(lease.prompt.prompt_id)
        _judge(driver, lease, verdicts)
    return seen


SOLVED, FAILED = (RIGHT, RIGHT), (RIGHT, WRONG)


def test_a_prompt_solved_often_enough_in_a_row_is_passed_by_from_then_on() -> None:
    driver = _few(2)
    seen = _rounds(driver, SOLVED, FAILED, SOLVED, FAILED, FAILED, FAILED)
    assert seen == ["p0", "p1", "p0", "p1", "p1", "p1"]
    assert driver.ledger.state.prompts.num_retired == 1


def test_a_visit_that_fails_begins_the_count_again() -> None:
    driver = _few(1)
    assert _rounds(driver, SOLVED, FAILED, SOLVED, FAILED) == ["p0"] * 4
    assert driver.ledger.state.prompts.num_retired == 0


def test_a_rate_below_one_lets_a_prompt_go_that_is_mostly_solved() -> None:
    driver = _few(1, retire_after=1, group_size=4)
    _rounds(driver, (RIGHT, RIGHT, RIGHT, WRONG))
    assert driver.ledger.state.prompts.num_retired == 0
    lenient = _few(1, retire_after=1, group_size=4, retire_pass_rate=0.75)
    _rounds(lenient, (RIGHT, RIGHT, RIGHT, WRONG))
    assert lenient.ledger.state.prompts.num_retired == 1


def test_when_every_prompt_is_retired_the_source_is_exhausted() -> None:
    driver = _few(2, retire_after=1)
    _rounds(driver, SOLVED, SOLVED)
    assert driver.lease() is None
    assert driver.source.draw(driver.ledger.state.prompts) is None


def test_untouched_groups_of_a_retired_prompt_leave_and_touched_ones_stay() -> None:
    driver = _few(1, retire_after=1)
    judged, untouched, started = driver.leased(), driver.leased(), driver.leased()
    driver.submit(started, 0)
    for lease in (untouched, started):
        driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease, lost=True))
    for index in judged.lease.indices:
        driver.submit(judged, index)
    for rollout in [driver.lease_rollout() for _ in range(3)]:
        assert rollout is not None
        if rollout.rollout.rollout_id.group_id == judged.lease.group_id:
            driver.judge(rollout, RIGHT)
    assert set(driver.ledger.groups) == {judged.lease.group_id, started.lease.group_id}
    assert _num_evicted(driver, EvictReason.RETIRED) == 1


def test_an_untouched_group_of_another_prompt_stays() -> None:
    driver = _few(2, retire_after=1)
    judged, other = driver.leased(), driver.leased()
    driver.do(rollout_rules.release_prompt(driver.ledger, other.lease, lost=True))
    _judge(driver, judged, SOLVED)
    assert other.lease.group_id in driver.ledger.groups


def test_a_solved_group_that_dynamic_sampling_drops_counts_as_a_visit() -> None:
    driver = _few(1, retire_after=1, dynamic_sampling=True)
    _rounds(driver, SOLVED)
    assert _num_evicted(driver, EvictReason.ZERO_ADVANTAGE) == 1
    assert driver.ledger.state.prompts.num_retired == 1


def test_prompts_of_an_endless_stream_leave_no_trace() -> None:
    driver = Driver(retire_pass_rate=1.0, retire_after=1)
    _visit(driver, RIGHT, RIGHT)
    state = driver.ledger.state.prompts.of("")
    assert (state.num_retired, len(state.solved_in_a_row)) == (0, 0)


def test_what_a_replay_of_the_history_knows_of_difficulty_is_the_same() -> None:
    driver = _few(3, dynamic_sampling=True)
    _rounds(driver, SOLVED, FAILED, SOLVED, SOLVED, SOLVED, FAILED)
    replayed = Ledger.replay(driver.rules, None, driver.history)
    assert replayed.state.prompts == driver.ledger.state.prompts
    assert replayed.state.prompts.num_retired == 1


def test_a_verdict_that_comes_twice_judges_a_group_once() -> None:
    driver = Driver()
    lease = driver.leased()
    for index in lease.lease.indices:
        driver.submit(lease, index)
    rollouts = [driver.lease_rollout() for _ in lease.lease.indices]
    for rollout in rollouts:
        assert rollout is not None
        driver.judge(rollout, RIGHT)
    last = rollouts[-1]
    assert last is not None
    again = verdict_rules.submit_verdict(
        driver.ledger, last.rollout.rollout_id, last.verify_attempt, RIGHT
    )
    assert again.events == ()
    assert driver.ledger.state.prompts.num_judged == 1
