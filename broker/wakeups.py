"""Which held requests an event may satisfy. Pure.

An event that is not listed may satisfy any; listed are those that come with every rollout, so that
their turns do not ask everybody again.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker import events
from broker.events import AnyEvent
from common.messages import LeasePrompts, LeaseRollouts, PullGroups, Request, WatchWeights

Kinds = frozenset[type[Request]]

ALL_KINDS: Kinds = frozenset((LeasePrompts, LeaseRollouts, PullGroups, WatchWeights))
_NOBODY: Kinds = frozenset()
_WOKEN_BY: dict[type[AnyEvent], Kinds] = {
    events.SettingKept: _NOBODY,
    events.PromptSetOpened: _NOBODY,
    events.MixBegan: _NOBODY,
    events.Admitted: _NOBODY,
    events.Leased: _NOBODY,
    events.Generated: frozenset((LeaseRollouts,)),
    events.VerifyLeased: _NOBODY,
    events.VerifyReleased: frozenset((LeaseRollouts,)),
    events.PayloadLost: frozenset((LeasePrompts,)),
    events.Verified: frozenset((PullGroups,)),
    events.ReferenceWanted: frozenset((LeaseRollouts,)),
    events.GroupJudged: frozenset((PullGroups,)),
    events.HandedOver: frozenset((PullGroups,)),
    events.Announced: frozenset((LeasePrompts, WatchWeights)),
    events.Counted: _NOBODY,
}


def woken_by(happened: Iterable[AnyEvent]) -> Kinds:
    """Kinds of held requests that may be answered differently after these events."""
    kinds = _NOBODY
    for kind in set(map(type, happened)):
        kinds |= _WOKEN_BY.get(kind, ALL_KINDS)
    return kinds
