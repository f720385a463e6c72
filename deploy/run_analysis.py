"""Figures of a run from its telemetry: rates, idle shares, lag, memory. Pure, no files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deploy.telemetry_records import SILENT, ProcessScrape, Scrape, StepRecord

_MAX_GAP_S = 10.0
"""Scrapes are two seconds apart: where more is missing, nobody was supervising."""


@dataclass(frozen=True, slots=True)
class RoleTime:
    """Seconds that the processes of one role spent working and waiting."""

    busy_s: float
    idle_s: float

    @property
    def busy_ratio(self) -> float:
        """Share of the accounted time spent working; 0 when none was accounted."""
        total_s = self.busy_s + self.idle_s
        return self.busy_s / total_s if total_s > 0 else 0.0

    @property
    def idle_ratio(self) -> float:
        """1 - ``busy_ratio``."""
        return 1.0 - self.busy_ratio


def counter_increases(
    scrapes: Sequence[Scrape], read: Callable[[ProcessScrape], float]
) -> dict[str, float]:
    """By process name, how much a counter grew over ``scrapes``.

    A restarted process starts again at 0: what it has counted since is all new.
    """
    increases: dict[str, float] = {}
    latest: dict[str, tuple[int, float]] = {}
    for scrape in scrapes:
        for name, process in scrape.processes.items():
            if process.state == SILENT:
                continue
            value = read(process)
            pid, previous = latest.get(name, (process.pid, value))
            base = previous if pid == process.pid else 0.0
            increases[name] = increases.get(name, 0.0) + max(0.0, value - base)
            latest[name] = (process.pid, value)
    return increases


def between(scrapes: Sequence[Scrape], begin: float, end: float) -> list[Scrape]:
    """Scrapes from the last one at or before ``begin`` to the first one at or after ``end``."""
    first = max((i for i, item in enumerate(scrapes) if item.time <= begin), default=0)
    ends = (i for i, item in enumerate(scrapes) if item.time >= end)
    last = next(ends, len(scrapes) - 1)
    return list(scrapes[first : last + 1])


def training_window(
    steps: Sequence[StepRecord], scrapes: Sequence[Scrape]
) -> tuple[float, float] | None:
    """Unix times from the start of the first training batch to the end of the last, if any.

    Start-up is left out: the first batch begins when its groups are first waited for.
    """
    if not steps:
        return None
    begin = steps[0].time - sum(steps[0].seconds.values())
    first_token = next((s.time for s in scrapes if _generated(s) > 0), begin)
    return (min(max(begin, first_token), steps[0].time), steps[-1].time)


def role_times(scrapes: Sequence[Scrape]) -> dict[str, RoleTime]:
    """Working and waiting time of each role over ``scrapes``.

    A role without counters of its own works while it uses a processor. Time that is in no counter
    yet is waiting time: a long wait is counted only when it ends.
    """
    busy = counter_increases(scrapes, _busy_s)
    idle = counter_increases(scrapes, lambda process: sum(process.idle_s.values()))
    roles = {name: p.role for scrape in scrapes for name, p in scrape.processes.items()}
    span_s = observed_s(scrapes)
    times: dict[str, RoleTime] = {}
    for name, role in roles.items():
        busy_s = busy.get(name, 0.0)
        idle_s = max(idle.get(name, 0.0), span_s - busy_s)
        before = times.get(role, RoleTime(0.0, 0.0))
        times[role] = RoleTime(before.busy_s + busy_s, before.idle_s + idle_s)
    return times


def tokens_per_second(scrapes: Sequence[Scrape]) -> float:
    """Completion tokens sampled a second over ``scrapes``, all actors together."""
    span_s = observed_s(scrapes)
    if span_s <= 0:
        return 0.0
    return sum(counter_increases(scrapes, lambda p: p.generated_tokens).values()) / span_s


def observed_s(scrapes: Sequence[Scrape]) -> float:
    """Seconds that ``scrapes`` cover; the time between a stop and a resume is left out."""
    gaps = (after.time - before.time for before, after in itertools.pairwise(scrapes))
    return sum(gap for gap in gaps if gap <= _MAX_GAP_S)


def token_rates(scrapes: Sequence[Scrape], window_s: float = 6.0) -> list[tuple[float, float]]:
    """(unix time, tokens a second) over sliding windows of about ``window_s``."""
    rates = []
    begin = 0
    for end, scrape in enumerate(scrapes):
        while scrape.time - scrapes[begin].time > window_s:
            begin += 1
        if end > begin:
            rates.append((scrape.time, tokens_per_second(scrapes[begin : end + 1])))
    return rates


def series(
    steps: Iterable[StepRecord], read: Callable[[StepRecord], float | None]
) -> list[tuple[int, float]]:
    """(policy step, value) of the batches in which the value is known."""
    found = ((step.policy_step, read(step)) for step in steps)
    return [(step, value) for step, value in found if value is not None]


def lag_histogram(steps: Iterable[StepRecord]) -> dict[int, int]:
    """Trained tokens by policy lag, over all batches."""
    total: Counter[int] = Counter()
    for step in steps:
        total.update({int(lag): count for lag, count in step.lag_histogram.items()})
    return dict(sorted(total.items()))


def peak_rss_bytes(scrapes: Iterable[Scrape]) -> int:
    """Largest resident memory of all processes together that was sampled."""
    return max((scrape.rss_bytes for scrape in scrapes), default=0)


def seconds_left(steps: Sequence[StepRecord], num_steps: int) -> float | None:
    """Time to the last step at the pace of the last ten; None before there is a pace."""
    times = [step.time for step in steps[-11:]]
    if len(times) < 2:
        return None
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    return max(0, num_steps - steps[-1].policy_step - 1) * gaps[len(gaps) // 2]


def _generated(scrape: Scrape) -> float:
    return sum(process.generated_tokens for process in scrape.processes.values())


def _busy_s(process: ProcessScrape) -> float:
    return sum(process.busy_s.values()) if process.busy_s else process.cpu_s
