"""The processes that move rollouts for benchmark B1.

``python -m deploy.bench.bulk KIND ARGUMENTS`` reads one JSON line with its orders on standard input
and answers with one line. Producers and consumers are plain loops over blocking sockets on both
sides of the comparison, so that what stands between them is what is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from common.lifecycle import die_with_parent
from deploy.bench.bulk_baseline import bare_store, proxy, pull, push
from deploy.bench.bulk_broker import lease, submit
from deploy.bench.bulk_direct import fetch_directly, keep
from deploy.bench.bulk_store import fetch, ledger, put
from deploy.bench.bulk_wire import STOPWATCH, Orders

_KINDS: dict[str, Callable[..., Orders | None]] = {
    "proxy": proxy,
    "bare-store": bare_store,
    "push": push,
    "pull": pull,
    "put": put,
    "fetch": fetch,
    "ledger": ledger,
    "keep": keep,
    "fetch-directly": fetch_directly,
    "submit": submit,
    "lease": lease,
}


def main() -> None:
    """Be one of the kinds."""
    die_with_parent()
    answer = _KINDS[sys.argv[1]](*sys.argv[2:]) or {}
    print(json.dumps(answer | {"processor_us": STOPWATCH.microseconds()}), flush=True)


if __name__ == "__main__":
    main()
