"""What judges said, on disk: a cache by content hash, and a log for whoever audits a reward."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from common.errors import FatalError


class JudgeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One exchange with a judge."""

    content_hash: str
    model: str
    messages: list[dict[str, str]]
    answer: str
    value: float | None
    """None where the answer did not follow the grammar."""
    unix_s: float


class JudgeRecords:
    """A directory of verdicts, which several verifiers may share.

    ``verdicts/<2 digits>/<hash>.json`` is written whole or not at all; ``log.jsonl`` gets one line
    for each answer of a judge, also for those that did not count.
    """

    def __init__(self, directory: Path) -> None:
        """Raises :class:`FatalError` where ``directory`` cannot be written."""
        self._verdicts = directory / "verdicts"
        try:
            self._verdicts.mkdir(parents=True, exist_ok=True)
            self._log = os.open(
                directory / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise FatalError(
                f"the judge's records cannot be kept in {directory}: {error.strerror} "
                "(set verifier.models.directory to a folder that can be written)"
            ) from None

    def close(self) -> None:
        """Close the log."""
        os.close(self._log)

    def find(self, content_hash: str) -> float | None:
        """The value of an earlier verdict; None where there is none that can be read."""
        try:
            data = self._file(content_hash).read_bytes()
            record = msgspec.json.decode(data, type=JudgeRecord)
        except (OSError, msgspec.DecodeError):
            return None
        return record.value if record.content_hash == content_hash else None

    def keep(self, record: JudgeRecord) -> None:
        """Log ``record``, and remember its verdict if it has one; raises ``OSError``."""
        line = msgspec.json.encode(record)
        os.write(self._log, line + b"\n")  # one write: lines of several processes do not mix
        if record.value is None:
            return
        file = self._file(record.content_hash)
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(line)
        os.replace(temporary, file)

    def _file(self, content_hash: str) -> Path:
        return self._verdicts / content_hash[:2] / f"{content_hash}.json"
