"""What is wrong with one rollout: named so that a person can look at it."""

from __future__ import annotations

import msgspec

from common.types import Count

MAX_NAMED = 16
"""Findings that one log line names."""


class Finding(msgspec.Struct, frozen=True):
    """A quantity of some tokens that cannot be trained on."""

    group_id: Count
    index: Count
    """Of the rollout in its group."""
    quantity: str
    problem: str
    """The value, as text: JSON has no NaN."""
    start: Count = 0
    """First trained token concerned."""
    end: Count = 0
    """One past the last; 0 where it is no matter of single tokens."""

    def message(self) -> str:
        """For a log line."""
        span = f", tokens {self.start} to {self.end - 1}" if self.end else ""
        return f"group {self.group_id} rollout {self.index}{span}: {self.quantity} {self.problem}"
