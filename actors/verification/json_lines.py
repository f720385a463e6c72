"""JSON Lines of ``headrace verify``: bytes -> lines -> jobs, verdicts -> lines; no input or output.

Memory is bounded by :data:`MAX_LINE_BYTES` whatever the input holds, and every line, good or bad,
gets exactly one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from actors.verification.judgement import VerifyJob
from actors.verification.reward import DEFAULT_FORMAT_JSON, plan_job
from common.codec import MAX_STRING_BYTES
from common.config import RewardWeight
from common.errors import DataError
from common.types import Verdict, VerdictStatus

MAX_LINE_BYTES = 4 << 20

LineId = str | int | float | None


class LineSplitter:
    """Cuts a stream into lines; of a line over the cap only the fact is kept."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._partial = bytearray()
        self._too_long = False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Lines that ``chunk`` completes, without their newline; None for one over the cap."""
        *complete, rest = chunk.split(b"\n")
        lines = []
        for piece in complete:
            self._extend(piece)
            lines.append(self._take())
        self._extend(rest)
        return lines

    def finish(self) -> list[bytes | None]:
        """The last line when the stream ended without a newline."""
        return [self._take()] if self._partial or self._too_long else []

    def _extend(self, piece: bytes) -> None:
        if len(self._partial) + len(piece) > self._max_line_bytes:
            self._too_long = True
            self._partial = bytearray()
        elif not self._too_long:
            self._partial += piece

    def _take(self) -> bytes | None:
        line = None if self._too_long else bytes(self._partial)
        self._partial, self._too_long = bytearray(), False
        return line


@dataclass(frozen=True, slots=True)
class LineJob:
    """A line that can be judged."""

    line_id: LineId
    job: VerifyJob


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be judged; ``line_id`` is None where it is not known."""

    line_id: LineId
    reason: str


def parse_line(line: bytes | None, kind: str, rewards: Sequence[RewardWeight]) -> LineJob | BadLine:
    """Read one line: ``id``, ``completion`` and the fields of ``kind``."""
    if line is None:
        return BadLine(None, f"a line has at most {MAX_LINE_BYTES} bytes")
    line_id: LineId = None
    try:
        fields = _read_object(line)
        line_id = _take_id(fields)
        completion = fields.pop("completion", None)
        if not isinstance(completion, str):
            raise DataError("completion must be a string")
        reference_json = msgspec.json.encode(fields).decode()
        if len(reference_json.encode()) > MAX_STRING_BYTES:
            raise DataError(f"the task's fields have at most {MAX_STRING_BYTES} bytes")
    except DataError as error:
        return BadLine(line_id, str(error))
    format_json = reference_json if kind == "format" else DEFAULT_FORMAT_JSON
    return LineJob(
        line_id, plan_job(completion, kind, reference_json, rewards, format_json=format_json)
    )


def render_verdict(line_id: LineId, verdict: Verdict) -> bytes:
    """The answer to one line, newline included."""
    answer: dict[str, Any] = {
        "id": line_id,
        "status": verdict.status.value,
        "reward": verdict.reward,
        "components": {part.name: part.value for part in verdict.components},
        "reason": verdict.reason,
    }
    return msgspec.json.encode(answer) + b"\n"


def render_bad_line(bad: BadLine) -> bytes:
    """The answer to a line that cannot be judged."""
    verdict = Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason=bad.reason)
    return render_verdict(bad.line_id, verdict)


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}"[:1000]) from None
    if not isinstance(fields, dict):
        raise DataError(f"a line must be a JSON object, got {type(fields).__name__}")
    return fields


def _take_id(fields: dict[str, Any]) -> LineId:
    line_id = fields.pop("id", None)
    if isinstance(line_id, bool) or not isinstance(line_id, str | int | float):
        raise DataError("id must be a string or a number")
    return line_id
