"""Rules about ``[broker]``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.config import Config


def broker_rules(config: Config) -> Iterator[str]:
    """Each rule that the broker's settings break."""
    broker = config.broker
    if broker.dead_after_s < 2 * broker.heartbeat_s:
        yield (
            f"broker.dead_after_s must be at least twice broker.heartbeat_s "
            f"({broker.heartbeat_s}), got {broker.dead_after_s} (use 15)"
        )
    least = 3 * broker.journal_segment_bytes
    if broker.max_journal_bytes and broker.max_journal_bytes < least:
        yield (
            f"broker.max_journal_bytes must be 0 or hold 3 segments of "
            f"broker.journal_segment_bytes ({least} bytes), got {broker.max_journal_bytes} "
            "(use 0 to let the disk decide)"
        )
    if broker.endpoint == "ipc":
        return
    if not re.fullmatch(r"tcp://[^:/\s]+:\d{1,5}", broker.endpoint):
        yield (
            f'broker.endpoint must be "ipc" or "tcp://host:port", got {broker.endpoint!r} '
            '(use "ipc" on one machine)'
        )
    elif not config.security.keys and not broker.allow_plaintext_tcp:
        yield (
            f"broker.endpoint {broker.endpoint!r} is neither encrypted nor authenticated "
            "(make keys with headrace keys DIRECTORY and set security.keys; or set "
            "broker.allow_plaintext_tcp = true on a network that you trust)"
        )
