"""``python -m tests.fuzz --frames 1000000``: damaged messages against decoder and broker."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import structlog

from tests.fuzz.broker import Fuzzed, fuzz_broker
from tests.fuzz.decoding import feed_decoder
from tests.fuzz.mutations import damaged_messages
from tests.fuzz.process_report import fuzz_processes, report_of

_TARGETS = ("decoder", "strangers", "insiders")
_PROCESS = "process"


def main() -> None:
    """Fuzz and report; an error that should not be ends it with a traceback."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for target in options.target or _TARGETS:
        if target == _PROCESS:
            _fuzz_processes(options.frames, options.seed, options.report)
            continue
        started_s = time.perf_counter()
        messages = damaged_messages(options.seed, as_insiders=target != "strangers")
        if target == "decoder":
            tally = feed_decoder(next(messages) for _ in range(options.frames))
            print(f"decoder: {dict(tally)} in {time.perf_counter() - started_s:.0f} s")
            continue
        fuzzed = fuzz_broker(messages, options.frames, as_insiders=target == "insiders")
        if options.json:
            print(json.dumps(fuzzed.__dict__))
        else:
            _report(target, fuzzed, time.perf_counter() - started_s)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="messages for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target",
        choices=(*_TARGETS, _PROCESS),
        action="append",
        help="default: all but process, whose messages cross the socket of a real broker",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line a broker target")
    parser.add_argument("--report", type=Path, help="file for what became of the processes")
    return parser.parse_args()


def _fuzz_processes(num_messages: int, seed: int, path: Path | None) -> None:
    """Fuzz a broker process by strangers and another by insiders; report what became of them."""
    found = fuzz_processes(num_messages, seed)
    report = report_of(found, seed)
    text = json.dumps(report, indent=2) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.write_text(text, encoding="utf-8")
    if report["violations"]:
        raise SystemExit(f"violations: {report['violations']}")


def _report(title: str, fuzzed: Fuzzed, wall_s: float) -> None:
    print(
        f"{title}: {fuzzed.num_messages} messages in {wall_s:.0f} s, resident memory "
        f"{fuzzed.rss_growth_bytes / 2**20:+.1f} MiB, {fuzzed.honest_steps} honest steps beside"
    )
    for name, number in fuzzed.answers.most_common():
        print(f"  {name:28} {number}")


if __name__ == "__main__":
    main()
