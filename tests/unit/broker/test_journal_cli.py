"""``headrace journal check|dump|salvage``: what they say, and what a salvaged journal holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from broker.groups import Phase
from broker.journal import Journal
from broker.journal.files import OsFiles
from broker.journal.inspection import entries
from broker.journal.records import Kind
from broker.journal.salvage import salvage
from broker.journal.scan import DamagedError
from broker.journal_cli import journal as command
from broker.ledger import Ledger
from broker.snapshots import SnapshotPace
from common.errors import JournalError
from tests.builders import rollout_header
from tests.unit.broker.ledger_driver import Driver

SEGMENT_BYTES = 64 << 10
PACE = SnapshotPace(min_events=1, events_per_rollout=0.0, slice_rollouts=2)
"""A group a slice."""


class Run:
    """A journal with a ledger behind it; every turn is committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "journal"
        self.journal = self._open()
        self.driver = Driver(groups_per_step=100)
        self._num_kept = 0
        self.keep()

    def keep(self) -> None:
        """Commit what has happened."""
        self.journal.add_events(self.driver.history[self._num_kept :])
        self._num_kept = len(self.driver.history)
        self.journal.commit()

    def group(self) -> int:
        """A verified group whose two rollouts have their arrays in the journal."""
        group_id = self.driver.verified()
        for item in self.driver.ledger.groups[group_id].indices:
            assert item.rollout is not None
            fill = Random(group_id).randbytes
            self.journal.add_payload(item.rollout, [fill(n) for n in item.rollout.frame_bytes()])
        self.keep()
        return group_id

    def slice(self) -> bool:
        """Journal a slice of a snapshot; returns whether more are to come."""
        snapshot = self.journal.advance_snapshot(self.driver.ledger.state)
        self.driver.engine.snapshot = snapshot
        self.journal.commit()
        return snapshot is not None

    def kill(self) -> None:
        """Leave the files as kill -9 leaves them."""
        spoilt = self.folder.with_name("killed")
        shutil.copytree(self.folder, spoilt)
        self.journal.close()
        shutil.rmtree(self.folder)
        spoilt.rename(self.folder)

    def reopened(self, folder: Path) -> Ledger:
        """The ledger that a broker would start with."""
        journal = self._open(folder)
        state, history = journal.load()
        ledger = Ledger.replay(self.driver.rules, state, history)
        for group in ledger.groups.values():
            for item in group.indices:
                if item.rollout is not None:
                    journal.payload(item.rollout.rollout_id)
        journal.close()
        return ledger

    def _open(self, folder: Path | None = None) -> Journal:
        return Journal(folder or self.folder, "run", segment_bytes=SEGMENT_BYTES, pace=PACE)

    def offset_of(self, kind: Kind, number: int) -> tuple[Path, int]:
        """File and byte of the n-th record of a kind."""
        from broker.journal.inspection import _scan, opened

        with opened(self.folder) as (files, contents):
            scan = _scan(files, contents)
            records = [record for record in scan if record.header.kind == kind]
            found = records[number]
            path = next(each.path for each in scan.segments if each.number == found.segment)
            return path, found.offset

    def spoil(self, kind: Kind, number: int) -> tuple[Path, int]:
        """Change a bit in the body of the n-th record of a kind."""
        path, offset = self.offset_of(kind, number)
        data = bytearray(path.read_bytes())
        data[offset + 60] ^= 1
        path.write_bytes(data)
        return path, offset


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def _invoke(*arguments: object) -> str:
    done = CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# --- check and dump -------------------------------------------------------------------------------


def test_check_prints_the_totals_of_a_closed_and_of_a_killed_journal(run: Run) -> None:
    for _ in range(5):
        run.group()
    run.kill()
    text = _invoke("check", run.folder)
    assert "sound" in text
    assert "5 groups with 10 payloads" in text
    assert f"the next is event {len(run.driver.history)}" in text
    assert "killed" in text
    Journal(run.folder, "run", segment_bytes=SEGMENT_BYTES).close()
    assert "closed" in _invoke("check", run.folder)


def test_check_changes_nothing_and_says_where_a_torn_tail_begins(run: Run) -> None:
    run.group()
    run.kill()
    (path, offset), before = run.offset_of(Kind.TURN, -1), {}
    data = bytearray(path.read_bytes())
    data[offset + 100 : offset + 200] = bytes(100)
    path.write_bytes(data)
    before = {each: each.read_bytes() for each in run.folder.iterdir()}
    assert f"torn tail at byte {offset} of {path}" in _invoke("check", run.folder)
    assert {each: each.read_bytes() for each in run.folder.iterdir()} == before


def test_check_names_file_and_byte_of_damage(run: Run) -> None:
    run.group()
    run.group()
    run.journal.close()
    path, offset = run.spoil(Kind.PUT, 1)
    with pytest.raises(DamagedError, match=f"{path}: damaged at byte {offset}: "):
        _invoke("check", run.folder)


