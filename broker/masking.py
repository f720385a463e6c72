"""Which tokens of a verified group are too old for a batch: the ``mask_tokens`` policy. Pure.

The unit is the version span: all its tokens have one age. Spans need not get younger one after the
other, because a fork makes the newest of a lost branch the oldest, so a mask lists spans.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.events import MaskedSpans
from broker.groups import GroupRecord
from broker.timeline import Timeline
from common.types import RolloutHeader, SpanNumbers


def mask_rollout(rollout: RolloutHeader, timeline: Timeline, oldest_step: int) -> SpanNumbers:
    """Numbers of the version spans whose effective step is below ``oldest_step``."""
    return tuple(
        number
        for number, span in enumerate(rollout.version_spans)
        if timeline.effective_step(span.version) < oldest_step
    )


def mask_group(group: GroupRecord, timeline: Timeline, oldest_step: int) -> tuple[MaskedSpans, ...]:
    """Masks of all answers of ``group`` that need one."""
    masks = (
        (index, mask_rollout(item.rollout, timeline, oldest_step))
        for index, item in enumerate(group.indices)
        if item.rollout is not None
    )
    return tuple(
        MaskedSpans(group_id=group.group_id, index=index, spans=spans)
        for index, spans in masks
        if spans
    )


def is_all_masked(group: GroupRecord, masks: Iterable[MaskedSpans]) -> bool:
    """Whether ``masks`` leave the group no token to train on."""
    spans_of = {mask.index: mask.spans for mask in masks}
    for index, item in enumerate(group.indices):
        if item.rollout is None:
            continue
        masked = item.rollout.num_tokens_in(spans_of.get(index, ()))
        if masked < item.rollout.num_completion_tokens:
            return False
    return bool(spans_of)
