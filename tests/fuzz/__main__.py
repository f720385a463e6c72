"""``python -m tests.fuzz --frames 1000000``: damaged messages against decoder and broker."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator

import structlog

from common.messages import Register
from tests.contract.samples import SAMPLES
from tests.fuzz.broker import Fuzzed, fuzz_broker
from tests.fuzz.decoding import feed_decoder
from tests.fuzz.mutations import Mutator, Parts, whole_message

_TARGETS = ("decoder", "strangers", "insiders")


def damaged_messages(seed: int, *, as_insiders: bool) -> Iterator[Parts]:
    """Endless damaged messages made from one sample of each.

    Insiders send some whole ones, to get the broker into more states; strangers have no
    registration to damage, for one that is whole would make them insiders.
    """
    samples = [m for m in SAMPLES if as_insiders or not isinstance(m, Register)]
    corpus = [whole_message(message) for message in samples]
    mutator = Mutator(corpus, seed, whole_share=0.2 if as_insiders else 0.0)
    while True:
        parts = mutator.next()
        if parts:
            yield parts


def main() -> None:
    """Fuzz and report; an error that should not be ends it with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="messages for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=_TARGETS, action="append", help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON line a broker target")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for target in options.target or _TARGETS:
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


def _report(title: str, fuzzed: Fuzzed, wall_s: float) -> None:
    print(
        f"{title}: {fuzzed.num_messages} messages in {wall_s:.0f} s, resident memory "
        f"{fuzzed.rss_growth_bytes / 2**20:+.1f} MiB, {fuzzed.honest_steps} honest steps beside"
    )
    for name, number in fuzzed.answers.most_common():
        print(f"  {name:28} {number}")


if __name__ == "__main__":
    main()
