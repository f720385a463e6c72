"""JSON Lines of ``headrace verify``: bytes -> lines -> jobs, verdicts -> lines; no input or output.

Memory is bounded by :data:`MAX_LINE_BYTES` whatever the input holds, and every line, good or bad,
gets exactly one answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from actors.verification.judgement import VerifyJob
from actors.verification.reward import needs_tokens, plan_checks
from common.answer_conventions import Convention
from common.codec import MAX_STRING_BYTES
from common.config import RewardWeight
from common.errors import DataError
from common.references.math import with_conventions
from common.thoughts import InsideThought, begins_inside_thought
from common.types import Prompt, Verdict, VerdictStatus

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
    """A line that can be judged; ``token_ids`` are for terms that are computed from them."""

    line_id: LineId
    job: VerifyJob
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be judged; ``line_id`` is None where it is not known."""

    line_id: LineId
    reason: str


def parse_line(
    line: bytes | None,
    kind: str,
    terms: Sequence[RewardWeight],
    extract: tuple[Convention, ...] = (),
    inside_thought: InsideThought = "auto",
) -> LineJob | BadLine:
    """Read one line: ``id``, ``completion``, the fields of ``kind``; ``token_ids`` for shaping.

    ``extract`` is for math lines that do not say where the answer stands; with ``inside_thought``
    on ``auto`` a completion begins inside its thought where the field ``prompt`` ends in one.
    """
    if line is None:
        return BadLine(None, f"a line has at most {MAX_LINE_BYTES} bytes")
    line_id: LineId = None
    try:
        fields = _read_object(line)
        line_id = _take_id(fields)
        completion = fields.pop("completion", None)
        if not isinstance(completion, str):
            raise DataError("completion must be a string")
        token_ids = _take_token_ids(fields) if needs_tokens(terms) else ()
        prompt = with_conventions(_prompt(fields, kind), extract)
    except DataError as error:
        return BadLine(line_id, str(error))
    checks = plan_checks(terms, prompt)
    job = VerifyJob(
        completion=completion,
        checks=checks,
        prompt=prompt.text,
        inside_thought=begins_inside_thought(inside_thought, prompt.text),
    )
    return LineJob(line_id, job, token_ids)


def _prompt(fields: dict[str, Any], kind: str) -> Prompt:
    """The task on a line; its text, for models, is the field ``prompt``."""
    text = fields.get("prompt", "")
    if not isinstance(text, str):
        raise DataError("prompt must be a string")
    reference_json = msgspec.json.encode(fields).decode()
    if len(reference_json.encode()) > MAX_STRING_BYTES:
        raise DataError(f"the task's fields have at most {MAX_STRING_BYTES} bytes")
    return Prompt(prompt_id="line", text=text, task=kind, reference_json=reference_json)


def _take_token_ids(fields: dict[str, Any]) -> tuple[int, ...]:
    try:
        return msgspec.convert(fields.pop("token_ids", None), tuple[int, ...])
    except msgspec.ValidationError:
        raise DataError("token_ids must be a list of numbers: the reward needs it") from None


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


def bad_line_verdict(bad: BadLine) -> Verdict:
    """The verdict on a line that cannot be judged."""
    return Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason=bad.reason[:4096])


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8))
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
