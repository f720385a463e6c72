"""Who counts as silent, and what a lost peer looks like."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from learner.health.rank_watch import Beat, Silences, Stall
from learner.main import is_lost_peer


def _beat(number: int, **state: bool) -> Beat:
    return Beat(number=number, host="node-1", pid=17, started_s=1.0, **state)


def _silences() -> Silences:
    return Silences(range(2), limit_s=8.0, now_s=100.0)


def test_a_rank_is_silent_once_its_beat_has_not_changed_for_longer_than_the_limit() -> None:
    silences = _silences()
    for second in range(1, 21):
        silences.hear(0, _beat(second), 100.0 + second)
        silences.hear(1, _beat(min(second, 5)), 100.0 + second)
        expected = {1: _beat(5)} if second > 13 else {}
        assert silences.silent(100.0 + second) == expected, second


def test_a_rank_that_never_spoke_is_silent_too() -> None:
    silences = _silences()
    silences.hear(0, _beat(1), 107.0)
    assert silences.silent(108.0) == {}
    assert silences.silent(108.1) == {1: None}


def test_a_rank_that_said_it_was_done_may_be_silent_for_ever() -> None:
    silences = _silences()
    silences.hear(1, _beat(3, is_done=True), 103.0)
    silences.hear(0, _beat(9), 999.0)
    assert silences.silent(1000.0) == {}


def test_a_rank_that_was_halted_itself_hears_the_others_before_it_judges_them() -> None:
    silences = _silences()
    for rank in range(2):
        silences.hear(rank, _beat(1), 101.0)
    for rank in range(2):  # awake again after 100 s, during which rank 0 went on
        silences.hear(rank, _beat(2 + 90 * (1 - rank)), 201.0)
    assert silences.silent(201.0) == {}


def test_one_rank_that_was_asked_to_stop_speaks_for_all() -> None:
    silences = _silences()
    assert not silences.is_stopping
    silences.hear(1, _beat(2, is_stopping=True), 101.0)
    assert silences.is_stopping


def _stood(stall: Stall, seconds: range, worked_s: dict[int, float]) -> list[int]:
    """Seconds at which all are called stuck."""
    found = []
    for second in seconds:
        for rank, value in worked_s.items():
            stall.hear(rank, Beat(number=second, host="a", pid=1, started_s=0, worked_s=value))
        if stall.is_stuck(float(second)):
            found.append(second)
    return found


def test_ranks_are_stuck_once_none_of_them_has_worked_for_the_limit() -> None:
    stall = Stall(limit_s=40.0, now_s=0.0)
    assert _stood(stall, range(1, 45), {0: 7.0, 1: 3.0})[0] == 41


def test_a_wait_is_honest_while_the_one_that_is_waited_for_works() -> None:
    stall = Stall(limit_s=40.0, now_s=0.0)
    for second in range(1, 500):
        assert _stood(stall, range(second, second + 1), {0: 7.0, 1: second / 1e6}) == []


def test_a_halted_machine_is_not_a_deadlock() -> None:
    stall = Stall(limit_s=40.0, now_s=0.0)
    assert _stood(stall, range(1, 30), {0: 7.0, 1: 3.0}) == []
    assert _stood(stall, range(5000, 5001), {0: 7.0, 1: 3.0}) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lost_peer_is_told_from_a_bug(error: RuntimeError, expected: bool) -> None:
    assert is_lost_peer(error) is expected