def test_a_journal_that_a_broker_uses_and_a_folder_without_one_are_refused(
    run: Run, tmp_path: Path
) -> None:
    with pytest.raises(JournalError, match="another broker uses it"):
        _invoke("check", run.folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(JournalError, match="holds no segments"):
        _invoke("check", tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(JournalError, match="No such file or directory"):
        _invoke("check", tmp_path / "absent")
    run.journal.close()


def test_dump_prints_one_object_an_event_and_headers_of_payloads_without_arrays(run: Run) -> None:
    group_id = run.group()
    run.journal.drop_payloads([group_id])
    run.keep()
    run.journal.add_snapshot(run.driver.ledger.state)
    run.journal.commit()
    run.journal.close()
    lines = [json.loads(line) for line in _invoke("dump", run.folder).splitlines()]
    events = [line for line in lines if "event" in line]
    assert [line["event"] for line in events] == list(range(len(run.driver.history)))
    assert [line["type"] for line in events] == [type(e).__name__ for e in run.driver.history]
    payloads = [line["payload"]["rollout_id"] for line in lines if "payload" in line]
    assert payloads == [{"group_id": group_id, "index": i, "attempt": 1} for i in range(2)]
    dropped = [line["dropped_groups"] for line in lines if "dropped_groups" in line]
    assert dropped == [[group_id]]
    assert [line["snapshot"] for line in lines if "snapshot" in line] == [len(events)]
    parts = [line for line in lines if "snapshot_part" in line]
    assert [(line["groups"], line["is_last"]) for line in parts] == [([], False), ([0], True)]
    late = [json.loads(line) for line in _invoke("dump", run.folder, "--since", 5).splitlines()]
    assert min(line["event"] for line in late if "event" in line) == 5


# --- salvage --------------------------------------------------------------------------------------


def test_a_sound_journal_is_salvaged_whole(run: Run, tmp_path: Path) -> None:
    for _ in range(4):
        run.group()
    run.kill()
    text = _invoke("salvage", run.folder, "--into", tmp_path / "copy")
    assert "4 live groups with 8 payloads" in text
    assert "nothing is lost" in text
    assert run.reopened(tmp_path / "copy").state == run.driver.ledger.state


def test_a_damaged_payload_costs_its_rollout_which_is_sampled_again(
    run: Run, tmp_path: Path
) -> None:
    groups = [run.group() for _ in range(4)]
    run.journal.close()
    run.spoil(Kind.PUT, 3)
    before = {each: each.read_bytes() for each in run.folder.iterdir()}
    rescue = salvage(run.folder, tmp_path / "copy")
    assert {each: each.read_bytes() for each in run.folder.iterdir()} == before
    assert rescue.losses[1:] == [
        f"group {groups[1]}: the arrays of rollouts 1; they are sampled again"
    ]
    ledger = run.reopened(tmp_path / "copy")
    assert ledger.counts.imbalance == 0
    phases = {
        group_id: [item.phase for item in group.indices]
        for group_id, group in ledger.groups.items()
    }
    whole = [Phase.VERIFIED, Phase.VERIFIED]
    assert phases.pop(groups[1]) == [Phase.VERIFIED, Phase.WAITING]
    assert all(each == whole for each in phases.values())
    assert "sound" in _invoke("check", tmp_path / "copy")


def test_the_groups_of_a_batch_whose_arrays_are_lost_are_taken_back(
    run: Run, tmp_path: Path
) -> None:
    groups = [run.group(), run.group()]
    assert run.driver.pull(0, 2) == groups
    run.keep()
    run.journal.close()
    run.spoil(Kind.PUT, 0)
    salvage(run.folder, tmp_path / "copy")
    ledger = run.reopened(tmp_path / "copy")
    assert ledger.state.handed_over == [groups[1]]


def test_events_behind_a_lost_one_are_not_applied_and_their_groups_are_listed(
    run: Run, tmp_path: Path
) -> None:
    first = run.group()
    lost_from = len(run.driver.history)
    second = run.group()
    third = run.group()
    run.journal.close()
    run.spoil(Kind.TURN, 2)
    rescue = salvage(run.folder, tmp_path / "copy")
    (loss,) = [loss for loss in rescue.losses if loss.startswith("events")]
    assert loss.startswith(f"events from {lost_from} on")
    assert f"groups {third} are" in loss
    ledger = run.reopened(tmp_path / "copy")
    assert set(ledger.groups) == {first}
    assert second not in ledger.groups


def test_a_snapshot_behind_the_damage_makes_up_for_lost_events(run: Run, tmp_path: Path) -> None:
    for _ in range(3):
        run.group()
    run.journal.add_snapshot(run.driver.ledger.state)
    run.journal.commit()
    run.group()
    run.journal.close()
    run.spoil(Kind.TURN, 1)
    rescue = salvage(run.folder, tmp_path / "copy")
    assert not [loss for loss in rescue.losses if "event" in loss]
    assert run.reopened(tmp_path / "copy").state == run.driver.ledger.state


@pytest.mark.parametrize("lose_header", [False, True])
def test_what_a_reused_file_held_before_is_not_taken_for_contents(
    run: Run, tmp_path: Path, lose_header: bool
) -> None:
    fill = Random(7).randbytes
    for number in range(60):  # enough for every file to be used again
        header = rollout_header(group_id=number, num_completion=600)
        run.journal.add_payload(header, [fill(n) for n in header.frame_bytes()])
        run.keep()
        run.journal.drop_payloads([number])
        run.keep()
    live = run.group()
    run.kill()
    segment, _ = run.offset_of(Kind.PUT, -1)
    assert segment.read_bytes().count(b"HRJR") > 9, "the file was one of a segment before"
    if lose_header:
        segment.write_bytes(bytes(4096) + segment.read_bytes()[4096:])
    rescue = salvage(run.folder, tmp_path / "copy")
    kept = Journal(tmp_path / "copy", "run", segment_bytes=SEGMENT_BYTES)
    assert set(kept.payload_groups) == {live}
    assert len(rescue.losses) == lose_header, "nothing but the header is missing"
    kept.close()


def _spread_snapshot(run: Run) -> list[int]:
    """Three groups, a snapshot with a group after each of its parts but the last, a group."""
    groups = [run.group() for _ in range(3)]
    while run.slice():
        groups.append(run.group())
    return [*groups, run.group()]


@pytest.mark.parametrize(
    ("kind", "number"), [(Kind.TURN, 1), (Kind.PART, 0), (Kind.PART, 2), (Kind.CHECKPOINT, 0)]
)
def test_the_events_before_a_spread_snapshot_and_its_parts_make_up_for_each_other(
    run: Run, tmp_path: Path, kind: Kind, number: int
) -> None:
    groups = _spread_snapshot(run)
    run.journal.close()
    run.spoil(kind, number)
    rescue = salvage(run.folder, tmp_path / "copy")
    assert not [loss for loss in rescue.losses if loss.startswith("events")]
    ledger = run.reopened(tmp_path / "copy")
    assert ledger.state == run.driver.ledger.state
    assert list(ledger.groups) == groups


def test_what_a_snapshot_without_one_of_its_parts_would_make_up_for_is_lost(
    run: Run, tmp_path: Path
) -> None:
    groups = _spread_snapshot(run)
    run.journal.close()
    run.spoil(Kind.PART, 1)
    run.spoil(Kind.TURN, 2)
    rescue = salvage(run.folder, tmp_path / "copy")
    assert [loss for loss in rescue.losses if loss.startswith("events from")]
    assert list(run.reopened(tmp_path / "copy").groups) == groups[:1]


def test_events_between_the_parts_of_a_snapshot_are_not_in_it(run: Run, tmp_path: Path) -> None:
    groups = _spread_snapshot(run)
    run.journal.close()
    run.spoil(Kind.TURN, 5)
    rescue = salvage(run.folder, tmp_path / "copy")
    assert [loss for loss in rescue.losses if loss.startswith("events from")]
    assert list(run.reopened(tmp_path / "copy").groups) == groups[:4]


def _lose_a_file(path: Path) -> None:
    path.unlink()


def _lose_a_header(path: Path) -> None:
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])


