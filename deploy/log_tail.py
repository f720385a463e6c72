"""The one line of a role's log that tells a person why it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import EXIT_INFRA

_TAIL_BYTES = 65536
_TORCHRUN_VERDICT = re.compile(r"^E\d{4} .*torch/distributed/elastic", re.MULTILINE)
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)
_TORCHRUN_EXIT_CODE = re.compile(r"^\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)
_TORCHRUN_STOPPED = re.compile(r"SignalException: Process \d+ got signal: \d+\s*$")
_OWN_ERROR = re.compile(r"^headrace: ")
_LOGGED_ERROR = re.compile(r'"level": "(error|critical)"')
_ANY_ERROR = re.compile(r"\berror\b|^[\w.]*(Error|Exception)\b", re.IGNORECASE)
_MAX_LINE_CHARACTERS = 500


def read_tail(path: Path) -> str:
    """The last 64 KiB of the log at ``path``; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def last_error_line(tail: str) -> str:
    """The newest line of ``tail`` that reports an error, else the newest line at all.

    An error that a role raised on purpose ("headrace: ...") is preferred to a logged one, and that
    to anything which merely looks like an error.
    torchrun's own summary of a failed rank is passed over: the rank said why before.
    """
    lines = [line for line in _without_torchrun(tail).splitlines() if line.strip()]
    for pattern in (_OWN_ERROR, _LOGGED_ERROR, _ANY_ERROR):
        errors = [line for line in lines if pattern.search(line)]
        if errors:
            return _message_of(errors[-1])
    return _message_of(lines[-1]) if lines else ""


def torchrun_exit_code(tail: str) -> int | None:
    """Exit code of the rank that failed first, from torchrun's summary in ``tail``.

    torchrun itself ends with 1 whatever happened to its ranks; its summary keeps the difference
    between a rank that was killed (negative), one that may be tried again and a fatal error. The
    root cause stands last in the summary. A torchrun that was asked to stop writes none: it asked
    its ranks to, which may be started again.
    """
    if _TORCHRUN_STOPPED.search(tail):
        return EXIT_INFRA
    summary = tail.rpartition("ChildFailedError")[2]
    root_cause = summary.partition("Root Cause")[2]
    codes: Sequence[str] = _TORCHRUN_EXIT_CODE.findall(root_cause)
    return int(codes[0]) if codes else None


def _without_torchrun(tail: str) -> str:
    """What the ranks said before torchrun's closing report, without the rank's number."""
    verdicts = list(_TORCHRUN_VERDICT.finditer(tail))
    said = tail[: verdicts[-1].start()] if verdicts else tail
    return _RANK_PREFIX.sub("", said)


def _message_of(line: str) -> str:
    """The message of a structured (JSON) log line, or the line itself."""
    text = line.strip().removeprefix("headrace: ")
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except ValueError:
            return text[:_MAX_LINE_CHARACTERS]
        parts = [str(record[key]) for key in ("event", "reason", "error") if record.get(key)]
        text = ": ".join(dict.fromkeys(parts)) or text
    return text[:_MAX_LINE_CHARACTERS]
