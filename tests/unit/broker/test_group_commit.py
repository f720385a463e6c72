"""Replies and the syncs that they wait for."""

from __future__ import annotations

import threading

import pytest

from broker.exchange import Answer
from broker.group_commit import SLOW_SYNC_S, GroupCommit
from broker.outbox import Outgoing
from common.clock import ManualClock
from common.errors import JournalError
from common.messages import Ack


class SlowDisk:
    """A journal whose syncs end when the test says so, or at once."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.takes_s = 0.0
        self.is_held = False
        self.fails = False
        self.num_syncs = 0
        self.went_on = threading.Event()

    def write(self) -> None:
        """Nothing to write."""

    def sync(self) -> None:
        if self.is_held:
            assert self.went_on.wait(10.0)
            self.went_on.clear()
        self.num_syncs += 1
        self.clock.advance(self.takes_s)
        if self.fails:
            raise JournalError("input/output error")


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.disk = SlowDisk(self.clock)
        self.commits = GroupCommit(self.disk, self.clock.now_s)
        self.done = threading.Semaphore(0)

    def make_slow(self) -> None:
        """From here on a sync takes long enough for the thread, and ends with :meth:`end_sync`."""
        self.commits.use_thread(self.done.release)
        self.disk.takes_s = 100 * SLOW_SYNC_S
        assert self.turn(0) == [0]
        self.disk.is_held = True

    def turn(self, number: int, *, has_events: bool = True) -> list[int]:
        self.commits.stage([Outgoing(b"p", number, Answer(Ack()))], has_events=has_events)
        return self.advance()

    def advance(self) -> list[int]:
        return [item.request_id for item in self.commits.advance()]

    def end_sync(self) -> None:
        self.disk.went_on.set()
        assert self.done.acquire(timeout=10.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_on_a_quick_disk_a_turn_is_answered_at_its_end(bench: Bench) -> None:
    bench.commits.use_thread(bench.done.release)
    assert bench.turn(1) == [1]
    assert bench.disk.num_syncs == 1
    assert bench.turn(2, has_events=False) == [2]
    assert bench.disk.num_syncs == 1, "what changed nothing needs no sync"
    bench.commits.close()


def test_one_sync_that_the_disk_holds_up_does_not_make_it_slow(bench: Bench) -> None:
    bench.commits.use_thread(bench.done.release)
    for number in range(5):
        assert bench.turn(number) == [number]
    bench.disk.takes_s = 100 * SLOW_SYNC_S
    assert bench.turn(6) == [6]
    bench.disk.takes_s = 0.0
    assert bench.turn(7) == [7], "without the thread, which would have kept the reply"
    bench.commits.close()


def test_turns_gather_while_a_slow_sync_runs_and_share_the_next(bench: Bench) -> None:
    bench.make_slow()
    assert bench.turn(1) == []
    assert bench.turn(2) == []
    assert bench.turn(3) == []
    bench.end_sync()
    assert bench.advance() == [1], "the sync began before turns 2 and 3 were written"
    assert bench.advance() == []
    bench.end_sync()
    assert bench.advance() == [2, 3]
    assert bench.disk.num_syncs == 3
    bench.commits.close()


def test_a_reply_without_events_never_overtakes_what_it_may_tell_of(bench: Bench) -> None:
    bench.make_slow()
    assert bench.turn(1) == []
    assert bench.turn(2, has_events=False) == []
    bench.end_sync()
    assert bench.advance() == [1, 2], "nothing was written between them"
    bench.commits.close()


def test_no_reply_leaves_after_its_sync_has_failed_in_the_thread(bench: Bench) -> None:
    bench.make_slow()
    bench.disk.fails = True
    assert bench.turn(1) == []
    bench.end_sync()
    for _ in range(2):
        with pytest.raises(JournalError):
            bench.advance()
    bench.commits.close()


def test_a_disk_that_has_turned_quick_is_synced_without_the_thread_again(bench: Bench) -> None:
    bench.make_slow()
    bench.disk.takes_s = 0.0
    bench.disk.is_held = False
    number = 1
    while bench.turn(number) == []:
        assert bench.done.acquire(timeout=10.0)
        assert bench.advance() == [number]
        number += 1
        assert number < 100, "the thread is used for ever"
    bench.commits.close()
