"""Crashes and failures of the disk at every operation: what was acknowledged is there, in order.

The oracle knows what the log must hold after each of its records. A log that was opened again must
hold exactly what it held after some record, and that record is not before the last acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from broker.journal import compaction
from broker.journal import spare as spare_module
from broker.journal.log import Log
from broker.journal.records import Kind, decode_record_header
from broker.journal.segments import Segments
from broker.journal.spare import MAX_REUSABLE
from common.codec import Buffer
from common.errors import JournalError, JournalFullError
from tests.fake_disk import Fail, FakeDisk, Fault, Kill, Killed, Short
from tests.journal_workload import SEGMENT_BYTES, Contents, Workload, contents_of, open_log

TURNS = 40


class Life:
    """A log on a fake disk, opened again and again; each opening is checked."""

    def __init__(self, seed: int, *, capacity: int | None = None) -> None:
        self.random = Random(seed)
        self.disk = FakeDisk(capacity=capacity)
        self.work: Workload | None = None
        self.num_deaths = 0

    def live(self, at: int = 0, fault: Fault | None = None, *, turns: int = TURNS) -> None:
        """Open, check, work and close, or die of a fault at the operation of that number."""
        if fault is not None:
            self.disk.faults[self.disk.num_operations + at] = fault
        try:
            log = open_log(self.disk)
            self._check(log)
            self.work = Workload(self.random, log, self._contents())
            for _ in range(turns):
                self.work.turn()
            assert self.work.is_stalled or contents_of(log) == self.work.now
            log.close()
        except Killed:
            self.num_deaths += 1

    def crash(self) -> None:
        """kill -9 of the process, or the end of the system, with what it had not synced."""
        if self.random.random() < 0.3:
            self.disk.kill()
        else:
            self.disk.crash(self.random)

    def _contents(self) -> Contents:
        return self.work.at(self.work.log.last_sequence) if self.work else Contents()

    def _check(self, log: Log) -> None:
        if self.work is None:
            return
        assert log.last_sequence >= self.work.acknowledged, "an acknowledged record is gone"
        assert contents_of(log) == self.work.at(log.last_sequence)
        self.work.log = log


def _seeds(number: int) -> Iterable[int]:
    return range(number)


def test_what_was_acknowledged_survives_any_number_of_crashes_at_any_operation() -> None:
    deaths = 0
    for seed in _seeds(120):
        capacity = Random(seed).choice((None, None, 6, 9))
        life = Life(seed, capacity=capacity and capacity * SEGMENT_BYTES)
        for _ in range(4):
            at = life.random.randint(1, 250)
            life.live(at, Kill(life.random.random()))
            life.crash()
        life.live()
        deaths += life.num_deaths
    assert deaths > 200


@pytest.mark.slow
def test_a_crash_at_every_single_operation_of_one_life_and_of_its_recovery() -> None:
    """Killed at operation n, then at operation m of the recovery, then opened in peace."""
    reference = Life(11)
    reference.live(turns=25)
    num_operations = reference.disk.num_operations
    assert {"create", "rename", "unlink", "truncate"} <= set(reference.disk.history)
    for at in range(1, num_operations + 1):
        for second in (0, 1, 2, 3, 5, 8):
            life = Life(11)
            life.live(at, Kill(0.5), turns=25)
            life.random = Random(1000 * at + second)
            life.crash()
            if second:
                life.live(second, Kill(0.5), turns=2)
                life.crash()
            life.live(turns=3)


def test_the_disk_is_bounded_by_the_live_bytes_for_any_lifetimes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice the live bytes and five segments, once the upkeep that is due is done."""
    monkeypatch.setattr(compaction, "COPY_BYTES", 20_000)
    compared = 0
    for seed in _seeds(25):
        disk = FakeDisk()
        log = open_log(disk)
        work = Workload(Random(seed), log)
        for _ in range(150):
            work.turn()
            _settle(work)
            largest = max(SEGMENT_BYTES, work.longest)
            assert log.num_bytes <= 2 * log.live_bytes + (3 + MAX_REUSABLE) * largest
            assert log.num_bytes == disk.used
            compared += log.num_bytes > 4 * SEGMENT_BYTES
    assert compared > 500, "logs of many segments were among them"


def _settle(work: Workload) -> None:
    """Turns without records of their own until upkeep has nothing left to do."""
    is_done = False
    while not is_done:
        is_done = not work.log.maintain() and not work.log.wants_checkpoint
        if work.log.wants_checkpoint:
            work.checkpoint()
        work.commit()


def test_a_single_call_of_upkeep_copies_no_more_than_its_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "COPY_BYTES", 200_000)
    disk = FakeDisk()
    log = open_log(disk, segment_bytes=8 * SEGMENT_BYTES)
    for group in range(700):
        log.put((group, 0, 0), [bytes(10_000)])
        log.write()
    log.sync()
    log.drop(group for group in range(700) if group % 4)
    log.write()
    log.sync()
    calls = 0
    while log.maintain():
        assert log._staging.num_bytes <= 200_000 + 10_200
        log.write()
        log.sync()
        calls += 1
    log.write()
    log.sync()
    assert calls > 5
    assert log.num_bytes <= 2 * log.live_bytes + (3 + MAX_REUSABLE) * 8 * SEGMENT_BYTES


