"""The broker's journal: what survives, what is refused with a cure, what each promise means."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from broker import step_rules
from broker.events import AnyEvent, Counted, Counter, HandedOver, Sealed, Trained
from broker.journal import Journal
from broker.journal import journal as journal_module
from broker.journal import spare as spare_module
from broker.journal.files import OsFiles
from broker.journal.spare import MAX_REUSABLE
from broker.journal.upkeep import Upkeep
from broker.ledger import Ledger
from broker.ledger_state import Decision, LedgerState
from broker.snapshots import SnapshotPace
from common.errors import JournalError, JournalFullError
from common.types import EvictReason, RolloutHeader
from tests.broker_process import arrays_of
from tests.builders import rollout_header
from tests.fake_disk import FakeDisk
from tests.unit.broker.ledger_driver import Driver

FOLDER = Path("/run/broker/journal")
SEGMENT_BYTES = 64 << 10


PACE = SnapshotPace(min_events=5, events_per_rollout=0.0, slice_rollouts=2)
"""Snapshots after a few events, a group a slice."""


def _journal(folder: Path, run_id: str = "run") -> Journal:
    return Journal(folder / "broker" / "journal", run_id, segment_bytes=SEGMENT_BYTES, pace=PACE)


def _on(disk: FakeDisk, **settings: object) -> Journal:
    chosen = {"segment_bytes": SEGMENT_BYTES, "files": disk} | settings
    return Journal(FOLDER, "run", **chosen)  # type: ignore[arg-type] # test settings


COUNTED = Counted(what=Counter.DUPLICATE)
"""The smallest event."""


def _roomy_driver() -> Driver:
    """A ledger that takes any number of groups."""
    return Driver(groups_per_step=1000)


def _driver() -> Driver:
    """A ledger with something in every part of its state."""
    driver = Driver()
    driver.step(0)
    driver.verified()
    driver.resume(0, [[0, 1]])
    return driver


def _replayed(driver: Driver, journal: Journal) -> LedgerState:
    state, history = journal.load()
    return Ledger.replay(driver.rules, state, history).state


def _payload(group_id: int, num_bytes: int = 3000) -> tuple[RolloutHeader, list[bytes]]:
    tokens = num_bytes // 8
    header = rollout_header(group_id=group_id, num_completion=tokens)
    fill = Random(group_id).randbytes
    return header, [fill(size) for size in header.frame_bytes()]


# --- what survives --------------------------------------------------------------------------------


def test_committed_events_rebuild_the_ledger_and_others_are_forgotten(tmp_path: Path) -> None:
    driver = _driver()
    journal = _journal(tmp_path)
    journal.add_events(driver.history)
    journal.commit()
    lost = driver.leased()
    journal.add_events(driver.history[-1:])
    journal.close()
    again = _journal(tmp_path)
    assert lost.lease.attempt > 0
    rebuilt = _replayed(driver, again)
    assert rebuilt.next_attempt == lost.lease.attempt
    assert rebuilt.next_group_id == 3
    again.close()


def test_a_snapshot_replaces_the_events_and_leads_to_the_same_state(tmp_path: Path) -> None:
    driver = _driver()
    journal = _journal(tmp_path)
    journal.add_events(driver.history)
    assert journal.wants_snapshot(driver.ledger.state)
    journal.add_snapshot(driver.ledger.state)
    assert not journal.wants_snapshot(driver.ledger.state)
    journal.commit()
    cut = len(driver.history)
    driver.verified()
    journal.add_events(driver.history[cut:])
    journal.commit()
    journal.close()
    again = _journal(tmp_path)
    state, history = again.load()
    assert state is not None
    assert len(list(history)) == len(driver.history) - cut
    assert _replayed(driver, again) == driver.ledger.state
    assert again.wants_snapshot(driver.ledger.state), "events are counted across a restart"
    again.close()


def _turn(driver: Driver, journal: Journal, num_kept: int) -> int:
    """Journal what has happened and a slice of a snapshot; returns how many events are kept."""
    journal.add_events(driver.history[num_kept:])
    driver.engine.snapshot = journal.advance_snapshot(driver.ledger.state)
    journal.commit()
    return len(driver.history)


def test_a_snapshot_spread_over_turns_is_the_state_at_its_beginning_and_later_events_stay() -> None:
    """After every turn a restart leads to the same state; so it does where it cuts a snapshot."""
    disk, driver = FakeDisk(), _roomy_driver()
    journal = _on(disk, pace=SnapshotPace(min_events=40, events_per_rollout=0, slice_rollouts=4))
    num_kept = num_spread = num_snapshots = replayed = 0
    leases = [driver.leased() for _ in range(3)]
    for _ in range(60):
        driver.verified()
        leases.append(driver.leased())
        assert driver.submit(leases.pop(0), 0) == "accepted"
        while len(driver.ledger.groups) > 16:
            driver.do(step_rules.evict_groups(driver.ledger, [oldest(driver)], EvictReason.STALE))
        before, num_kept = driver.engine.snapshot, _turn(driver, journal, num_kept)
        num_spread += before is not None
        num_snapshots += before is not None and driver.engine.snapshot is None
        again = _on(_killed(disk))
        state, history = again.load()
        events = list(history)
        assert Ledger.replay(driver.rules, state, events).state == driver.ledger.state
        replayed = max(replayed, len(events))
        again.close()
    assert num_snapshots >= 4
    assert num_spread > 5 * num_snapshots, "each took several turns"
    assert replayed < 280, "no more than what came since the one before began"
    journal.close()


def _killed(disk: FakeDisk) -> FakeDisk:
    """What another process finds if this one dies here."""
    left = disk.copy()
    left.kill()
    return left


def oldest(driver: Driver) -> int:
    """The live group that was admitted first."""
    return next(iter(driver.ledger.groups))


def test_no_turn_journals_more_than_a_slice_of_a_snapshot() -> None:
    driver = _roomy_driver()
    for _ in range(300):
        driver.verified()
    journal = _on(FakeDisk(), pace=SnapshotPace(min_events=1, slice_rollouts=20))
    sizes = []
    num_kept = _turn(driver, journal, 0)
    while driver.engine.snapshot is not None:
        before = journal._log.last_sequence, journal.live_bytes
        num_kept = _turn(driver, journal, num_kept)
        assert journal._log.last_sequence <= before[0] + 2, "a part, and the floor behind it"
        sizes.append(journal.live_bytes - before[1])
    assert len(sizes) == 300 * 2 // 20
    assert max(sizes) < 20 * 300
    journal.close()


def test_on_a_full_disk_a_snapshot_is_not_spread_and_lets_go_of_old_segments() -> None:
    disk, driver = FakeDisk(), _roomy_driver()
    pace = SnapshotPace(min_events=20, slice_rollouts=2)
    journal = _on(disk, pace=pace, clock=iter(range(1 << 62)).__next__)
    num_kept = 0
    while driver.engine.snapshot is None:
        driver.verified()
        num_kept = _turn(driver, journal, num_kept)
    disk.capacity = disk.used
    while not journal._log.is_full:
        journal.add_payload(*_payload(1 << 20, 20_000))
        journal.commit()
    num_kept = _turn(driver, journal, num_kept)
    assert driver.engine.snapshot is None, "it came at once"
    journal.drop_payloads([1 << 20])
    while not journal.accepts_payloads:
        driver.do(Decision((COUNTED,), None))
        num_kept = _turn(driver, journal, num_kept)
    assert disk.used <= disk.capacity
    assert _replayed(driver, journal) == driver.ledger.state
    journal.close()


def test_payloads_come_back_byte_for_byte_until_their_group_has_ended(tmp_path: Path) -> None:
    header = rollout_header(group_id=3, index=1, attempt=7)
    frames = arrays_of(header.rollout_id).frames()
    journal = _journal(tmp_path)
    journal.add_payload(header, frames)
    assert journal.payload(header.rollout_id)[0] == header, "readable before it is written"
    journal.commit()
    journal.close()
    again = _journal(tmp_path)
    kept, arrays = again.payload(header.rollout_id)
    assert kept == header
    assert [bytes(frame) for frame in arrays] == [bytes(frame) for frame in frames]
    assert list(again.payload_groups) == [3]
    again.drop_payloads([3])
    with pytest.raises(KeyError):
        again.payload(header.rollout_id)
    again.commit()
    again.close()
    last = _journal(tmp_path)
    assert not last.payload_groups
    last.close()


def test_a_payload_is_the_same_from_the_cache_from_the_file_and_before_it_is_written() -> None:
    disk = FakeDisk()
    journal = _on(disk, cache_bytes=7000)
    for group in range(4):
        journal.add_payload(*_payload(group))
    staged = [journal.payload(_payload(group)[0].rollout_id) for group in range(4)]
    journal.commit()
    written = [journal.payload(_payload(group)[0].rollout_id) for group in range(4)]
    for group in range(4):
        header, frames = _payload(group)
        for kept in (staged[group], written[group]):
            assert kept[0] == header
            assert [bytes(frame) for frame in kept[1]] == frames
    journal.close()


def test_the_files_stay_bounded_while_groups_come_and_go(tmp_path: Path) -> None:
    driver = Driver()
    journal = _journal(tmp_path)
    for round_number in range(60):
        journal.add_payload(*_payload(round_number, 30_000))
        driver.step(round_number)
        driver.checkpoint(round_number + 1)
        journal.add_events(driver.history)
        driver.history.clear()
        journal.advance_snapshot(driver.ledger.state)
        journal.drop_payloads([round_number])
        journal.commit()
        on_disk = sum(file.stat().st_size for file in (tmp_path / "broker/journal").iterdir())
        assert on_disk == journal.num_bytes
    journal.commit()  # deletes what the last turn let go
    assert journal.num_bytes <= 2 * journal.live_bytes + (3 + MAX_REUSABLE) * SEGMENT_BYTES
    journal.close()


def test_the_segments_that_old_events_hold_back_ask_for_a_snapshot() -> None:
    """Fewer events than would ask for one by themselves, but they fill the disk."""
    driver = Driver()
    journal = _on(FakeDisk())
    journal.add_events(driver.history)
    journal.commit()
    for group in range(200):
        journal.add_payload(*_payload(group))
        journal.drop_payloads([group - 1])
        journal.commit()
        journal.advance_snapshot(driver.ledger.state)
    assert journal.num_bytes <= 2 * journal.live_bytes + 4 * SEGMENT_BYTES
    assert _replayed(driver, journal) == driver.ledger.state
    journal.close()


# --- promises -------------------------------------------------------------------------------------


def _commit_payloads(journal: Journal, groups: range) -> None:
    """One turn a payload."""
    for group in groups:
        journal.add_payload(*_payload(group))
        journal.commit()


def _sync_after_write(journal: Journal, disk: FakeDisk) -> int:
    """Number of file operations that :meth:`Journal.sync` takes after one payload."""
    journal.add_payload(*_payload(1))
    journal.write()
    before = disk.num_operations
    journal.sync()
    return disk.history[before:].count("fdatasync")


def test_a_durable_acknowledgement_waits_for_the_disk_and_a_relaxed_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "RELAXED_WINDOW_S", 3600.0)
    durable, relaxed = FakeDisk(), FakeDisk()
    journals = [_on(durable), _on(relaxed, acks="relaxed")]
    assert _sync_after_write(journals[0], durable) >= 1
    assert _sync_after_write(journals[1], relaxed) == 0
    for disk in (durable, relaxed):
        disk.kill()
        again = _on(disk)
        assert list(again.payload_groups) == [1], "both survive kill -9"
        again.close()


class _Idle:
    """Stands for the thread: counts how often it is told to look, and never does."""

    def __init__(self, _: object) -> None:
        self.num_looks = 0

    def look(self) -> None:
        self.num_looks += 1

    def stop(self) -> None:
        """Nothing runs."""


def test_with_a_thread_for_upkeep_a_reply_waits_for_its_records_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "Upkeep", _Idle)
    operations = []
    for has_thread in (False, True):
        disk = FakeDisk()
        journal = _on(disk)
        if has_thread:
            journal.use_thread()
        during: list[str] = []
        for group in range(60):
            journal.add_payload(*_payload(group, 9000))
            journal.drop_payloads([group - 5])
            journal.write()
            before = disk.num_operations
            journal.sync()
            during += disk.history[before:]
            journal.maintain()
        operations.append(set(during))
    inline, threaded = operations
    assert {"truncate", "rename", "fsync_directory"} <= inline
    assert threaded == {"fdatasync"}


def test_upkeep_in_its_thread_keeps_the_files_bounded_and_every_payload_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "Upkeep", partial(Upkeep, pause_s=0.0))
    monkeypatch.setattr(spare_module, "PREWRITTEN_BYTES", 1024)
    journal = _journal(tmp_path)
    journal.use_thread()
    for group in range(400):
        journal.add_payload(*_payload(group, 9000))
        journal.drop_payloads([group - 5])
        journal.commit()
    journal.close()
    again = _journal(tmp_path)
    assert list(again.payload_groups) == [395, 396, 397, 398, 399]
    for group in again.payload_groups:
        header, frames = _payload(group, 9000)
        assert [bytes(frame) for frame in again.payload(header.rollout_id)[1]] == frames
    assert again.num_bytes <= 2 * again.live_bytes + 5 * SEGMENT_BYTES
    again.close()


class _BusyFiles(OsFiles):
    """Something else goes on while a file is trimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] | None = None

    def truncate(self, descriptor: int, size: int) -> None:
        os.fstat(descriptor)  # an open file
        super().truncate(descriptor, size)
        action, self.meanwhile = self.meanwhile, None
        if action is not None:
            action()


