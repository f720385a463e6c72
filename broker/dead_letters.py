"""Why a group could not be completed, with every error that its work ended in. Pure.

One error is shortened, and says so, before it is journaled; of many errors the first ones are kept
and the rest are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker import events
from broker.groups import GroupRecord

MAX_ERROR = 2000
MAX_ERRORS = 512


def cap_error(error: str) -> str:
    """``error`` in at most ``MAX_ERROR`` characters and a note on what was cut."""
    if len(error) <= MAX_ERROR:
        return error
    return f"{error[:MAX_ERROR]} [{len(error) - MAX_ERROR} more characters]"


def describe_error(index: int, owner: str, error: str) -> str:
    """One error of a group as it is kept."""
    return f"index {index}, {owner}: {error}"


def dead_letter_of(
    group: GroupRecord, reason: str, latest: Sequence[str] = ()
) -> events.DeadLettered:
    """The dead letter of ``group`` for ``reason``, with the errors it had before and the latest."""
    errors = [*group.errors, *latest]
    num_cut = max(0, len(errors) - MAX_ERRORS)
    if num_cut:
        errors = [*errors[:MAX_ERRORS], f"{num_cut} more errors"]
    return events.DeadLettered(group_id=group.group_id, reason=reason, errors=tuple(errors))
