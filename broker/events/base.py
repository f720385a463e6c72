"""What all events are made of, and the occurrences that change no group."""

from __future__ import annotations

import enum

from common.types import Record


class Counter(enum.Enum):
    """Occurrences that change no group."""

    DUPLICATE = "duplicate"
    LATE = "late"
    QUARANTINED = "quarantined"
    TIMED_OUT = "timed_out"
    REFERENCE_REPEATED = "reference_repeated"
    WEIGHT_SYNC = "weight_sync"
    WEIGHT_PROOF_FAILED = "weight_proof_failed"


class Event(Record, frozen=True, tag=True):
    """Base of the tagged union."""


class Counted(Event, frozen=True):
    """One occurrence of something that changes no group."""

    what: Counter
