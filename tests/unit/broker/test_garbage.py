"""Which cycles are looked for, and when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from broker import garbage


class Ring:
    """An object that only the collector of cycles can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def _dropped_ring() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


def test_a_quiet_broker_frees_the_cycles_that_libraries_leave_behind() -> None:
    garbage.begin()
    ring = _dropped_ring()
    assert ring() is not None
    garbage.tidy(garbage.QUIET_MESSAGES)
    assert ring() is None


def test_a_busy_broker_walks_nothing_and_never_walks_it_later() -> None:
    garbage.begin()
    ledger = [[number] for number in range(10_000)]
    assert gc.get_count()[0] > 0
    before = sum(stats["collections"] for stats in gc.get_stats())
    garbage.tidy(garbage.QUIET_MESSAGES + 1)
    assert sum(stats["collections"] for stats in gc.get_stats()) == before
    assert not any(one is ledger[0] for one in gc.get_objects())


def test_what_was_set_aside_is_freed_when_nothing_refers_to_it() -> None:
    garbage.begin()
    kept = Ring()
    watched = weakref.ref(kept)
    garbage.tidy(garbage.QUIET_MESSAGES + 1)
    kept.itself = None  # type: ignore[assignment]  # the cycle ends, and with it the object
    del kept
    assert watched() is None
