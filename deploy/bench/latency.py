"""B4: how long a control message queues in a broker at half load, against a raw round trip.

One process sends verdicts at half the rate that the broker was measured to take just before; as
from a channel, those that are due at the same time leave in batches. Another has a few under way,
each in a message of its own, and waits for their acknowledgements, which come after the events are
on disk. The baseline are as many messages of the same size at a time to a ROUTER in another process
that sends them back. The two take turns within a repeat, so that what the machine does beside lands
on both, and there are so many probes that 45 of each side lie above the 99th percentile: one sync
that the disk holds up does not decide it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.bench.processes import BrokerUnderTest, Worker, close_all, fdatasync_seconds
from deploy.bench.raw_client import MESSAGE_BYTES
from deploy.bench.result import BenchResult, hardware_name, versions

REPEATS = 5
NUM_TURNS = 3
"""Of either side in a repeat."""
NUM_PROBES = 1504
"""In a turn."""
NUM_LANES = 4
"""Probes that are under way at a time."""
PAUSE_S = 0.002
"""Between an answer and the next probe, so that they meet the broker in every state."""
PROBES_PER_SECOND = NUM_LANES / (2 * PAUSE_S)
"""Expected; they are part of the load."""
_PACE = {"pause_s": PAUSE_S, "num_lanes": NUM_LANES}
BURST = 10_240
GROUP_SIZE = 16
MAX_RATIO = 8.0


@dataclass
class _Samples:
    """Percentiles of each repeat, in seconds."""

    broker_p50: list[float] = field(default_factory=list)
    broker_p99: list[float] = field(default_factory=list)
    raw_p50: list[float] = field(default_factory=list)
    raw_p99: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Round trip through the broker over the raw one, repeat by repeat."""
        pairs = zip(self.broker_p99, self.raw_p99, strict=True)
        return [ours / raw for ours, raw in pairs]


def bench_latency() -> BenchResult:
    """Measure; the gate is on the upper quartile of the ratio, lower is better."""
    samples = _Samples()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        with BrokerUnderTest(folder, max_groups=1 << 20, group_size=GROUP_SIZE) as broker:
            load = Worker("verdicts", broker.endpoint, "load")
            probe = Worker("verdicts", broker.endpoint, "probe")
            collector = Worker("collector", broker.endpoint)
            try:
                _one_repeat(load, probe, collector, folder, _Samples())  # warms up
                for _ in range(REPEATS):
                    _one_repeat(load, probe, collector, folder, samples)
            finally:
                close_all([load, probe, collector])
    ratio = statistics.quantiles(samples.ratios, n=4)[2]
    return BenchResult(
        name="latency",
        ratio=ratio,
        goal=f"<= {MAX_RATIO:g}x the p99 of a raw round trip",
        passed=ratio <= MAX_RATIO,
        baseline=f"p99 of a round trip of {MESSAGE_BYTES} bytes to a ROUTER in another process",
        hardware=hardware_name(),
        details={
            "ratio_by_repeat": samples.ratios,
            "broker_p50_s": statistics.median(samples.broker_p50),
            "broker_p99_s": statistics.median(samples.broker_p99),
            "raw_p50_s": statistics.median(samples.raw_p50),
            "raw_p99_s": statistics.median(samples.raw_p99),
            "load_messages_per_second": statistics.median(samples.load),
            **fdatasync_seconds(),
            "versions": versions("pyzmq", "msgspec", "uvloop"),
        },
    )


def _one_repeat(
    load: Worker, probe: Worker, collector: Worker, folder: Path, samples: _Samples
) -> None:
    """A burst that tells the capacity, then probes at half of it and raw ones by turns."""
    load.ask("prepare", number=BURST)
    burst = load.ask("fire", number=BURST)
    collector.ask("drain", number=BURST // GROUP_SIZE)
    half = 0.5 * BURST / (burst["end_s"] - burst["start_s"])
    ours: list[float] = []
    raw: list[float] = []
    with _echo(folder) as source:
        for _ in range(NUM_TURNS):
            ours += _at_load(load, probe, collector, half)
            raw += source.ask("probe", number=NUM_PROBES, **_PACE)["seconds"]
    samples.load.append(half)
    samples.broker_p50.append(_percentile(ours, 50))
    samples.broker_p99.append(_percentile(ours, 99))
    samples.raw_p50.append(_percentile(raw, 50))
    samples.raw_p99.append(_percentile(raw, 99))


def _at_load(load: Worker, probe: Worker, collector: Worker, per_second: float) -> list[float]:
    """Seconds of each probe of one turn; what was sent is drained before it returns."""
    num_paced = _whole_groups(per_second * NUM_PROBES / PROBES_PER_SECOND)
    load.ask("prepare", number=num_paced)
    probe.ask("prepare", number=NUM_PROBES)
    load.tell("pace", number=num_paced, per_second=per_second - PROBES_PER_SECOND)
    seconds: list[float] = probe.ask("probe", number=NUM_PROBES, **_PACE)["seconds"]
    load.answer()
    collector.ask("drain", number=(num_paced + NUM_PROBES) // GROUP_SIZE)
    return seconds


@contextmanager
def _echo(folder: Path) -> Iterator[Worker]:
    """A client of a ROUTER in another process that sends back what it gets."""
    endpoint = f"ipc://{folder}/echo"
    echo = Worker("echo", endpoint)
    echo.tell("run")
    source = Worker("source", endpoint)
    try:
        source.ask("probe", number=NUM_PROBES // 5, **_PACE)  # warms up
        yield source
    finally:
        close_all([source, echo])


def _whole_groups(number: float) -> int:
    return GROUP_SIZE * math.ceil(number / GROUP_SIZE)


def _percentile(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1]