def test_what_is_sealed_and_released_while_upkeep_trims_is_left_for_its_next_turn(
    tmp_path: Path,
) -> None:
    files = _BusyFiles()
    journal = Journal(tmp_path / "journal", "run", segment_bytes=SEGMENT_BYTES, files=files)
    log = journal._log

    def go_on(groups: range) -> None:
        for group in groups:
            journal.add_payload(*_payload(group, 9000))
            journal.drop_payloads([group - 2])
            journal.write()
            log.make_durable()
            journal.maintain()

    files.meanwhile = lambda: go_on(range(30, 60))
    go_on(range(30))
    for _ in range(3):
        log.tidy()
    go_on(range(60, 90))
    for group in (88, 89):
        header, frames = _payload(group, 9000)
        assert [bytes(frame) for frame in journal.payload(header.rollout_id)[1]] == frames
    journal.close()


def test_a_disk_that_fails_in_the_thread_ends_the_journal_at_its_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = OsFiles()
    journal = Journal(tmp_path / "journal", "run", segment_bytes=SEGMENT_BYTES, files=files)

    def fail(_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal.use_thread()
    monkeypatch.setattr(files, "fsync_directory", fail)
    with pytest.raises(JournalError, match="Input/output error"):  # noqa: PT012 - whichever it is
        for group in range(10_000):
            journal.add_payload(*_payload(group % 7, 9000))
            journal.commit()
    journal.close()


def test_a_crash_takes_from_a_relaxed_journal_its_newest_turns_and_never_part_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "RELAXED_WINDOW_S", 3600.0)
    kept = set()
    for seed in range(60):
        disk = FakeDisk()
        journal = _on(disk, acks="relaxed")
        driver = _roomy_driver()
        journal.add_events(driver.history)
        journal.commit()
        journal._log.sync()
        for _ in range(10):
            done = len(driver.history)
            group_id = driver.verified()
            journal.add_payload(*_payload(group_id, 9000))
            journal.add_events(driver.history[done:])
            journal.commit()
        disk.crash(Random(seed))
        again = _on(disk)
        state = _replayed(driver, again)
        assert all(group in again.payload_groups for group in state.groups)
        whole = Ledger.replay(driver.rules, None, driver.history[: _num_events(again)]).state
        assert state == whole
        kept.add(state.next_group_id)
        again.close()
    assert len(kept) > 2, "crashes came at different places"


