"""B1: bytes a second of stored and forwarded rollouts, against what ``zmq.proxy`` forwards.

Four producers and two consumers on this machine, rollouts of 256 KiB, over TCP on the loopback
interface: the transport of stores between machines. ``zmq.proxy`` (PULL and PUSH) forwards the same
frames in C and keeps nothing. Ours keeps every rollout in its log before it acknowledges it, and
answers a request for it from there. Measured beside it, in the same rounds: a bare store, which
writes and forwards and speaks no protocol; a store that syncs before it acknowledges, as a share of
what the disk syncs by itself; the broker's own path; and rollouts fetched straight from their
producers, against PUSH and PULL without anything between.

The processor time a rollout is measured, too: on a machine with more processes than cores it
decides about the rates, and what else the machine does hardly changes it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.bench.broker_paths import (
    NUM_PRODUCERS,
    NUM_ROLLOUTS,
    Measured,
    direct,
    disk_fdatasync,
    push_pull,
    through_bare_store,
    through_broker,
    through_proxy,
    through_store,
)
from deploy.bench.bulk_wire import ROLLOUT_BYTES
from deploy.bench.result import BenchResult, hardware_name, versions

REPEATS = 5
MIN_STORED = 0.90
MIN_DIRECT = 0.95
_TOUCHED_BYTES = 3 << 30

Rounds = dict[str, list[Measured]]
"""What each path measured, round by round."""


def bench_broker() -> BenchResult:
    """Measure; the gates are on the lower quartile of the ratios."""
    rounds = _rounds()
    stored = _ratios(rounds, "store_relaxed", "proxy", _rate)
    directly = _ratios(rounds, "direct", "push_pull", _rate)
    ratio, direct_ratio = _lower_quartile(stored), _lower_quartile(directly)
    return BenchResult(
        name="broker",
        ratio=ratio,
        goal=f">= {MIN_STORED:g} of zmq.proxy stored, >= {MIN_DIRECT:g} of PUSH/PULL directly",
        passed=ratio >= MIN_STORED and direct_ratio >= MIN_DIRECT,
        baseline="zmq.proxy between the same producers and consumers",
        hardware=hardware_name(),
        details={
            "stored_over_proxy": _spread(stored),
            "direct_over_push_pull": _spread(directly),
            **_other_figures(rounds),
            "rollout_bytes": ROLLOUT_BYTES,
            "rollouts_per_round": NUM_PRODUCERS * NUM_ROLLOUTS,
            "versions": versions("pyzmq", "msgspec", "xxhash"),
        },
    )


def _other_figures(rounds: Rounds) -> dict[str, object]:
    """What stands beside the gates."""
    durable = _ratios(rounds, "store_durable", "disk_fdatasync", _rate)
    timed = {kind: found for kind, found in rounds.items() if found[0].middle_us}
    return {
        "bare_store_over_proxy": _spread(_ratios(rounds, "bare_store", "proxy", _rate)),
        "broker_over_proxy": _spread(_ratios(rounds, "broker_relaxed", "proxy", _rate)),
        "durable_over_disk": _spread(durable),
        "by_processor_time": {
            "stored_over_proxy": _spread(_ratios(rounds, "store_relaxed", "proxy", _per_second)),
            "bare_store_over_proxy": _spread(_ratios(rounds, "bare_store", "proxy", _per_second)),
        },
        "processor_us_per_rollout": {
            kind: {
                "middle": statistics.median(each.middle_us for each in found),
                "producers_and_consumers": statistics.median(each.ends_us for each in found),
            }
            for kind, found in timed.items()
        },
        "megabytes_per_second": {
            kind: _spread([each.rate for each in found]) for kind, found in rounds.items()
        },
    }


def _rounds() -> Rounds:
    rounds: Rounds = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        touch_memory(Path(name))
        for turn in range(REPEATS + 1):
            for kind, measured in _round(Path(name) / str(turn)):
                if turn:  # the first round warms up
                    rounds.setdefault(kind, []).append(measured)
    return rounds


def touch_memory(folder: Path) -> None:
    """Use, and give back, as many pages as a round does.

    A virtual machine gets its memory page by page when it is first used, which takes twenty times
    longer than to use a page again, and a machine that has been up for a while has used all of it.
    """
    file, data = folder / "touched", bytes(16 << 20)
    with open(file, "wb") as target:
        for _ in range(_TOUCHED_BYTES // len(data)):
            target.write(data)
    file.unlink()


def _round(folder: Path) -> Iterator[tuple[str, Measured]]:
    """Every path once, one after the other."""
    folder.mkdir()
    yield "proxy", through_proxy()
    for acks in ("relaxed", "durable"):
        yield f"store_{acks}", through_store(folder / acks, acks)
    yield "bare_store", through_bare_store(folder / "bare")
    yield "broker_relaxed", through_broker(folder / "broker")
    yield "disk_fdatasync", disk_fdatasync(folder / "disk")
    yield "push_pull", push_pull()
    yield "direct", direct()


# --- figures --------------------------------------------------------------------------------------


def _rate(measured: Measured) -> float:
    return measured.rate


def _per_second(measured: Measured) -> float:
    """Rollouts for each second of processor time that all processes of a path use together."""
    return 1e6 / (measured.middle_us + measured.ends_us)


def _ratios(
    rounds: Rounds, ours: str, theirs: str, figure: Callable[[Measured], float]
) -> list[float]:
    """Round by round."""
    pairs = zip(rounds[ours], rounds[theirs], strict=True)
    return [figure(mine) / figure(other) for mine, other in pairs]


def _lower_quartile(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "lower_quartile": _lower_quartile(values),
        "median": statistics.median(values),
        "max": max(values),
    }
