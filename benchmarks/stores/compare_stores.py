"""Four stores under the broker's workload: speed, disk, recovery, kill -9 and damage.

Each measurement runs in a process of its own; stores take turns within every round, so that a busy
machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.stores.stores import STORES
from benchmarks.stores.workload import WORKLOADS, Workload

REPOSITORY = Path(__file__).parents[2]
CHILD = [sys.executable, "-m", "benchmarks.stores.compare_stores", "--child"]
FILL_BYTES = 256 << 20


# --- one process ----------------------------------------------------------------------------------


def child_run(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """Go on for some turns; times of commits, bytes written and kept."""
    started = time.perf_counter()
    store = STORES[store_name](folder)
    opened_s = time.perf_counter() - started
    mark = folder.with_suffix(".turn")
    first = int(mark.read_text()) + 1 if mark.exists() else 1
    before, times = _written_bytes(), []
    for turn in range(first, first + turns):
        started = time.perf_counter()
        workload.run(store, turn)
        times.append(time.perf_counter() - started)
    kept = _disk_bytes(folder)
    store.close()
    mark.write_text(str(first + turns - 1))
    offered = turns * (workload.payloads_per_turn * workload.payload_bytes + 36 * 150)
    live = len(workload.live(first + turns - 1)) * workload.payload_bytes
    return {
        "opened_s": opened_s,
        "times": times,
        "write_amplification": (_written_bytes() - before) / offered,
        "kept_bytes": kept,
        "live_bytes": live,
        "offered_bytes": offered,
    }


def child_write(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """Commit turns and say so until killed, or up to ``turns``; then die without closing."""
    store = STORES[store_name](folder)
    for turn in range(1, turns + 1):
        workload.run(store, turn)
        print(turn, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def child_fill(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """Fill with live payloads, die without closing."""
    store = STORES[store_name](folder)
    for turn in range(1, turns + 1):
        for group, index, data in workload.payloads(turn):
            store.put(group, index, data)
        store.turn(turn, workload.events(turn))
        store.commit()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def child_recover(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """Time from opening to knowing all keys and having read all events."""
    STORES[store_name](folder.with_suffix(".warm")).close()  # imports are not recovery
    started = time.perf_counter()
    store = STORES[store_name](folder)
    num_keys = len(list(store.keys()))
    num_events = len(list(store.events()))
    took = time.perf_counter() - started
    assert (num_keys, num_events) == (turns * workload.payloads_per_turn, turns)
    return {"recovered_s": took}


def child_verify(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """``right``, ``lost`` or ``wrong``; ``detected`` if the store says that it is damaged."""
    try:
        return {"verdict": workload.verdict(STORES[store_name](folder), turns)}
    except BaseException as error:  # rocksdict panics outside Exception
        return {"verdict": "detected", "error": str(error)[:200]}


def child_close(store_name: str, workload: Workload, folder: Path, turns: int) -> dict[str, Any]:
    """Write some turns and close in peace."""
    store = STORES[store_name](folder)
    for turn in range(1, turns + 1):
        workload.run(store, turn)
    store.close()
    return {}


def _written_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


# --- all of them ----------------------------------------------------------------------------------


def _call(mode: str, store: str, workload: str, folder: Path, turns: int) -> dict[str, Any]:
    done = subprocess.run(
        [*CHILD, mode, store, workload, str(folder), str(turns)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    return {"verdict": "crashed", "code": done.returncode, "error": done.stderr[-300:]}


def measure_speed(root: Path, rounds: int, turns: int) -> dict[str, Any]:
    """Commit times, throughput, amplification and disk of each store under each workload."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for round_number in range(rounds):
        for workload in WORKLOADS:
            names = list(STORES)
            random.Random(round_number).shuffle(names)
            for name in names:
                one = _call("run", name, workload, root / f"{workload}-{name}", turns)
                results.setdefault(workload, {}).setdefault(name, []).append(one)
    return {
        workload: {name: _summary(results[workload][name]) for name in STORES}
        for workload in WORKLOADS
    }


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    times = sorted(t for each in rounds for t in each["times"])
    rates = [each["offered_bytes"] / sum(each["times"]) / 1e6 for each in rounds]
    last = rounds[-1]
    return {
        "commit_ms": {
            "p50": 1e3 * times[len(times) // 2],
            "p99": 1e3 * times[len(times) * 99 // 100],
            "max": 1e3 * times[-1],
        },
        "mb_per_s": {"min": min(rates), "median": statistics.median(rates), "max": max(rates)},
        "write_amplification": statistics.median(e["write_amplification"] for e in rounds),
        "disk_mb": last["kept_bytes"] / 1e6,
        "live_mb": last["live_bytes"] / 1e6,
    }


def measure_recovery(root: Path, repeats: int) -> dict[str, Any]:
    """Seconds to be ready after kill -9 with 256 MiB of live payloads, page cache warm."""
    results: dict[str, Any] = {}
    for workload in ("4KiB", "256KiB"):
        each = WORKLOADS[workload]
        turns = FILL_BYTES // (each.payload_bytes * each.payloads_per_turn)
        for name in STORES:
            folder = root / f"fill-{workload}-{name}"
            _call("fill", name, workload, folder, turns)
            took = []
            for _ in range(repeats):
                copy = root / "recovering"
                shutil.copytree(folder, copy)
                os.sync()
                took.append(_call("recover", name, workload, copy, turns)["recovered_s"])
                shutil.rmtree(copy)
            shutil.rmtree(folder)
            per_gb = statistics.median(took) / (FILL_BYTES / 1e9)
            results.setdefault(workload, {})[name] = {"s_per_gb": per_gb, "s": took}
    return results


def measure_kills(root: Path, trials: int) -> dict[str, Any]:
    """kill -9 at random moments; everything that was acknowledged must be there."""
    results: dict[str, Counter[str]] = {name: Counter() for name in STORES}
    for trial in range(trials):
        for name in STORES:
            folder = root / f"kill-{name}"
            acknowledged = _kill(name, folder, random.Random(trial).uniform(0.02, 0.3))
            verdict = _call("verify", name, "4KiB", folder, acknowledged)["verdict"]
            results[name][verdict] += 1
            shutil.rmtree(folder)
    return {name: dict(count) for name, count in results.items()}


def _kill(name: str, folder: Path, delay_s: float) -> int:
    command = [*CHILD, "write", name, "4KiB", str(folder), "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        rest = process.stdout.read().rpartition("\n")[0].split()
    return int(rest[-1] if rest else first)


def measure_damage(root: Path, trials: int) -> dict[str, Any]:
    """One flipped bit, or a file cut short, at a random place among the bytes that are not zero."""
    results: dict[str, Any] = {}
    turns = 12
    for state, mode in (("closed", "close"), ("killed", "write")):
        for name in STORES:
            folder = root / f"damage-{state}-{name}"
            _call(mode, name, "4KiB", folder, turns)
            for kind in ("bit", "cut"):
                count: Counter[str] = Counter()
                for trial in range(trials):
                    copy = root / "damaged"
                    shutil.copytree(folder, copy)
                    _spoil(copy, kind, random.Random(1000 * trial + turns))
                    count[_call("verify", name, "4KiB", copy, turns)["verdict"]] += 1
                    shutil.rmtree(copy)
                results.setdefault(state, {}).setdefault(name, {})[kind] = dict(count)
    return results


def _spoil(folder: Path, kind: str, chance: random.Random) -> None:
    """Damage one byte that holds data: files hold their share of the trials by their data."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "LOG")
    contents = [path.read_bytes() for path in files]
    ends = [len(data.rstrip(b"\0")) for data in contents]
    at = chance.randrange(sum(ends))
    for path, data, end in zip(files, contents, ends, strict=True):
        if at < end:
            if kind == "bit":
                changed = bytes([data[at] ^ 1 << chance.randrange(8)])
                path.write_bytes(data[:at] + changed + data[at + 1 :])
            else:
                path.write_bytes(data[:at])
            return
        at -= end


def main() -> None:
    """Measure everything and print or write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk to measure", default=None)
    arguments = parser.parse_args()
    if arguments.child:
        mode, store, workload, folder, turns = arguments.child
        child = globals()[f"child_{mode}"]
        print(json.dumps(child(store, WORKLOADS[workload], Path(folder), int(turns))))
        return
    scale = 1 if arguments.quick else 5
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        result = {
            "name": "journal-stores",
            "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": _versions(),
            "speed": measure_speed(root, rounds=1 + scale, turns=100 + 40 * scale),
            "recovery": measure_recovery(root, repeats=scale),
            "kills": measure_kills(root, trials=10 * scale),
            "damage": measure_damage(root, trials=12 * scale),
        }
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    else:
        print(text)


def _versions() -> dict[str, str]:
    import sqlite3
    from importlib.metadata import version

    packages = {name: version(name) for name in ("rocksdict", "lmdb", "xxhash")}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **packages}


if __name__ == "__main__":
    main()
