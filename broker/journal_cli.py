"""``headrace journal``: check, print or repair the journal of a broker that does not run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from broker.journal.inspection import Entry

_DIRECTORY = click.argument(
    "directory", metavar="DIRECTORY", type=click.Path(file_okay=False, path_type=Path)
)


@click.group("journal")
def journal() -> None:
    """Check, print or repair a journal; DIRECTORY is broker/journal in a run directory."""


@journal.command("check")
@_DIRECTORY
def check(directory: Path) -> None:
    """Verify every record.

    Damage is named with file and byte, and the exit code is 1. A torn tail is none: the next start
    cuts it.
    """
    from broker.journal.inspection import check as check_journal

    totals = check_journal(directory)
    lines = {
        "run": totals.owner,
        "segments": f"{totals.num_segments}, {totals.num_bytes} bytes",
        "records": f"{totals.num_records}, the last has sequence {totals.last_sequence}",
        "events": f"{totals.num_events}, the next is event {totals.next_event}",
        "live": f"{totals.live_groups} groups with {totals.live_payloads} payloads, "
        f"{totals.live_bytes} bytes with the ledger",
        "end": totals.end,
    }
    click.echo(f"{directory}: sound")
    for name, text in lines.items():
        click.echo(f"  {name:9} {text}")


@journal.command("dump")
@_DIRECTORY
@click.option("--since", type=click.IntRange(min=0), default=0, help="First event to print.")
def dump(directory: Path, since: int) -> None:
    """Print it as JSON Lines.

    One object an event, a payload (its header, without arrays) and a snapshot, in the order of
    writing.
    """
    from broker.journal.inspection import entries

    next_event = 0
    for entry in entries(directory):
        next_event = max(next_event, entry.first_event + len(entry.events))
        if next_event >= since:
            for line in _lines(entry, since):
                sys.stdout.buffer.write(_json(line) + b"\n")


@journal.command("salvage")
@_DIRECTORY
@click.option("--into", required=True, type=click.Path(path_type=Path), help="For the copy.")
def salvage(directory: Path, into: Path) -> None:
    """Copy what is sound, list what is lost.

    DIRECTORY stays as it is. Groups are listed by their ids: those whose arrays are lost, and those
    that go back to an earlier state because an event is.
    """
    from broker.journal.salvage import salvage as salvage_journal

    rescue = salvage_journal(directory, into)
    click.echo(
        f"{into}: {rescue.num_groups} live groups with {rescue.num_payloads} payloads, "
        f"the ledger after {rescue.next_event} events"
    )
    for loss in rescue.losses:
        click.echo(f"  lost: {loss}")
    if not rescue.losses:
        click.echo("  nothing is lost")
    click.echo(f"to go on with it, move {directory} away and {into} into its place")


def _lines(entry: Entry, since: int) -> list[dict[str, Any]]:
    """What a record says, one mapping a line."""
    lines: list[dict[str, Any]] = []
    if entry.payload is not None:
        header = _named(entry.payload)
        lines.append({"payload": header, "bytes": entry.payload_bytes})
    if entry.reference is not None:
        group_id, index, attempt = entry.reference_of
        of = {"group_id": group_id, "index": index, "attempt": attempt}
        header = _named(entry.reference)
        lines.append({"reference": header, "of": of, "bytes": entry.payload_bytes})
    if entry.part is not None:
        lines.append(_part_line(entry, entry.part.number))
    for number, event in enumerate(entry.events, entry.first_event):
        if number >= since:
            kind = type(event).__name__
            lines.append({"event": number, "type": kind, "fields": _named(event)})
    if entry.dropped:
        lines.append({"dropped_groups": list(entry.dropped)})
    return [{"record": entry.sequence, **line} for line in lines]


def _part_line(entry: Entry, number: int) -> dict[str, Any]:
    """A part of a snapshot; the first says how many events led to it, the last makes it count."""
    first = {} if entry.snapshot is None else {"snapshot": entry.first_event}
    groups = [group.group_id for group in entry.groups]
    return {**first, "snapshot_part": number, "groups": groups, "is_last": entry.is_last}


def _named(value: Any) -> Any:
    """Records as mappings by field name; on disk they are arrays."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    return value


def _json(line: dict[str, Any]) -> bytes:
    import msgspec

    return msgspec.json.encode(line)
