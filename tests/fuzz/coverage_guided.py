"""Coverage-guided fuzzing of everything that reads bytes from outside, with atheris.

Run it in an environment that has atheris beside headrace's own dependencies::

    python -m tests.fuzz.coverage_guided -max_total_time=60 CORPUS_FOLDER

The first byte of an input chooses the reader, the rest is what it reads. Whole messages of every
kind are written to ``CORPUS_FOLDER`` before the start. Any error but
:class:`DecodeError` and :class:`JournalError` counts.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["common.codec", "common.messages", "common.types"]):
    from common.codec import decode, unpack, unpack_manifest
    from common.errors import DecodeError
    from common.types import RolloutHeader, Verdict
with atheris.instrument_imports(include=["broker.journal"]):
    from broker.journal.journal import Journal
    from common.errors import JournalError

from broker.events import Counted, Counter, Sealed
from tests.builders import rollout_arrays, rollout_header
from tests.contract.samples import SAMPLES
from tests.fake_disk import FakeDisk
from tests.fuzz.mutations import Parts, whole_message

_WHOLE, _HEADER, _ROLLOUT, _VERDICT, _MANIFEST, _SEGMENT = range(6)
_LOG = Path("/fuzz/journal")
_SEGMENT_BYTES = 64 << 10


def read_input(data: bytes) -> None:
    """Give ``data`` to the reader that its first byte names."""
    if not data:
        return
    reader, rest = data[0] % 6, data[1:]
    try:
        if reader == _WHOLE:
            decode(_split(rest))
        elif reader == _HEADER:
            decode([whole_message(SAMPLES[0])[0], rest])
        elif reader == _ROLLOUT:
            unpack(rest, RolloutHeader)
        elif reader == _VERDICT:
            unpack(rest, Verdict)
        elif reader == _MANIFEST:
            unpack_manifest(rest)
        else:
            _read_segment(rest)
    except (DecodeError, JournalError):
        pass


def _read_segment(data: bytes) -> None:
    """Open a journal whose one segment holds ``data``."""
    disk = FakeDisk()
    disk.make_directory(_LOG)
    disk.replace(_LOG / _segment_name(), data.ljust(_SEGMENT_BYTES, b"\0"))
    journal = Journal(_LOG, "fuzz", segment_bytes=_SEGMENT_BYTES, files=disk)
    _, history = journal.load()
    list(history)


def _written_log() -> FakeDisk:
    """A journal with a rollout, some events and no clean end."""
    disk = FakeDisk()
    journal = Journal(_LOG, "fuzz", segment_bytes=_SEGMENT_BYTES, files=disk)
    header = rollout_header()
    arrays = rollout_arrays(num_prompt=3, num_completion=5, seed=1)
    for _ in range(3):
        journal.add_payload(header, [bytes(frame) for frame in arrays.frames()])
        journal.add_events([Counted(what=Counter.LATE), Sealed()])
        journal.commit()
    return disk


@functools.cache
def _segment_name() -> str:
    """What the first segment of a log is called."""
    return next(path.name for path in _written_log().files() if path.suffix == ".log")


def _join(parts: Parts) -> bytes:
    """Frames with their lengths, two bytes each."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _split(data: bytes) -> Parts:
    parts = []
    while data:
        size = int.from_bytes(data[:2], "big")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def write_corpus(folder: Path) -> None:
    """One input for each kind of message, whole and as a bare header."""
    folder.mkdir(parents=True, exist_ok=True)
    for message in SAMPLES:
        parts = whole_message(message)
        name = type(message).__name__
        (folder / f"{name}-whole").write_bytes(bytes([_WHOLE]) + _join(parts))
        (folder / f"{name}-header").write_bytes(bytes([_HEADER]) + parts[1])
    log = _written_log()
    written = log.read(_LOG / _segment_name()).rstrip(b"\0")
    (folder / "segment").write_bytes(bytes([_SEGMENT]) + written)


def main() -> None:
    """Fuzz until libFuzzer's own limits end it."""
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            write_corpus(Path(argument))
    atheris.Setup(sys.argv, read_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
