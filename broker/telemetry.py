"""The broker's metrics: gauges from the ledger, counters from the events of each turn."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from broker import events
from broker.events import AnyEvent, Counter
from broker.fleet import Fleet
from broker.journal import Journal
from broker.ledger import Ledger
from broker.length_tally import LengthTally
from broker.prompts.metrics import export_prompts
from common.codec import Decoded
from common.errors import DecodeError
from common.flow_control import FlowControl
from common.metrics import Metrics
from common.types import EvictReason, Role

_STATES = ("admitted", "trained", "evicted", "dead_lettered", "leased", "pending")


def export_gauges(metrics: Metrics, ledger: Ledger, fleet: Fleet) -> None:
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
    export_prompts(metrics, ledger.state.prompts)


def export_journal(metrics: Metrics, journal: Journal) -> None:
    """Write the gauges of the journal."""
    metrics.set("headrace_journal_bytes", journal.num_bytes)
    metrics.set("headrace_journal_live_bytes", journal.live_bytes)
    metrics.set("headrace_journal_full", 0 if journal.accepts_payloads else 1)


def export_flow(metrics: Metrics, flow: FlowControl, leaving_bytes: int) -> None:
    """Write the gauges of byte credit and of arrays on their way out."""
    metrics.set("headrace_credit_free_bytes", flow.credit.free_bytes)
    metrics.set("headrace_credit_waiting", flow.num_waiting)
    metrics.set("headrace_replies_leaving_bytes", leaving_bytes)


def count_requests(metrics: Metrics, received: Iterable[Decoded | DecodeError]) -> None:
    """Count the requests of a turn by kind."""
    kinds = Tally([type(getattr(decoded, "message", decoded)) for decoded in received])
    for kind, number in kinds.items():
        name = "malformed" if kind is DecodeError else kind.__name__
        metrics.inc("headrace_requests_total", number, kind=name)


def count_refused(metrics: Metrics, code: str) -> None:
    """Count a refusal by its code."""
    metrics.inc("headrace_requests_refused_total", code=code)


def count_events(metrics: Metrics, happened: Iterable[AnyEvent]) -> None:
    """Count what the events of a turn say about repeated work."""
    happened = list(happened)
    if _COUNTED.isdisjoint(map(type, happened)):  # so in most turns
        return
    for event in happened:
        if type(event) in _COUNTED:
            _count_event(metrics, event)


_COUNTED = frozenset((events.Released, events.VerifyReleased, events.PayloadLost, events.Counted))
_COUNTERS = {
    Counter.QUARANTINED: "headrace_rollouts_quarantined_total",
    Counter.DUPLICATE: "headrace_rollouts_duplicate_total",
    Counter.LATE: "headrace_rollouts_duplicate_total",
    Counter.TIMED_OUT: "headrace_groups_timed_out_total",
    Counter.REFERENCE_REPEATED: "headrace_reference_passes_repeated_total",
}


def _count_event(metrics: Metrics, event: AnyEvent) -> None:
    if isinstance(event, events.Released):
        metrics.inc("headrace_leases_redelivered_total", len(event.indices), work="generate")
    elif isinstance(event, events.VerifyReleased):
        metrics.inc("headrace_leases_redelivered_total", work="verify")
    elif isinstance(event, events.PayloadLost):
        metrics.inc("headrace_payloads_lost_total")
    elif isinstance(event, events.Counted) and event.what in _COUNTERS:
        metrics.inc(_COUNTERS[event.what])


def count_lengths(metrics: Metrics, tally: LengthTally) -> None:
    """Count answers and tokens by length, and empty ``tally``."""
    if tally.is_empty:
        return
    for sampling, answers in (("first", tally.first), ("resampled", tally.resampled)):
        for num_tokens, number in answers.items():
            for _ in range(number):
                metrics.observe("headrace_answer_length_tokens", num_tokens, sampling=sampling)
    metrics.inc("headrace_rollouts_resampled_total", tally.resampled.total())
    for length, number in tally.handed_over.items():
        metrics.inc("headrace_tokens_handed_over_total", number, length=length)
        metrics.inc("headrace_tokens_masked_total", tally.masked[length], length=length)
    tally.clear()
