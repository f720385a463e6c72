"""Answers and tokens by length, since they were last exported. Pure.

Both say what a run prefers without meaning to: an answer that is sampled again after a loss is more
often a short one, and masking takes more from long ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker import events
from broker.events import AnyEvent
from broker.groups import GroupRecord
from broker.ledger import Ledger
from common.types import EvictReason

LENGTHS = (64, 256, 1024, 4096, 16384)
COUNTED_BY_LENGTH = frozenset((events.Generated, events.HandedOver, events.Evicted))
"""Kinds of event that :meth:`LengthTally.observe` looks at."""


def length_label(num_tokens: int) -> str:
    """The bucket of a completion: its upper bound in tokens, or ``inf``."""
    place = bisect_left(LENGTHS, num_tokens)
    return str(LENGTHS[place]) if place < len(LENGTHS) else "inf"


@dataclass(slots=True)
class LengthTally:
    """What has happened since the tally was last emptied."""

    first: Counter[int] = field(default_factory=Counter)
    """Answers of a group's first lease, by completion tokens."""
    resampled: Counter[int] = field(default_factory=Counter)
    """Answers of later leases, by completion tokens."""
    handed_over: Counter[str] = field(default_factory=Counter)
    """Completion tokens chosen for a batch, masked ones included, by length of the answer."""
    masked: Counter[str] = field(default_factory=Counter)
    """Those of them that were too old, by length of the answer."""

    def observe(self, event: AnyEvent, ledger: Ledger) -> None:
        """Count what ``event`` does to ``ledger``, which has not applied it yet."""
        if isinstance(event, events.Generated):
            self._count_answer(event, ledger)
        elif isinstance(event, events.HandedOver):
            spans = {(mask.group_id, mask.index): mask.spans for mask in event.masked}
            for group_id in event.group_ids:
                self._count_tokens(ledger.groups[group_id], spans)
        elif isinstance(event, events.Evicted) and event.reason is EvictReason.ALL_MASKED:
            for group_id in event.group_ids:
                self._count_tokens(ledger.groups[group_id], None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened; so in most turns."""
        return not (self.first or self.resampled or self.handed_over or self.masked)

    def clear(self) -> None:
        """Start anew."""
        for counts in (self.first, self.resampled, self.handed_over, self.masked):
            counts.clear()

    def _count_answer(self, event: events.Generated, ledger: Ledger) -> None:
        rollout_id = event.rollout.rollout_id
        first_attempt = min(ledger.groups[rollout_id.group_id].versions)
        is_first = rollout_id.attempt == first_attempt
        (self.first if is_first else self.resampled)[event.rollout.num_completion_tokens] += 1

    def _count_tokens(
        self, group: GroupRecord, masks: Mapping[tuple[int, int], tuple[int, ...]] | None
    ) -> None:
        """Tokens of ``group``; without ``masks`` all of them are masked."""
        for index, item in enumerate(group.indices):
            if item.rollout is None:
                continue
            num_tokens = num_masked = item.rollout.num_completion_tokens
            if masks is not None:
                num_masked = item.rollout.num_tokens_in(masks.get((group.group_id, index), ()))
            label = length_label(num_tokens)
            self.handed_over[label] += num_tokens
            self.masked[label] += num_masked
