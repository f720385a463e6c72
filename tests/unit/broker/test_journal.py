"""The journal file: what survives, and what is refused with a cure."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker import journal as journal_module
from broker.journal import Journal
from broker.ledger import Ledger
from broker.ledger_state import LedgerState
from common.errors import JournalError
from tests.broker_process import arrays_of
from tests.builders import rollout_header
from tests.unit.broker.ledger_driver import Driver


def _journal(folder: Path, run_id: str = "run") -> Journal:
    return Journal(folder / "broker" / "journal.sqlite", run_id)


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


def test_a_snapshot_replaces_the_events_and_leads_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SNAPSHOT_EVERY", 5)
    driver = _driver()
    journal = _journal(tmp_path)
    journal.add_events(driver.history)
    assert journal.wants_snapshot
    journal.add_snapshot(driver.ledger.state)
    assert not journal.wants_snapshot
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
    again.close()


def test_payloads_come_back_byte_for_byte_until_their_group_has_ended(tmp_path: Path) -> None:
    header = rollout_header(group_id=3, index=1, attempt=7)
    frames = arrays_of(header.rollout_id).frames()
    journal = _journal(tmp_path)
    journal.add_payload(header, frames)
    journal.commit()
    journal.close()
    again = _journal(tmp_path)
    kept, arrays = again.payload(header.rollout_id)
    assert kept == header
    assert [bytes(frame) for frame in arrays] == [bytes(frame) for frame in frames]
    again.drop_payloads([3])
    with pytest.raises(KeyError):
        again.payload(header.rollout_id)
    again.close()


def test_the_file_stays_bounded_while_groups_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SNAPSHOT_EVERY", 50)
    driver = Driver()
    journal = _journal(tmp_path)
    sizes = []
    for round_number in range(40):
        header = rollout_header(group_id=round_number, num_completion=5)
        journal.add_payload(header, [b"\0" * 12, b"\0" * 50_000, b"\0" * 50_000])
        driver.step(round_number)
        driver.checkpoint(round_number + 1)
        journal.add_events(driver.history)
        driver.history.clear()
        if journal.wants_snapshot:
            journal.add_snapshot(driver.ledger.state)
        journal.drop_payloads([round_number])
        journal.commit()
        sizes.append(journal.num_bytes)
    assert sizes[-1] <= 2 * sizes[5]
    journal.close()


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"these are my notes\n" * 200)


def _other_program(path: Path) -> None:
    _execute(path, "CREATE TABLE recipes (name TEXT)")


def _newer_format(path: Path) -> None:
    Journal(path, "run").close()
    _execute(path, "UPDATE meta SET value = 99 WHERE key = 'format'")


def _other_run(path: Path) -> None:
    Journal(path, "another").close()


def _torn(path: Path) -> None:
    journal = Journal(path, "run")
    journal.add_events(_driver().history)
    journal.commit()
    journal.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_not_a_database, "not a headrace journal"),
        (_other_program, "another program's database"),
        (_newer_format, "has format 99, this program writes 1"),
        (_other_run, "belongs to run 'another', not 'run'"),
        (_torn, "damaged"),
    ],
)
def test_a_file_that_cannot_be_this_runs_journal_is_refused_and_left_alone(
    tmp_path: Path, spoil: object, cause: str
) -> None:
    assert callable(spoil)
    path = tmp_path / "journal.sqlite"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=cause) as refused:
        Journal(path, "run")
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_an_event_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.add_events(_driver().history)
    journal.commit()
    journal.close()
    path = tmp_path / "broker" / "journal.sqlite"
    _execute(path, "UPDATE events SET event = x'00' WHERE seq = 4")
    again = _journal(tmp_path)
    with pytest.raises(JournalError, match="damaged: event 4"):
        list(again.load()[1])
    again.close()


def test_a_commit_waits_until_the_disk_has_it(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    settings = {
        name: journal._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2}
    journal.close()


def test_a_second_broker_is_locked_out_until_the_first_has_gone(tmp_path: Path) -> None:
    first = _journal(tmp_path)
    with pytest.raises(JournalError, match="another broker uses it"):
        _journal(tmp_path)
    first.close()
    _journal(tmp_path).close()


def test_a_full_disk_keeps_what_was_committed_and_nothing_of_the_failed_turn(
    tmp_path: Path,
) -> None:
    journal = _journal(tmp_path)
    driver = _driver()
    journal.add_events(driver.history)
    journal.commit()
    pages = journal.num_bytes // 4096
    journal._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    header = rollout_header()
    with pytest.raises(JournalError, match="full .*nothing acknowledged is lost"):
        journal.add_payload(header, [b"\0" * 1_000_000])
    journal.close()
    again = _journal(tmp_path)
    assert _replayed(driver, again) == driver.ledger.state
    with pytest.raises(KeyError):
        again.payload(header.rollout_id)
    again.close()


def test_a_folder_that_cannot_be_made_is_an_error_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("a file where a folder must be")
    with pytest.raises(JournalError, match="File exists"):
        _journal(tmp_path)