def test_turns_that_were_not_synced_are_lost_from_the_newest_backwards() -> None:
    """Over several segments, and also when the start that cuts them is cut short itself."""
    num_cut = 0
    for seed in _seeds(80):
        random, disk = Random(seed), FakeDisk()
        work = Workload(random, open_log(disk))
        work.longest, work.turnover = 40_000, 0.4
        for _ in range(random.randint(5, 40)):
            work.stage()
            work.log.write()
            if random.random() < 0.1:
                work.log.sync()
                work.acknowledged = work.log.last_sequence
            work.log.maintain()
        disk.crash(random)
        files = len(disk.files())
        for _ in range(2):
            disk.faults[disk.num_operations + random.randint(5, 40)] = Kill(random.random())
            with contextlib.suppress(Killed):
                open_log(disk)
            disk.crash(random)
        again = open_log(disk)
        assert again.last_sequence >= work.acknowledged
        assert contents_of(again) == work.at(again.last_sequence)
        num_cut += len(disk.files()) < files - 1
    assert num_cut > 10, "more than one segment was deleted"


class BusyDisk(FakeDisk):
    """While it syncs a file for one thread, another thread gets on with something."""

    meanwhile: Callable[[], None] | None = None

    def fdatasync(self, descriptor: int) -> None:
        work, self.meanwhile = self.meanwhile, None
        super().fdatasync(descriptor)
        if work is not None:
            work()


def test_turns_that_are_written_while_the_disk_syncs_the_last_ones_survive_like_any_other() -> None:
    """Also when the sync finds segments sealed and spares used up since it began."""
    for seed in _seeds(60):
        random, disk = Random(seed), BusyDisk()
        log = open_log(disk)
        work = Workload(random, log)
        work.longest, work.turnover = 20_000, 0.4
        _write_and_sync_at_once(work, disk, turns=random.randint(5, 40))
        disk.crash(random)
        again = open_log(disk)
        assert again.last_sequence >= work.acknowledged
        assert contents_of(again) == work.at(again.last_sequence)


def _write_and_sync_at_once(work: Workload, disk: BusyDisk, turns: int) -> None:
    log = work.log
    for _ in range(turns):
        work.stage()
        log.write()
        written = log.last_sequence

        def next_turn() -> None:
            if not log._segments.spare.lock.locked():  # a thread would wait there
                work.stage()
                log.write()

        disk.meanwhile = next_turn
        log.sync()
        work.acknowledged = written
        log.maintain()


def test_what_is_tidied_late_or_never_and_zeros_written_ahead_cost_no_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acknowledgements wait for the records alone; upkeep comes at any time after them."""
    monkeypatch.setattr(spare_module, "PREWRITTEN_BYTES", 9000)
    pieces = 0
    for seed in _seeds(80):
        random, disk = Random(seed), FakeDisk()
        work = Workload(random, open_log(disk))
        work.longest, work.turnover = 20_000, 0.4
        disk.faults[random.randint(30, 400)] = Kill(random.random())
        with contextlib.suppress(Killed):
            for _ in range(random.randint(5, 60)):
                pieces += _one_turn_with_late_upkeep(work)
        disk.crash(random)
        again = open_log(disk)
        assert again.last_sequence >= work.acknowledged
        assert contents_of(again) == work.at(again.last_sequence)
    assert pieces > 300


class WatchedDisk(FakeDisk):
    """Tells at which writes to the spare, and of seals, the lock of the spare was free."""

    segments: Segments | None = None
    salted = 0
    num_guarded = 0
    num_free = 0

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.segments is not None and (spare := self.segments.spare.segment) is not None:
            header = decode_record_header(self.salted, b"".join(buffers), 0)
            is_seal = header is not None and header.kind == Kind.SEAL
            if is_seal or descriptor == spare.descriptor:
                is_held = self.segments.spare.lock.locked()
                self.num_guarded += is_held
                self.num_free += not is_held
        return super().pwritev(descriptor, buffers, offset)


def test_no_zeros_are_on_their_way_while_the_log_goes_on_in_the_spare() -> None:
    """Written too late they would wipe out its first records."""
    disk = WatchedDisk()
    work = Workload(Random(5), open_log(disk))
    work.longest = 20_000
    disk.segments, disk.salted = work.log._segments, work.log._salted
    for _ in range(60):
        _one_turn_with_late_upkeep(work)
    assert disk.num_free == 0
    assert disk.num_guarded > 20


def _one_turn_with_late_upkeep(work: Workload) -> int:
    """Returns how many pieces of the spare were written ahead."""
    log, random, pieces = work.log, work.random, 0
    work.stage()
    log.write()
    written = log.last_sequence
    if random.random() < 0.5:
        log.make_durable()
        work.acknowledged = written
    if random.random() < 0.3:
        log.tidy()
    while random.random() < 0.6 and log.prewrite():
        pieces += 1
    log.maintain()
    return pieces


# --- a disk that refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["fdatasync", "fsync_directory", "rename", "unlink"])
def test_a_failed_sync_stops_the_log_at_once_wherever_it_comes(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page cache forgets what it could not write, so nothing may be built on a second try."""
    if operation == "unlink":
        monkeypatch.setattr(spare_module, "MAX_REUSABLE", 0)  # every old file is deleted
    reference = Life(3)
    reference.live()
    numbers = [n for n, name in enumerate(reference.disk.history, 1) if name == operation]
    assert len(numbers) >= 3
    for at in numbers[:-1]:  # the last unlink removes a spare that the next start might use
        life = Life(3)
        with pytest.raises(JournalError, match="Input/output error"):
            life.live(at, Fail(errno.EIO))
        operations = life.disk.num_operations
        if life.work is not None:
            for again in (life.work.commit, life.work.log.sync):
                with pytest.raises(JournalError, match="Input/output error"):
                    again()
        assert life.disk.num_operations <= operations + 1, "nothing is tried again"
        life.disk.crash(life.random)
        life.live(turns=3)


