"""The broker's metrics: gauges from the ledger, counters from the events of each turn."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence

from broker import events
from broker.events import AnyEvent, Counter
from broker.fleet import Fleet
from broker.ledger import Ledger
from common.metrics import Metrics
from common.types import EvictReason, Role

_STATES = ("admitted", "trained", "evicted", "dead_lettered", "leased", "pending")


def export_gauges(metrics: Metrics, ledger: Ledger, fleet: Fleet, journal_bytes: int) -> None:
    """Write all gauges of the broker."""
    counts = ledger.counts
    for state in _STATES:
        metrics.set("headrace_groups", getattr(counts, state), state=state)
    for reason in EvictReason:
        evicted = ledger.state.num_evicted.get(reason, 0)
        metrics.set("headrace_groups_evicted", evicted, reason=reason.value)
    clients = fleet.num_by_role()
    for role in Role:
        metrics.set("headrace_clients", clients[role], role=role.value)
    metrics.set("headrace_conservation_imbalance", counts.imbalance)
    metrics.set("headrace_policy_step", ledger.state.policy_step)
    metrics.set("headrace_journal_bytes", journal_bytes)


def count_requests(metrics: Metrics, kinds: Iterable[str], refused: Iterable[str]) -> None:
    """Count the requests of a turn by kind, and those refused by code."""
    for kind, number in Tally(kinds).items():
        metrics.inc("headrace_requests_total", number, kind=kind)
    for code, number in Tally(refused).items():
        metrics.inc("headrace_requests_refused_total", number, code=code)


def count_events(metrics: Metrics, happened: Sequence[AnyEvent]) -> None:
    """Count what the events of a turn say about repeated work."""
    for event in happened:
        if isinstance(event, events.Released):
            number = len(event.indices)
            metrics.inc("headrace_leases_redelivered_total", number, work="generate")
        elif isinstance(event, events.VerifyReleased):
            metrics.inc("headrace_leases_redelivered_total", work="verify")
        elif isinstance(event, events.Counted) and event.what is Counter.QUARANTINED:
            metrics.inc("headrace_rollouts_quarantined_total")
        elif isinstance(event, events.Counted) and event.what in (Counter.DUPLICATE, Counter.LATE):
            metrics.inc("headrace_rollouts_duplicate_total")
