"""What can happen to the ledger: one record an event, as written to the journal.

An event carries its outcome (attempt, deadline), never the rule that led to it, so that replaying
a journal under a changed configuration rebuilds the same state.
"""

from __future__ import annotations

from broker.events.base import Counted, Counter, Event
from broker.events.groups import (
    Admitted,
    Collected,
    DeadLettered,
    Evicted,
    Generated,
    GroupJudged,
    HandedOver,
    Leased,
    MaskedSpans,
    PayloadLost,
    PutBack,
    ReferenceWanted,
    Released,
    Restamped,
    Stepped,
    Trained,
    Verified,
    VerifyLeased,
    VerifyReleased,
)
from broker.events.run import (
    Announced,
    CollectorStarted,
    MixBegan,
    PromptSetOpened,
    ReferenceSet,
    Resumed,
    Sealed,
    SettingKept,
    SetWeight,
)

__all__ = [
    "Admitted",
    "Announced",
    "AnyEvent",
    "Collected",
    "CollectorStarted",
    "Counted",
    "Counter",
    "DeadLettered",
    "Event",
    "Evicted",
    "Generated",
    "GroupJudged",
    "HandedOver",
    "Leased",
    "MaskedSpans",
    "MixBegan",
    "PayloadLost",
    "PromptSetOpened",
    "PutBack",
    "ReferenceSet",
    "ReferenceWanted",
    "Released",
    "Restamped",
    "Resumed",
    "Sealed",
    "SetWeight",
    "SettingKept",
    "Stepped",
    "Trained",
    "Verified",
    "VerifyLeased",
    "VerifyReleased",
]

AnyEvent = (
    SettingKept
    | PromptSetOpened
    | MixBegan
    | Admitted
    | Leased
    | Released
    | Generated
    | VerifyLeased
    | VerifyReleased
    | PayloadLost
    | Verified
    | ReferenceWanted
    | ReferenceSet
    | GroupJudged
    | HandedOver
    | PutBack
    | Restamped
    | Stepped
    | Trained
    | Collected
    | Evicted
    | DeadLettered
    | Announced
    | Resumed
    | Sealed
    | CollectorStarted
    | Counted
)
