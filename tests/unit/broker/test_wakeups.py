"""Which events have held requests tried again: a run must never wait for a tick to go on."""

from __future__ import annotations

import typing

from broker import events
from broker.events import AnyEvent, Counter
from broker.wakeups import ALL_KINDS, woken_by
from common.messages import LeasePrompts, LeaseRollouts, PullGroups, WatchWeights
from tests.builders import rollout_header, version


def test_an_event_that_nobody_has_thought_about_wakes_everybody() -> None:
    assert woken_by([events.Sealed()]) == ALL_KINDS
    assert woken_by([events.Evicted(group_ids=(1,), reason=typing.cast("typing.Any", None))]) == (
        ALL_KINDS
    )


def test_a_rollout_wakes_verifiers_and_a_verdict_the_consumer() -> None:
    generated = events.Generated(rollout=rollout_header(), content_hash="h", deadline_step=0)
    assert woken_by([generated]) == {LeaseRollouts}
    leased = events.VerifyLeased(group_id=0, index=0, attempt=1, owner="v")
    assert woken_by([leased]) == set()
    verified = events.Verified(
        group_id=0, index=0, attempt=1, verdict=typing.cast("typing.Any", None)
    )
    assert woken_by([generated, verified]) == {LeaseRollouts, PullGroups}


def test_published_weights_wake_who_watches_and_who_may_sample_under_them() -> None:
    announced = events.Announced(announcement=typing.cast("typing.Any", version(1)), manifest=b"")
    assert woken_by([announced]) == {LeasePrompts, WatchWeights}


def test_a_count_wakes_nobody() -> None:
    happened: list[AnyEvent] = [events.Counted(what=Counter.LATE)]
    assert woken_by(happened) == set()