def _num_events(journal: Journal) -> int:
    return len(list(journal.load()[1]))


@pytest.mark.parametrize(
    "event", [Sealed(), Trained(policy_step=1), HandedOver(group_ids=(1,), policy_step=0)]
)
def test_what_the_consumer_is_told_is_durable_under_relaxed_acknowledgements(
    monkeypatch: pytest.MonkeyPatch, event: AnyEvent
) -> None:
    monkeypatch.setattr(journal_module, "RELAXED_WINDOW_S", 3600.0)
    for seed in range(8):
        disk = FakeDisk()
        journal = _on(disk, acks="relaxed")
        journal.add_payload(*_payload(1))
        journal.commit()
        journal.add_events([event])
        journal.commit()
        disk.crash(Random(seed))
        again = _on(disk)
        assert list(again.load()[1]) == [event]
        assert list(again.payload_groups) == [1], "and all that came before"
        again.close()


def test_a_relaxed_journal_is_synced_by_itself_within_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "RELAXED_WINDOW_S", 0.01)
    disk = FakeDisk()
    journal = _on(disk, acks="relaxed")
    journal.add_payload(*_payload(1))
    journal.commit()
    while not journal._log._segments.durable:
        pass  # ends by itself, or by the time limit of the test
    disk.crash(Random(1))
    again = _on(disk)
    assert list(again.payload_groups) == [1]
    again.close()


