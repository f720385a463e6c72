"""Saves what is sound in a damaged journal into another directory, and says what is lost.

The ledger is a fold over events in order, so events behind a lost one are not applied: groups go
back to what they were before it, unless a later snapshot holds all of it. Rollouts whose arrays are
lost are sampled again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker import events
from broker.events import AnyEvent
from broker.groups import VERIFIED, GroupRecord, Place
from broker.journal.files import Files, OsFiles
from broker.journal.history import History
from broker.journal.inspection import decode
from broker.journal.log import Log
from broker.journal.payloads import key_of, reference_key_of
from broker.journal.records import (
    FORMAT_VERSION,
    KEY_BYTES,
    SEGMENT_HEADER_BYTES,
    Key,
    Kind,
    RecordHeader,
    SegmentHeader,
    decode_key,
    decode_segment_header,
    salt_seed,
)
from broker.journal.recovery import lock_directory
from broker.journal.scan import Record, SegmentReader
from broker.journal.segment_file import Segment, disk_error, segment_number
from broker.journal.snapshot_writer import SnapshotWriter
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.snapshots import groups_of
from common.errors import JournalError
from common.types import RolloutId

_SEGMENT_BYTES = 64 << 20
_WRITE_EVERY = 64


@dataclass(slots=True)
class Rescue:
    """What was saved, and what was not."""

    num_groups: int = 0
    num_payloads: int = 0
    next_event: int = 0
    losses: list[str] = field(default_factory=list)
    """One line each; empty if nothing that counts is lost."""


class _Found(NamedTuple):
    """A sound record, somewhere."""

    header: RecordHeader
    reader: SegmentReader
    path: Path
    offset: int

    def read(self) -> Record:
        record = self.reader.record_at(self.offset, self.header)
        if record is None:
            raise JournalError(f"journal {self.path}: changed while it was read (try again)")
        return record


def salvage(directory: Path, out: Path) -> Rescue:
    """Write a repaired copy of the journal in ``directory`` to ``out``, which must not exist.

    Raises :class:`JournalError` if nothing can be told from noise, or the disk fails.
    """
    if out.exists():
        raise JournalError(f"--into {out}: exists already (name a directory that does not)")
    files = OsFiles(read_only=True)
    try:
        lock = lock_directory(OsFiles(), directory)
        try:
            return _salvage(files, directory, out)
        finally:
            files.close(lock)
    except OSError as error:
        raise disk_error(directory, error) from None


def _salvage(files: Files, directory: Path, out: Path) -> Rescue:
    rescue = Rescue()
    segments, header = _open_segments(files, directory, rescue)
    salted = salt_seed(header.salt)
    found = sorted(
        (each for segment in segments for each in _sound_records(files, segment, salted)),
        key=lambda each: each.header.sequence,
    )
    _note_missing_records(found, rescue)
    history, payloads = History(), dict[Key, _Found]()
    for each in found:
        _collect(each, history, payloads)
    ledger = Ledger.replay(LedgerRules(), history.state, history.events)
    _note_missing_events(history, rescue)
    num_repairs = _resample(ledger, payloads, rescue) + _ask_again(ledger, payloads, rescue)
    rescue.next_event = history.next_event + num_repairs
    _write(out, header.owner, ledger, payloads, rescue)
    for segment in segments:
        files.close(segment.descriptor)
    return rescue


# --- reading --------------------------------------------------------------------------------------


def _open_segments(
    files: Files, directory: Path, rescue: Rescue
) -> tuple[list[Segment], SegmentHeader]:
    """All segment files, and a header that is sound: its salt tells records from noise."""
    segments, sound = [], list[SegmentHeader]()
    for name in sorted(files.names(directory)):
        number = segment_number(name)
        if number is None:
            continue
        path = directory / name
        descriptor = files.open(path)
        header = decode_segment_header(files.pread(descriptor, SEGMENT_HEADER_BYTES, 0))
        if header is None:
            rescue.losses.append(f"{path}: the header of the segment")
        else:
            sound.append(header)
        size = files.size(descriptor)
        oldest = 0 if header is None else header.oldest
        segments.append(Segment(number, path, descriptor, size, size, oldest))
    if not sound:
        raise JournalError(
            f"journal {directory}: no segment has a sound header, so that records cannot be told "
            "from noise (restore one of the files)"
        )
    if sound[0].format != FORMAT_VERSION:
        raise JournalError(
            f"journal {directory}: has format {sound[0].format}, this program reads "
            f"{FORMAT_VERSION} (use the headrace version that wrote it)"
        )
    return segments, sound[0]


def _sound_records(files: Files, segment: Segment, salted: int) -> Iterator[_Found]:
    """Every sound record of a segment, also behind damage.

    Where the segment's own records end, older ones may follow that the file held before.
    """
    reader, offset = SegmentReader(files, segment, salted), SEGMENT_HEADER_BYTES
    newest = 0
    while True:
        header = reader.header_at(offset)
        if header is not None and header.sequence < newest:
            return
        if header is not None and reader.record_at(offset, header) is not None:
            yield _Found(header, reader, segment.path, offset)
            offset, newest = offset + header.num_bytes, header.sequence
        else:
            found = next(reader.headers_from(offset + 8), None)
            if found is None:
                return
            offset = found[0]


def _collect(found: _Found, history: History, payloads: dict[Key, _Found]) -> None:
    if found.header.kind in (Kind.FLOOR, Kind.SEAL):
        return
    record = found.read()
    if found.header.kind == Kind.PUT:
        payloads[decode_key(record.body)] = found
        return
    try:
        entry = decode(record)
    except msgspec.DecodeError:
        return  # as if it were not there: the next events do not follow
    if history.add(entry):
        for key in [key for key in payloads if key[0] in entry.dropped]:
            del payloads[key]


# --- what is lost ---------------------------------------------------------------------------------


def _note_missing_records(found: Sequence[_Found], rescue: Rescue) -> None:
    last: _Found | None = None
    for each in found:
        if each.header.kind == Kind.SEAL:
            continue
        expected = each.header.sequence if last is None else last.header.sequence + 1
        if last is not None and each.header.sequence > expected:
            end = last.offset + last.header.num_bytes
            rescue.losses.append(
                f"{last.path}: records {expected} to {each.header.sequence - 1}, "
                f"at or after byte {end}"
            )
        last = each


def _note_missing_events(history: History, rescue: Rescue) -> None:
    if history.lost_from is None:
        return
    groups = sorted({group for event in history.unapplied for group in groups_of(event)})
    rescue.losses.append(
        f"events from {history.lost_from} on; {len(history.unapplied)} later ones are not applied: "
        f"groups {_listed(groups)} are as they were before"
    )


def _listed(groups: Sequence[int]) -> str:
    return ", ".join(map(str, groups)) or "(none)"


def _resample(ledger: Ledger, payloads: dict[Key, _Found], rescue: Rescue) -> int:
    """Have lost rollouts sampled again; returns how many events that took."""
    num_events = 0
    for group in list(ledger.groups.values()):
        lost = [each for each in _kept_here(group) if key_of(each) not in payloads]
        if not lost:
            continue
        indices = _listed([each.index for each in lost])
        if group.place is Place.STEPPED:
            rescue.losses.append(
                f"group {group.group_id}: the arrays of rollouts {indices}; it is stepped: a "
                "learner that has to replay that step forks"
            )
            continue
        rescue.losses.append(
            f"group {group.group_id}: the arrays of rollouts {indices}; they are sampled again"
        )
        for event in _resampling(group, lost):
            ledger.apply(event)
            num_events += 1
    return num_events


def _resampling(group: GroupRecord, lost: Sequence[RolloutId]) -> Iterator[AnyEvent]:
    if group.place is Place.HANDED_OVER:
        yield events.PutBack(group_ids=(group.group_id,))
    for each in lost:
        yield events.PayloadLost(group_id=each.group_id, index=each.index, attempt=each.attempt)


def _ask_again(ledger: Ledger, payloads: Collection[Key], rescue: Rescue) -> int:
    """Have lost reference log-probabilities computed again; returns how many events that took."""
    repairs: list[AnyEvent] = []
    for group in ledger.groups.values():
        lost = [index for index in group.references if not _has_reference(group, index, payloads)]
        if not lost:
            continue
        what = f"group {group.group_id}: the reference log-probabilities of rollouts"
        if group.place is Place.STEPPED:
            rescue.losses.append(
                f"{what} {_listed(lost)}; it is stepped: a learner that has to replay that step "
                "cannot"
            )
            continue
        rescue.losses.append(f"{what} {_listed(lost)}; they are computed again")
        if group.place is Place.HANDED_OVER:
            repairs.append(events.PutBack(group_ids=(group.group_id,)))
        repairs += [
            events.ReferenceWanted(group_id=group.group_id, index=index)
            for index in lost
            if group.indices[index].phase is VERIFIED
        ]
    for event in repairs:
        ledger.apply(event)
    return len(repairs)


def _has_reference(group: GroupRecord, index: int, payloads: Collection[Key]) -> bool:
    rollout = group.indices[index].rollout
    if rollout is None:
        return True
    return reference_key_of(rollout.rollout_id, group.references[index]) in payloads


def _kept_here(group: GroupRecord) -> list[RolloutId]:
    """Accepted rollouts of a group whose arrays should be in the journal."""
    rollouts = [item.rollout for item in group.indices if item.rollout is not None]
    return [rollout.rollout_id for rollout in rollouts if not rollout.store]


# --- writing --------------------------------------------------------------------------------------


def _write(
    out: Path, owner: str, ledger: Ledger, payloads: dict[Key, _Found], rescue: Rescue
) -> None:
    log = Log(out, owner, segment_bytes=_SEGMENT_BYTES, max_bytes=0, files=OsFiles())
    try:
        needed = [key for key in payloads if key[0] in ledger.groups]
        for number, key in enumerate(needed, 1):
            log.put(key, [payloads[key].read().body[KEY_BYTES:]])
            if number % _WRITE_EVERY == 0:
                log.write()
        snapshots = SnapshotWriter(log)
        snapshots.begin(rescue.next_event, ledger.state)
        while snapshots.under_way is not None:
            snapshots.go_on()
            log.write()
        log.write()
    finally:
        log.close()
    rescue.num_groups, rescue.num_payloads = len(ledger.groups), len(needed)
