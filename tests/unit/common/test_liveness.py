"""Silence of the other end, and pauses between attempts."""

from __future__ import annotations

import random
import statistics

from common.liveness import LOST_AFTER, Backoff, Finding, Liveness


def _look_until(liveness: Liveness, finding: Finding, now_s: float) -> float:
    """Look as often as one should; the time at which this is found."""
    while liveness.look(now_s) is not finding:
        now_s += liveness.check_s
        assert now_s < 1000.0
    return now_s


def test_a_silent_peer_is_asked_after_one_interval_and_lost_within_three() -> None:
    liveness = Liveness(2.0, now_s=0.0)
    assert 2.0 <= _look_until(liveness, Finding.ASK, 0.0) <= 2.5
    assert 2.0 * LOST_AFTER <= _look_until(liveness, Finding.LOST, 2.5) <= 6.0


def test_it_is_asked_once_a_silence() -> None:
    liveness = Liveness(2.0, now_s=0.0)
    now_s = _look_until(liveness, Finding.ASK, 0.0)
    assert liveness.look(now_s + 0.5) is Finding.FINE
    liveness.heard()
    assert _look_until(liveness, Finding.ASK, now_s + 0.5) >= now_s + 2.0


def test_a_peer_that_answers_each_question_is_never_lost() -> None:
    liveness = Liveness(2.0, now_s=0.0)
    for look in range(1000):
        finding = liveness.look(look * liveness.check_s)
        assert finding is not Finding.LOST
        if finding is Finding.ASK:
            liveness.heard()


def test_a_process_that_stood_still_itself_does_not_blame_the_peer() -> None:
    liveness = Liveness(2.0, now_s=0.0)
    assert liveness.look(100.0) is Finding.FINE
    assert liveness.silent_s < 1.0


def test_pauses_grow_to_a_bound_and_start_small_again_after_success() -> None:
    backoff = Backoff(random.Random(1))
    early = [Backoff(random.Random(seed)).pause_s() for seed in range(200)]
    late = []
    for seed in range(200):
        one = Backoff(random.Random(seed))
        late.append([one.pause_s() for _ in range(12)][-1])
    assert max(early) <= 0.1
    assert 0.5 < statistics.mean(late) <= max(late) <= 2.0
    for _ in range(12):
        backoff.pause_s()
    backoff.reset()
    assert backoff.pause_s() <= 0.1


def test_a_fleet_does_not_come_back_as_one() -> None:
    def nth_pause(seed: int) -> float:
        backoff = Backoff(random.Random(seed))
        return [backoff.pause_s() for _ in range(6)][-1]

    buckets = [0] * 10
    for seed in range(1000):
        buckets[int(nth_pause(seed) / 2.0 * 10)] += 1
    assert max(buckets) < 200
