"""A rollout group as the ledger keeps it: one record a group, one a sampled index.

A group counts as *leased* while anybody holds any part of it: an actor (generating), a verifier
(verifying) or the consumer (handed over, stepped). Otherwise it is *pending*: every index waits for
an actor, waits for a verifier, or is verified.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter

import msgspec

from common.types import (
    Prompt,
    RolloutHeader,
    Verdict,
    VerifiedGroup,
    VerifiedRollout,
    WeightVersion,
)

MAX_FAILED_BY = 8
"""Clients remembered for having failed at one answer; more than it takes to dead-letter it."""


class Phase(enum.Enum):
    """Where one index of a group stands."""

    WAITING = "waiting"
    GENERATING = "generating"
    GENERATED = "generated"
    VERIFYING = "verifying"
    VERIFIED = "verified"

    __hash__ = object.__hash__  # members are single objects; Enum would hash their names in Python

    @property
    def is_held(self) -> bool:
        """True while a client works on it."""
        return self in (GENERATING, VERIFYING)

    @property
    def has_rollout(self) -> bool:
        """True once a complete rollout was accepted."""
        return self not in (WAITING, GENERATING)


WAITING, GENERATING, GENERATED, VERIFYING, VERIFIED = Phase
"""By these names, because Python 3.11 takes ten times as long to look up a member of an Enum."""

HELD_PHASES = frozenset(phase for phase in Phase if phase.is_held)
_phase_of = attrgetter("phase")


class Place(enum.Enum):
    """Where a live group stands towards the consumer."""

    OPEN = "open"
    HANDED_OVER = "handed_over"
    STEPPED = "stepped"


OPEN, HANDED_OVER, STEPPED = Place


class IndexRecord(msgspec.Struct, gc=False):
    """One answer of a group: phase, holder, accepted rollout and verdict."""

    phase: Phase = WAITING
    owner: str = ""
    attempt: int = 0
    """Generation attempt that is under way or that was accepted; 0 before the first."""
    verify_attempt: int = 0
    rollout: RolloutHeader | None = None
    content_hash: str = ""
    verdict: Verdict | None = None
    num_errors: int = 0
    num_lost: int = 0
    failed_by: tuple[str, ...] = ()
    """The last clients whose work on it ended in an error or with their loss, newest last."""
    masked_spans: tuple[int, ...] = ()
    """Version spans that are too old for the batch that the group was last handed over for."""

    def is_barred_to(self, owner: str, peers: Collection[str]) -> bool:
        """Whether ``owner`` failed at it while one of its ``peers`` may still do better."""
        if owner not in self.failed_by:
            return False
        return len(peers) > sum(name in peers for name in self.failed_by)

    def note_failure(self) -> None:
        """Remember that the present owner failed."""
        others = tuple(name for name in self.failed_by if name != self.owner)
        self.failed_by = (*others, self.owner)[-MAX_FAILED_BY:]


class GroupRecord(msgspec.Struct, gc=False):
    """One live group: admitted, not yet trained, evicted or dead-lettered."""

    group_id: int
    prompt: Prompt
    indices: list[IndexRecord]
    deadline_step: int = 0
    place: Place = OPEN
    versions: dict[int, WeightVersion] = msgspec.field(default_factory=dict)
    """Version that the actor served, by generation attempt."""
    errors: tuple[str, ...] = ()
    position: int | None = None
    """Of the prompt in the list of its set; None where prompts do not come back."""
    is_judged: bool = False
    """Whether every answer has had a verdict; a lost one that is sampled again counts no more."""
    references: dict[int, WeightVersion] = msgspec.field(default_factory=dict)
    """Reference policy whose log-probabilities are kept last, by index."""

    @property
    def phases(self) -> set[Phase]:
        """Where its indices stand."""
        return set(map(_phase_of, self.indices))

    @property
    def is_leased(self) -> bool:
        """Whether anybody holds a part of it."""
        return self.place is not OPEN or not HELD_PHASES.isdisjoint(self.phases)

    @property
    def is_verified(self) -> bool:
        """Whether every index has a verdict."""
        return self.phases == {VERIFIED}

    @property
    def is_untouched(self) -> bool:
        """Whether no token of it exists or is being sampled: any actor may start it afresh."""
        return self.phases == {WAITING}

    @property
    def num_finished(self) -> int:
        """Rollouts that were accepted."""
        return sum(item.phase.has_rollout for item in self.indices)

    def in_phase(self, phase: Phase) -> list[int]:
        """Indices that are in ``phase``."""
        return [n for n, item in enumerate(self.indices) if item.phase is phase]

    def sampling_versions(self) -> Iterable[WeightVersion]:
        """Versions of all tokens, accepted and being sampled."""
        for item in self.indices:
            if item.rollout is not None:
                yield from (span.version for span in item.rollout.version_spans)
            elif item.phase is GENERATING:
                yield self.versions[item.attempt]

    def verified_group(self) -> VerifiedGroup:
        """The group as it was last handed over to the consumer."""
        return self.masked_group({n: item.masked_spans for n, item in enumerate(self.indices)})

    def masked_group(self, masked_spans: Mapping[int, tuple[int, ...]]) -> VerifiedGroup:
        """The group with these version spans masked, by index."""
        return VerifiedGroup(
            group_id=self.group_id,
            prompt=self.prompt,
            deadline_step=self.deadline_step,
            rollouts=tuple(
                _verified_rollout(item, masked_spans.get(index, ()), self.references.get(index))
                for index, item in enumerate(self.indices)
            ),
        )


def _verified_rollout(
    item: IndexRecord, masked_spans: tuple[int, ...], reference: WeightVersion | None
) -> VerifiedRollout:
    if item.rollout is None or item.verdict is None:
        raise ValueError("only a verified index has a verdict")
    return VerifiedRollout(
        rollout=item.rollout,
        verdict=item.verdict,
        masked_spans=masked_spans,
        reference_version=reference,
    )