def test_a_disk_that_fails_behind_a_relaxed_acknowledgement_stops_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "RELAXED_WINDOW_S", 0.01)
    disk = FakeDisk()
    journal = _on(disk, acks="relaxed")
    disk.failing["fdatasync"] = errno.EIO
    with pytest.raises(JournalError, match="Input/output error"):
        _commit_payloads(journal, range(1 << 30))


# --- what is refused ------------------------------------------------------------------------------


def _other_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("these are my notes")


def _other_run(folder: Path) -> None:
    Journal(folder, "another", segment_bytes=SEGMENT_BYTES).close()


def _a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where a folder must be")


def _older_journal(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.with_name("journal.sqlite").write_bytes(b"SQLite format 3\0")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_other_files, "is not a headrace journal, it holds 'notes.txt'"),
        (_other_run, "belongs to run 'another', not 'run'"),
        (_a_file, "File exists"),
        (_older_journal, "journal.sqlite: was written by an older headrace"),
    ],
)
def test_what_cannot_be_this_runs_journal_is_refused_and_left_alone(
    tmp_path: Path, spoil: Callable[[Path], None], cause: str
) -> None:
    folder = tmp_path / "broker" / "journal"
    spoil(folder)
    before = _bytes_below(tmp_path)
    with pytest.raises(JournalError, match=cause) as refused:
        Journal(folder, "run")
    assert str(folder.parent) in str(refused.value)
    assert "run.directory" in str(refused.value) or "path" in str(refused.value)
    assert {p: b for p, b in _bytes_below(tmp_path).items() if p.name != "lock"} == {
        p: b for p, b in before.items() if p.name != "lock"
    }


