"""The disk of the simulated broker's machine: the real journal over files that forget and fail.

``tests/fake_disk.py`` keeps apart what a process sees and what a crash keeps. Here it gets the
weather of a simulated world: power that goes at a time or at an operation, no space for a while, a
sync that fails, bits that flip at rest.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.journal.files import Files
from broker.journal.journal import Acks, Journal
from broker.journal.records import (
    MAGIC,
    SEGMENT_HEADER_BYTES,
    decode_record_header,
    decode_segment_header,
    salt_seed,
)
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules, LedgerState
from broker.snapshots import SnapshotPace
from common.errors import JournalError
from common.types import RolloutId
from tests.fake_disk import FakeDisk, Kill, Killed
from tests.simulation.trace import Violation
from tests.simulation.virtual_time import VirtualLoop

DIRECTORY = Path("/simulated/journal")
RUN_ID = "simulation"
SEGMENT_BYTES = 64 << 10
_CACHE_BYTES = 2 << 10
_ROOM_BYTES = 8 << 10
_SYNC_S = (0.0, 0.0, 0.002, 0.02)
"""From a millisecond on the broker syncs in a thread; slower ones gather more turns."""


def _pace(seeded: random.Random) -> SnapshotPace:
    """Snapshots every few turns, most of them over many turns."""
    return SnapshotPace(
        min_events=seeded.choice((5, 20, 100)),
        events_per_rollout=seeded.choice((0.0, 0.5)),
        slice_rollouts=seeded.choice((1, 1, 4)),
    )


class PowerLost(Killed):
    """The machine has stopped: no code of it runs any further."""


class SlowDisk(FakeDisk):
    """Syncs take time; one that lies calls durable what it has only cached."""

    sync_s = 0.0
    lies = False
    passes: Callable[[float], None] | None = None

    def fdatasync(self, descriptor: int) -> None:
        """Make durable, after a while."""
        if self.passes is not None:
            self.passes(self.sync_s)
        if not self.lies:
            super().fdatasync(descriptor)

    def fsync_directory(self, path: Path) -> None:
        """Make names durable."""
        if not self.lies:
            super().fsync_directory(path)


class Disk:
    """A fake disk and what happens to it."""

    def __init__(self, seeded: random.Random, loop: VirtualLoop) -> None:
        self.fake = SlowDisk()
        self.fake.sync_s = seeded.choice(_SYNC_S)
        self.fake.passes = lambda seconds: loop.take(seconds)
        self.is_off = False
        self.is_full = False
        self.has_failed = False
        self.flips_next = False
        self.full_since_s = float("inf")
        """Since when the disk may have held up what was to be written."""
        self._pace = _pace(seeded)
        self._random = seeded
        self._clock = loop.time
        self._forgets = False

    def open_journal(self, files: Files | None = None, acks: Acks = "durable") -> Journal:
        """The journal as it is found; every life of a broker opens it anew."""
        return Journal(
            DIRECTORY,
            RUN_ID,
            acks=acks,
            segment_bytes=SEGMENT_BYTES,
            cache_bytes=_CACHE_BYTES,
            files=files or self.fake,
            pace=self._pace,
            clock=self._clock,
        )

    @contextmanager
    def timeless(self) -> Iterator[None]:
        """Have syncs take no time."""
        passes, self.fake.passes = self.fake.passes, None
        try:
            yield
        finally:
            self.fake.passes = passes

    # --- faults -----------------------------------------------------------------------------------

    def cut_power(self, *, forget: bool) -> None:
        """Stop the process; with ``forget`` the page cache is gone, too."""
        self.is_off = True
        self._forgets |= forget
        self.fake.faults[self.fake.num_operations + 1] = Kill()

    def cut_power_after(self, num_operations: int) -> None:
        """Stop in the middle of what the broker is about to do; a write may end torn."""
        self._forgets = True
        share = self._random.choice((0.0, 0.5, 1.0))
        self.fake.faults[self.fake.num_operations + 1 + num_operations] = Kill(share)

    def fill(self) -> None:
        """Leave next to no space."""
        self.is_full = True
        self.full_since_s = min(self.full_since_s, self._clock())
        self.fake.capacity = self.fake.used + self._random.randrange(_ROOM_BYTES)

    def fail_syncs(self) -> None:
        """The next syncs fail, and what they should have kept counts as kept."""
        self.has_failed = True
        self.fake.failing["fdatasync"] = errno.EIO

    def mend(self) -> None:
        """There is space again."""
        self.is_full = False
        self.fake.capacity = None

    def restore_power(self) -> bool:
        """The machine starts again, or only the process; returns whether it was the machine."""
        has_forgotten = self._forgets
        if has_forgotten:
            self.fake.crash(self._random)
        else:
            self.fake.kill()
        self.fake.failing.clear()
        self.fake.history.clear()
        self.is_off = self.has_failed = self._forgets = False
        return has_forgotten

    # --- damage at rest ---------------------------------------------------------------------------

    def check_flipped_bit(self, rules: LedgerRules) -> str:
        """Flip one bit of a copy: it must be refused, or change nothing; returns which it was.

        A bit of what the very last sync wrote cannot be told from a write that the crash tore
        (``broker.journal.scan``): that much may be cut, and no more.
        """
        damaged = self._copy()
        paths = [path for path in damaged.files() if damaged.read(path).rstrip(b"\0")]
        if not paths:
            return "nothing_to_flip"
        path = self._random.choice(paths)
        content = bytearray(damaged.read(path))
        at = self._random.randrange(len(bytes(content).rstrip(b"\0")))
        content[at] ^= 1 << self._random.randrange(8)
        damaged.replace(path, bytes(content))
        try:
            found = self._read_all(damaged, rules)
        except JournalError:
            return "bit_refused"
        if found == self._read_all(self._copy(), rules):
            return "bit_without_effect"
        if (path, at) < self._first_unvouched():
            raise Violation("G1", f"bit flipped at {path.name}:{at} was accepted")
        return "bit_in_last_sync"

    def _first_unvouched(self) -> tuple[Path, int]:
        """Where the first record stands that no other record says was durable."""
        headers = []
        for path in sorted(self.fake.files()):
            content = self.fake.read(path)
            segment = decode_segment_header(content[:SEGMENT_HEADER_BYTES])
            at = content.find(MAGIC, SEGMENT_HEADER_BYTES)
            while segment is not None and at >= 0:
                header = decode_record_header(salt_seed(segment.salt), content, at)
                if header is not None:
                    headers.append((path, at, header))
                at = content.find(MAGIC, at + 1)
        durable = max((header.durable for _, _, header in headers), default=0)
        unvouched = [(path, at) for path, at, header in headers if header.sequence > durable]
        return min(unvouched, default=(Path("~"), 0))

    def _copy(self) -> FakeDisk:
        """A copy to try things on, which takes no time."""
        with self.timeless():
            return self.fake.copy()

    def _read_all(
        self, files: FakeDisk, rules: LedgerRules
    ) -> tuple[LedgerState, dict[RolloutId, list[bytes]]]:
        journal = self.open_journal(files)
        state, history = journal.load()
        ledger = Ledger.replay(rules, state, history)
        arrays = {}
        for group in ledger.groups.values():
            for item in group.indices:
                if item.rollout is not None and not item.rollout.store:
                    rollout_id = item.rollout.rollout_id
                    frames = journal.payload(rollout_id)[1]
                    arrays[rollout_id] = [bytes(frame) for frame in frames]
        journal.close()
        return ledger.state, arrays
