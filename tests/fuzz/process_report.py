"""Fuzzes broker processes by strangers and by insiders, and says what became of them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from deploy.bench.result import hardware_name, versions
from tests.fuzz.mutations import damaged_messages
from tests.fuzz.process import FuzzedProcess, fuzz_process

LONGEST_WAIT_S = 62.0
"""A little longer than any request may ask to be held."""
NOT_COVERED = (
    "damage below the messages: tests/fuzz/test_raw_sockets.py has that",
    "clients that hold a key and lie (Byzantine)",
)


def fuzz_processes(
    num_messages: int, seed: int, rest_s: float = LONGEST_WAIT_S
) -> dict[str, FuzzedProcess]:
    """Throw half of the messages as strangers and half as insiders, each at a broker of its own.

    ``rest_s``: seconds of rest before memory is compared.
    """
    half = num_messages // 2
    return {
        "strangers": _fuzz(half, seed, rest_s, as_insiders=False),
        "insiders": _fuzz(num_messages - half, seed, rest_s, as_insiders=True),
    }


def _fuzz(num_messages: int, seed: int, rest_s: float, *, as_insiders: bool) -> FuzzedProcess:
    messages = damaged_messages(seed, as_insiders=as_insiders)
    with tempfile.TemporaryDirectory() as folder:
        thrown = fuzz_process(
            Path(folder), messages, num_messages, as_insiders=as_insiders, rest_s=rest_s
        )
        return asyncio.run(thrown)


def report_of(found: dict[str, FuzzedProcess], seed: int) -> dict[str, Any]:
    """Everything that was done and found, ready for JSON."""
    return {
        "name": "fuzz-broker",
        "seed": seed,
        "hardware": hardware_name(),
        "versions": versions("pyzmq", "msgspec"),
        "messages": sum(fuzzed.num_messages for fuzzed in found.values()),
        "violations": [
            f"{name}: {text}" for name, fuzzed in found.items() for text in fuzzed.violations()
        ],
        "campaigns": {name: _summary(fuzzed) for name, fuzzed in found.items()},
        "not_covered": NOT_COVERED,
    }


def _summary(fuzzed: FuzzedProcess) -> dict[str, Any]:
    return {
        "messages": fuzzed.num_messages,
        "requests": fuzzed.num_requests,
        "answers": dict(fuzzed.answers.most_common()),
        "groups_delivered": fuzzed.num_delivered,
        "honest_steps": fuzzed.honest_steps,
        "groups": msgspec.structs.asdict(fuzzed.groups),
        "rss_mib": fuzzed.rss_mib,
        "rss_growth_bytes": fuzzed.rss_growth_bytes,
        "messages_per_s": round(fuzzed.num_messages / fuzzed.wall_s),
        "wall_s": round(fuzzed.wall_s, 1),
    }
