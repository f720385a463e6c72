"""B2: control messages a second through a real broker, against what ``zmq.proxy`` forwards.

Every message is a verdict of 512 bytes with a request id of its own. The broker looks up its lease,
writes a durable event and acknowledges it. Sources run in their own processes and send bytes that
were encoded beforehand, so that the broker is what is measured. They send as a channel with a
backlog does: what waits leaves in batches of at most :data:`MAX_BATCH_REQUESTS` verdicts. Reported
beside it is the rate with each verdict in a message of its own.

The proxy forwards messages of the same size one by one, each in two frames, over sockets with the
same options from as many sources to one sink, one way and without a reply, each message sent and
received as pyzmq does it (``send_multipart``, ``recv_multipart``). Reported beside it: what it
forwards between loops that do nothing but move frames, and the same when the sink acknowledges.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.messages import MAX_BATCH_REQUESTS
from deploy.bench.processes import BrokerUnderTest, Worker, close_all, percentile_bound
from deploy.bench.result import BenchResult, hardware_name, versions

NUM_SOURCES = 2
NUM_MESSAGES = 20_480
"""Messages a source and repeat through the broker."""
NUM_ALONE = NUM_MESSAGES // 2
"""The same without batches."""
NUM_FORWARDED = 3 * NUM_MESSAGES
"""The same through the proxy: so many that it runs about as long."""
REPEATS = 7
GROUP_SIZE = 16
MIN_SHARE = 0.35
MIN_PER_SECOND = 20_000.0


@dataclass
class _Rates:
    """Messages a second of each repeat, and what the broker spent on them."""

    broker: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    proxy: list[float] = field(default_factory=list)
    frames: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    cycle: list[float] = field(default_factory=list)
    cycle_cpu_us: list[float] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Ours over the proxy's, repeat by repeat."""
        return _ratios(self.broker, self.proxy)


def bench_control() -> BenchResult:
    """Measure; the gate is on the lower quartile of the ratio."""
    rates = _Rates()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        per_source = (NUM_MESSAGES + NUM_ALONE) // GROUP_SIZE
        with BrokerUnderTest(
            folder, max_groups=2 * NUM_SOURCES * per_source, group_size=GROUP_SIZE
        ) as broker:
            workers = [
                Worker("verdicts", broker.endpoint, f"source-{n}") for n in range(NUM_SOURCES)
            ]
            collector = Worker("collector", broker.endpoint)
            try:
                details = _measure(broker, workers, collector, folder, rates)
            finally:
                close_all([*workers, collector])
    lower_quartile = statistics.quantiles(rates.shares, n=4)[0]
    slowest = min(rates.broker)
    return BenchResult(
        name="control",
        ratio=lower_quartile,
        goal=f">= {MIN_SHARE:g} of zmq.proxy and >= {MIN_PER_SECOND:,.0f} messages a second",
        passed=lower_quartile >= MIN_SHARE and slowest >= MIN_PER_SECOND,
        baseline="zmq.proxy between pyzmq clients, one way, messages of the same size, no reply",
        hardware=hardware_name(),
        details={
            "broker_messages_per_second": _spread(rates.broker),
            "verdicts_per_batch": MAX_BATCH_REQUESTS,
            "unbatched_messages_per_second": _spread(rates.alone),
            "proxy_messages_per_second": _spread(rates.proxy),
            "frames_through_proxy_messages_per_second": _spread(rates.frames),
            "acknowledged_frames_through_proxy_messages_per_second": _spread(rates.acknowledged),
            "share": _spread(rates.shares),
            "unbatched_share": _spread(_ratios(rates.alone, rates.proxy)),
            "broker_cpu_us_per_message": _spread(rates.cpu_us),
            "full_cycle_messages_per_second": _spread(rates.cycle),
            "full_cycle_cpu_us_per_message": _spread(rates.cycle_cpu_us),
            **details,
            "versions": versions("pyzmq", "msgspec", "uvloop"),
        },
    )


def _measure(
    broker: BrokerUnderTest, workers: list[Worker], collector: Worker, folder: Path, rates: _Rates
) -> dict[str, object]:
    _one_repeat(broker, workers, collector, folder, _Rates())  # warms up
    before = {name: broker.histogram(name) for name in _HISTOGRAMS}
    for _ in range(REPEATS):
        _one_repeat(broker, workers, collector, folder, rates)
    after = {name: broker.histogram(name) for name in _HISTOGRAMS}
    return {
        f"{name}_p{round(100 * share)}_at_most": percentile_bound(before[name], after[name], share)
        for name in _HISTOGRAMS
        for share in (0.5, 0.99)
    }


_HISTOGRAMS = ("headrace_commit_seconds", "headrace_turn_messages")


def _one_repeat(
    broker: BrokerUnderTest, workers: list[Worker], collector: Worker, folder: Path, rates: _Rates
) -> None:
    """The whole life of some groups, with the verdicts fired as fast as they go; then the proxy."""
    start_s, cycle_cpu_s = time.monotonic(), broker.cpu_seconds()
    prepared = _all(workers, "prepare", number=NUM_MESSAGES + NUM_ALONE)
    cpu_s = broker.cpu_seconds()
    fired = _all(workers, "fire", number=NUM_MESSAGES)
    cpu_s = broker.cpu_seconds() - cpu_s
    alone = _all(workers, "fire", number=NUM_ALONE, batch=1)
    num_groups = NUM_SOURCES * (NUM_MESSAGES + NUM_ALONE) // GROUP_SIZE
    drained = collector.ask("drain", number=num_groups)
    cycle_cpu_s = broker.cpu_seconds() - cycle_cpu_s
    num_fired = sum(one["messages"] for one in fired)
    num_all = sum(one["messages"] for one in (*prepared, *fired, *alone, drained))
    rates.cycle.append(num_all / (time.monotonic() - start_s))
    rates.broker.append(num_fired / _span_s(fired))
    rates.alone.append(sum(one["messages"] for one in alone) / _span_s(alone))
    rates.cpu_us.append(1e6 * cpu_s / num_fired)
    rates.cycle_cpu_us.append(1e6 * cycle_cpu_s / num_all)
    rates.proxy.append(_proxy_rate(folder, "fire_plainly", "count_plainly"))
    rates.frames.append(_proxy_rate(folder, "fire", "count"))
    rates.acknowledged.append(_proxy_rate(folder, "fire_acknowledged", "acknowledge"))


def _proxy_rate(folder: Path, send: str, receive: str) -> float:
    """Messages a second that ``zmq.proxy`` forwards."""
    front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
    proxy = Worker("proxy", front, back)
    proxy.tell("run")
    sink = Worker("sink", back)
    sources = [Worker("source", front) for _ in range(NUM_SOURCES)]
    try:
        sink.tell(receive, number=NUM_SOURCES * NUM_FORWARDED)
        started = _all(sources, send, number=NUM_FORWARDED)
        end_s: float = sink.answer()["end_s"]
    finally:
        close_all([*sources, sink, proxy])
    start_s: float = min(one["start_s"] for one in started)
    span_s = end_s - start_s
    return NUM_SOURCES * NUM_FORWARDED / span_s


def _all(workers: list[Worker], do: str, **arguments: object) -> list[dict[str, Any]]:
    """One command to all at once."""
    for worker in workers:
        worker.tell(do, **arguments)
    return [worker.answer() for worker in workers]


def _span_s(reports: list[dict[str, Any]]) -> float:
    start_s: float = min(one["start_s"] for one in reports)
    end_s: float = max(one["end_s"] for one in reports)
    return end_s - start_s


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
