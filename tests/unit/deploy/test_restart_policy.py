from __future__ import annotations

import signal

import pytest

from common.errors import EXIT_FATAL, EXIT_INFRA, EXIT_OK, EXIT_USAGE
from deploy.restart_policy import (
    ExitKind,
    FinishRun,
    ProcessExit,
    Restart,
    RestartPolicy,
    StopRun,
    classify_exit,
    decide,
    describe_exit,
)

POLICY = RestartPolicy(max_failed_starts=3, max_restarts=6, window_s=100.0)


def exits(*times_s: float, code: int = -signal.SIGKILL, was_ready: bool) -> list[ProcessExit]:
    return [ProcessExit(time_s, code, was_ready) for time_s in times_s]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (EXIT_OK, ExitKind.DONE),
        (EXIT_FATAL, ExitKind.FATAL),
        (EXIT_USAGE, ExitKind.FATAL),
        (EXIT_INFRA, ExitKind.RETRY),
        (-signal.SIGKILL, ExitKind.RETRY),
        (-signal.SIGSEGV, ExitKind.RETRY),
        (130, ExitKind.RETRY),
    ],
)
def test_exit_codes_are_sorted_by_what_to_do_next(code: int, kind: ExitKind) -> None:
    assert classify_exit(code) is kind


def test_a_killed_process_is_restarted_with_growing_delay() -> None:
    delays = []
    for count in range(1, 4):
        history = exits(*range(count), was_ready=True)
        decision = decide(POLICY, "actor-0", history, is_consumer=False)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
    assert delays == [0.5, 1.0, 2.0]


def test_the_delay_is_capped() -> None:
    policy = RestartPolicy(max_restarts=50, max_delay_s=30.0)
    history = exits(*range(12), was_ready=True)
    assert decide(policy, "actor-0", history, is_consumer=False) == Restart(30.0)


def test_a_process_that_never_becomes_ready_stops_the_run_after_three_restarts() -> None:
    allowed = decide(POLICY, "actor-0", exits(1, 2, 3, was_ready=False), is_consumer=False)
    refused = decide(POLICY, "actor-0", exits(1, 2, 3, 4, was_ready=False), is_consumer=False)
    assert isinstance(allowed, Restart)
    assert refused == StopRun(
        "actor-0 ended 4 times within 100 s, 4 of them before it was ready; "
        "last with signal 9 (SIGKILL)"
    )


def test_a_process_that_was_serving_is_worth_more_restarts() -> None:
    six = decide(POLICY, "actor-0", exits(*range(6), was_ready=True), is_consumer=False)
    seven = decide(POLICY, "actor-0", exits(*range(7), was_ready=True), is_consumer=False)
    assert isinstance(six, Restart)
    assert isinstance(seven, StopRun)


def test_exits_before_the_window_are_forgiven() -> None:
    history = exits(0, 1, 2, 3, 4, 5, 200, was_ready=False)
    assert decide(POLICY, "actor-0", history, is_consumer=False) == Restart(0.5)


def test_the_run_is_finished_when_the_consumer_ends_with_zero() -> None:
    history = exits(5, code=EXIT_OK, was_ready=True)
    assert decide(POLICY, "learner", history, is_consumer=True) == FinishRun()


def test_another_role_that_ends_with_zero_waits_for_the_consumer_before_it_restarts() -> None:
    history = exits(5, code=EXIT_OK, was_ready=True)
    assert decide(POLICY, "actor-0", history, is_consumer=False) == Restart(POLICY.done_delay_s)


def test_a_killed_consumer_is_restarted_like_any_other() -> None:
    decision = decide(POLICY, "learner", exits(5, was_ready=True), is_consumer=True)
    assert decision == Restart(0.5)


def test_a_consumer_that_was_stopped_alone_is_started_again_and_the_run_is_not_over() -> None:
    history = exits(5, code=EXIT_INFRA, was_ready=True)
    assert decide(POLICY, "learner", history, is_consumer=True) == Restart(0.5)


@pytest.mark.parametrize("code", [EXIT_FATAL, EXIT_USAGE])
def test_a_fatal_exit_stops_the_run_at_once(code: int) -> None:
    decision = decide(POLICY, "broker", exits(5, code=code, was_ready=True), is_consumer=False)
    assert decision == StopRun(f"broker stopped with exit code {code}")


def test_exits_are_described_in_words() -> None:
    assert describe_exit(75) == "exit code 75"
    assert describe_exit(-9) == "signal 9 (SIGKILL)"
    assert describe_exit(-200) == "signal 200"