def _bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_broker_is_locked_out_until_the_first_has_gone(tmp_path: Path) -> None:
    first = _journal(tmp_path)
    with pytest.raises(JournalError, match="another broker uses it"):
        _journal(tmp_path)
    first.close()
    _journal(tmp_path).close()


def test_a_damaged_payload_is_named_with_its_file_and_byte_when_it_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "run", segment_bytes=SEGMENT_BYTES, cache_bytes=0)
    header, frames = _payload(1)
    journal.add_payload(header, frames)
    journal.commit()
    (segment,) = (tmp_path / "journal").glob("*01.log")
    data = segment.read_bytes()
    position = data.index(frames[1][:32])
    with open(segment, "r+b") as file:
        file.seek(position)
        file.write(bytes([data[position] ^ 1]))
    with pytest.raises(JournalError, match=r"segment-0000000001.log: damaged at byte 4096"):
        journal.payload(header.rollout_id)
    journal.close()


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_takes_no_payloads_but_control_records_and_recovers_by_itself() -> None:
    disk = FakeDisk(capacity=3 * SEGMENT_BYTES)
    journal = _on(disk)
    groups = 0
    while journal.accepts_payloads:
        header, frames = _payload(groups, 9000)
        if journal.has_room(sum(header.frame_bytes())):
            journal.add_payload(header, frames)
            groups += 1
        journal.commit()
    assert groups > 10
    for group in range(groups):
        journal.add_events([COUNTED])
        journal.drop_payloads([group])
        journal.commit()
    while not journal.accepts_payloads:
        journal.commit()
    assert disk.used <= 3 * SEGMENT_BYTES
    assert _num_events(journal) == groups
    journal.close()


