"""The processes that load a broker, or its baseline, for a benchmark.

``python -m deploy.bench.load KIND ARGUMENTS`` obeys lines of JSON on standard input, one command a
line, and answers each with one line. Times are of the machine's monotonic clock, so that those of
several processes compare.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from common.lifecycle import die_with_parent
from deploy.bench.load_baseline import Echo, Proxy, Sink, Source
from deploy.bench.load_clients import Collector, VerdictSource

_KINDS: dict[str, Callable[..., object]] = {
    "verdicts": VerdictSource,
    "collector": Collector,
    "source": Source,
    "sink": Sink,
    "proxy": Proxy,
    "echo": Echo,
}


def _commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Be one of the kinds until standard input ends."""
    die_with_parent()
    worker = _KINDS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({}), flush=True)
    for command in _commands():
        method = getattr(worker, command.pop("do"))
        print(json.dumps(method(**command)), flush=True)


if __name__ == "__main__":
    main()
