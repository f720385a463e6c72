"""What a client process was told, kept in a file that its own death cannot take away.

One line a fact, one system call a line: whatever was written before SIGKILL is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

from common.types import RolloutId, Verdict, VerdictStatus
from tests.chaos.broker.oracle import History


class Witness(Protocol):
    """Who is told what clients send and hear: a :class:`History` or a :class:`Diary`."""

    def rollout_answered(self, rollout_id: RolloutId, outcome: str) -> None:
        """See :class:`History`."""
        ...

    def verdict_leaves(self, rollout_id: RolloutId, verdict: Verdict) -> None:
        """See :class:`History`."""
        ...

    def verdict_answered(self, rollout_id: RolloutId, verdict: Verdict, outcome: str) -> None:
        """See :class:`History`."""
        ...


class Diary:
    """A :class:`Witness` that writes to a file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def rollout_answered(self, rollout_id: RolloutId, outcome: str) -> None:
        """See :class:`Witness`."""
        self._write("rollout", rollout_id, outcome)

    def verdict_leaves(self, rollout_id: RolloutId, verdict: Verdict) -> None:
        """See :class:`Witness`."""
        self._write("leaves", rollout_id, *_plain(verdict))

    def verdict_answered(self, rollout_id: RolloutId, verdict: Verdict, outcome: str) -> None:
        """See :class:`Witness`."""
        self._write("answered", rollout_id, *_plain(verdict), outcome)

    def _write(self, kind: str, rollout_id: RolloutId, *facts: object) -> None:
        place = (rollout_id.group_id, rollout_id.index, rollout_id.attempt)
        os.write(self._descriptor, json.dumps([kind, *place, *facts]).encode() + b"\n")


def read_diaries(folder: Path, history: History) -> None:
    """Tell ``history`` what all client processes wrote."""
    for path in sorted(folder.glob("*.diary")):
        for line in path.read_text().splitlines():
            kind, group_id, index, attempt, *facts = json.loads(line)
            rollout_id = RolloutId(group_id=group_id, index=index, attempt=attempt)
            if kind == "rollout":
                history.rollout_answered(rollout_id, facts[0])
            elif kind == "leaves":
                history.verdict_leaves(rollout_id, _verdict(*facts))
            else:
                history.verdict_answered(rollout_id, _verdict(*facts[:3]), facts[3])


def _plain(verdict: Verdict) -> tuple[str, float | None, str]:
    return verdict.status.value, verdict.reward, verdict.reason


def _verdict(status: str, reward: float | None, reason: str) -> Verdict:
    return Verdict(status=VerdictStatus(status), reward=reward, reason=reason)