def test_without_any_room_everything_stays_staged_and_is_written_in_order_later() -> None:
    disk = FakeDisk(capacity=2 * SEGMENT_BYTES)
    journal, state = _on(disk), LedgerState()
    with pytest.raises(JournalFullError, match="nothing acknowledged is lost"):
        _commit_events(journal)
    journal.add_snapshot(state)
    journal.add_events([COUNTED] * 7)
    with pytest.raises(JournalFullError):
        journal.commit()
    assert _num_events(journal) in range(1000, 10_000, 1000), "whole turns were written"
    disk.capacity = 4 * SEGMENT_BYTES
    _until_written(journal)
    journal.close()
    again = _on(disk)
    assert again.load()[0] == state
    assert _num_events(again) == 7
    again.close()


def _commit_events(journal: Journal) -> None:
    """A thousand events a turn, without end."""
    while True:
        journal.add_events([COUNTED] * 1000)
        journal.commit()


def _until_written(journal: Journal) -> None:
    """Try again as a server does; the journal looks for space from time to time."""
    while True:
        try:
            journal.commit()
            return
        except JournalFullError:
            continue


def test_a_size_limit_of_the_journal_is_a_full_disk(tmp_path: Path) -> None:
    journal = Journal(
        tmp_path / "journal", "run", segment_bytes=SEGMENT_BYTES, max_bytes=3 * SEGMENT_BYTES
    )
    group = 0
    while journal.accepts_payloads:
        journal.add_payload(*_payload(group, 20_000))
        journal.commit()
        group += 1
    assert journal.num_bytes <= 3 * SEGMENT_BYTES
    journal.drop_payloads(range(group))
    journal.commit()
    while not journal.accepts_payloads:
        journal.commit()
    journal.close()


def test_the_operating_systems_own_lack_of_space_is_the_same(tmp_path: Path) -> None:
    class FullFiles(OsFiles):
        is_full = False

        def allocate(self, descriptor: int, size: int) -> None:
            if self.is_full:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            super().allocate(descriptor, size)

    files = FullFiles()
    journal = Journal(tmp_path / "journal", "run", segment_bytes=SEGMENT_BYTES, files=files)
    files.is_full = True
    group = 0
    while journal.accepts_payloads:
        journal.add_payload(*_payload(group, 20_000))
        journal.commit()
        group += 1
    names = {path.name for path in (tmp_path / "journal").iterdir()}
    assert not any(name.endswith(".new") for name in names), "no half-made file is left"
    files.is_full = False
    while not journal.accepts_payloads:
        journal.commit()
    journal.close()


@pytest.mark.parametrize("operation", ["fdatasync", "pwritev", "fsync_directory", "rename"])
def test_a_disk_that_fails_ends_the_journal_at_once_and_for_good(operation: str) -> None:
    disk = FakeDisk()
    journal = _on(disk)
    journal.add_payload(*_payload(1))
    journal.commit()
    disk.failing[operation] = errno.EIO
    with pytest.raises(JournalError, match="Input/output error .*nothing acknowledged is lost"):
        _commit_payloads(journal, range(2, 40))
    disk.failing.clear()
    asked = disk.num_operations
    with pytest.raises(JournalError, match="Input/output error"):
        journal.commit()
    journal.close()
    assert disk.history[asked:] == [], "a disk that failed is not asked again"
    disk.crash(Random(0))
    again = _on(disk)
    assert 1 in again.payload_groups
    again.close()