@pytest.mark.parametrize("spoil", [_lose_a_file, _lose_a_header])
def test_a_lost_segment_costs_what_was_in_it_at_most(
    run: Run, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for _ in range(30):
        group_id = run.driver.verified()
        for item in run.driver.ledger.groups[group_id].indices:
            assert item.rollout is not None
            header = rollout_header(
                group_id=group_id, index=item.rollout.rollout_id.index, num_completion=1000
            )
            run.driver.ledger.groups[group_id].indices[header.rollout_id.index].rollout = header
            run.journal.add_payload(header, [bytes(n) for n in header.frame_bytes()])
        run.keep()
    run.journal.add_snapshot(run.driver.ledger.state)
    run.journal.commit()
    run.journal.close()
    segments = sorted(run.folder.glob("*.log"))
    assert len(segments) > 5
    spoil(segments[2])
    with pytest.raises(DamagedError):
        run.reopened(run.folder)
    salvage(run.folder, tmp_path / "copy")
    ledger = run.reopened(tmp_path / "copy")
    waiting = [g for g in ledger.groups.values() if g.in_phase(Phase.WAITING)]
    lost = 0 if spoil is _lose_a_header else 2
    assert lost <= len(waiting) < 12
    assert ledger.counts.imbalance == 0
    assert len(ledger.groups) == 30


def test_nothing_is_salvaged_over_something_else_or_out_of_noise(run: Run, tmp_path: Path) -> None:
    run.group()
    run.journal.close()
    with pytest.raises(JournalError, match="exists already"):
        salvage(run.folder, tmp_path)
    for path in run.folder.glob("*.log"):
        path.write_bytes(Random(1).randbytes(9000))
    with pytest.raises(JournalError, match="no segment has a sound header"):
        salvage(run.folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_files_of_a_journal_can_be_read_where_nothing_can_be_written(run: Run) -> None:
    run.group()
    run.journal.close()
    (path,) = run.folder.glob("*.log")
    files = OsFiles(read_only=True)
    descriptor = files.open(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.pwritev(descriptor, [b"x"], 0)
    files.close(descriptor)
    assert len(list(entries(run.folder))) > 2
