"""A process that writes to a journal's log on a real disk and says what it was promised.

``python -m tests.journal_writer write DIRECTORY`` runs until it is killed and prints the number of
each turn once it is durable; a thread syncs one turn while the next is being written, and another
tidies up behind it.
``... fill DIRECTORY`` fills a small file system, frees it again and prints what it saw.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random

from broker.journal.files import OsFiles
from broker.journal.log import Log
from broker.journal.upkeep import Upkeep

SEGMENT_BYTES = 256 << 10
WINDOW = 40
"""Groups that are live at a time."""


def open_log(directory: Path, segment_bytes: int = SEGMENT_BYTES) -> Log:
    return Log(directory, "run", segment_bytes=segment_bytes, max_bytes=0, files=OsFiles())


def contents_of_group(group: int) -> bytes:
    """What the record of a group must hold."""
    random = Random(group)
    return random.randbytes(random.randint(1, 20_000))


def contents_of_turn(group: int) -> bytes:
    return b"turn %d " % group * (1 + group % 20)


def write(directory: Path) -> None:
    """A group a turn; the turn of group n drops group n - WINDOW."""
    log = open_log(directory)
    group = max(log.groups, default=0)
    upkeep = Upkeep(log, pause_s=0.001)
    syncing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        while True:
            group += 1
            log.put((group, 0, 0), [contents_of_group(group)])
            log.drop([group - WINDOW])
            if log.wants_checkpoint or group % 200 == 0:
                log.checkpoint(contents_of_turn(group))
            else:
                log.append(contents_of_turn(group))
            log.write()
            if syncing is not None:
                syncing.result()
                upkeep.look()
                print(group - 1, flush=True)
            syncing = pool.submit(log.make_durable)
            log.maintain()


def fill(directory: Path) -> None:
    """Fill the file system with groups and then with a file; end the groups, remove the file."""
    log = open_log(directory / "journal", 64 << 10)
    num_groups = _fill_with_groups(log)
    other = directory / "other-program"
    other.write_bytes(bytes(_free_bytes(directory)))
    for group in sorted(log.groups)[:-1]:
        _end_group(log, group)
    while not log.room:
        other.unlink(missing_ok=True)
        _commit(log)
    again = _fill_with_groups(log, start=num_groups)
    held = {key[0]: bytes(log.get(key)) for key in log.keys()}  # noqa: SIM118
    is_sound = all(data == contents_of_group(group) for group, data in held.items())
    log.close()
    print(json.dumps({"groups": num_groups, "again": again - num_groups, "is_sound": is_sound}))


def _fill_with_groups(log: Log, start: int = 0) -> int:
    group = start
    while log.room:
        contents = contents_of_group(group + 1)
        if log.has_room(len(contents)):
            group += 1
            log.put((group, 0, 0), [contents])
        log.append(b"turn")
        _commit(log)
    return group


def _end_group(log: Log, group: int) -> None:
    log.drop([group])
    log.append(b"ended")
    if log.wants_checkpoint:
        log.checkpoint(b"state")
    _commit(log)


def _commit(log: Log) -> None:
    log.write()
    log.sync()
    log.maintain()


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


if __name__ == "__main__":
    {"write": write, "fill": fill}[sys.argv[1]](Path(sys.argv[2]))