def test_what_only_the_page_cache_has_after_a_failed_sync_is_written_again_at_the_next_start() -> (
    None
):
    """The system takes it for written; the next start reads it and may build on it."""
    for seed in _seeds(30):
        life = Life(seed)
        life.live(turns=10)
        syncs = [n for n, name in enumerate(life.disk.history, 1) if name == "fdatasync"]
        life = Life(seed)
        with pytest.raises(JournalError, match="Input/output error"):
            life.live(Random(-seed).choice(syncs[3:-2]), Fail(errno.EIO), turns=10)
        life.disk.kill()
        log = open_log(life.disk)
        accepted = contents_of(log)
        life.disk.crash(life.random)
        assert contents_of(open_log(life.disk)) == accepted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_any_single_operation_loses_nothing_and_stops_nobody(
    code: int,
) -> None:
    reference = Life(4)
    reference.live()
    names = ("create", "allocate", "pwritev")
    numbers = [n for n, name in enumerate(reference.disk.history, 1) if name in names]
    assert len(numbers) > 50
    for at in numbers[4:]:  # not while the log is made
        life = Life(4)
        life.live(at, Fail(code))
        assert life.num_deaths == 0
        life.disk.crash(life.random)
        life.live(turns=3)


def test_a_write_that_stops_short_is_gone_on_with() -> None:
    reference = Life(6)
    reference.live(turns=15)
    numbers = [n for n, name in enumerate(reference.disk.history, 1) if name == "pwritev"]
    for at in numbers[1:]:
        life = Life(6)
        life.live(at, Short(1 + at % 50), turns=15)
        assert life.num_deaths == 0
        life.disk.crash(life.random)
        life.live(turns=3)


def test_a_full_disk_gives_space_back_to_itself_as_groups_end() -> None:
    """Payloads stop in time: what ends them always finds room."""
    for seed in _seeds(40):
        random = Random(seed)
        disk = FakeDisk(capacity=random.randint(4, 9) * SEGMENT_BYTES)
        log = open_log(disk)
        largest = random.choice((5000, 20_000, 40_000))
        group, stalls = 0, 0
        for _ in range(400):
            sizes = [random.randint(1, largest) for _ in range(random.choice((1, 30)))]
            while sizes and log.has_room(sizes[-1]):
                group += 1
                log.put((group, 0, 0), [random.randbytes(sizes.pop())])
            if sizes:
                stalls += 1
                log.drop(sorted(log.groups)[: random.randint(1, 3)])
            log.append(random.randbytes(20))
            if log.wants_checkpoint:
                log.checkpoint(random.randbytes(100))
            log.write()  # never raises JournalFullError
            log.sync()
            log.maintain()
        assert stalls > 0
        assert group > 20, "payloads came in again"


def test_upkeep_lets_go_of_nothing_before_the_drops_that_allow_it_are_written() -> None:
    log = open_log(FakeDisk())
    for group in range(20):
        log.put((group, 0, 0), [bytes(10_000)])
        log.write()
    assert len(log._segments.numbers) > 2
    log.drop(range(20))
    sequence = log.last_sequence
    assert log.maintain(), "there is something to do, later"
    assert log.last_sequence == sequence
    log.write()
    log.maintain()
    assert len(log._segments.numbers) == 1


def test_while_there_is_no_space_at_all_nothing_staged_is_lost() -> None:
    disk = FakeDisk(capacity=3 * SEGMENT_BYTES)
    log = open_log(disk)
    turns = []
    refusals = 0
    for number in range(400):
        turns.append(Random(number).randbytes(1000))
        log.append(turns[-1])
        try:
            log.write()
        except JournalFullError:
            refusals += 1
            if refusals == 30:
                disk.capacity = 100 * SEGMENT_BYTES
    assert refusals >= 30
    log.write()
    log.sync()
    disk.crash(Random(0))
    assert [bytes(turn) for turn in open_log(disk).turns()] == turns
