"""Rules for the ``[stores]`` section of a run file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.config import Config

_TCP = re.compile(r"tcp://[^:/\s]+:\d{1,5}")


def store_rules(config: Config) -> Iterator[str]:
    """What is wrong with ``config.stores``, each with its cure."""
    stores = config.stores
    if stores.max_bytes < 2 * stores.segment_bytes:
        yield (
            f"stores.max_bytes must be at least twice stores.segment_bytes "
            f"({stores.segment_bytes}), got {stores.max_bytes} (use 68719476736)"
        )
    yield from _endpoint_rules(config)
    if stores.payloads == "direct":
        yield from _direct_rules(config)


def _endpoint_rules(config: Config) -> Iterator[str]:
    endpoint = config.stores.endpoint
    if endpoint != "ipc" and not _TCP.fullmatch(endpoint):
        yield (
            f'stores.endpoint must be "ipc" or "tcp://host:port", got {endpoint!r} '
            '(use "tcp://*:0" between machines)'
        )
    elif endpoint != "ipc" and not (config.security.keys or config.broker.allow_plaintext_tcp):
        yield (
            f"stores.endpoint {endpoint!r} is neither encrypted nor authenticated (make keys with "
            "headrace keys DIRECTORY and set security.keys; or set broker.allow_plaintext_tcp = "
            "true on a network that you trust)"
        )


def _direct_rules(config: Config) -> Iterator[str]:
    """Room for all rollouts of the open groups, however they fall to the actors.

    An actor takes a group only with room for all of it, so each may have almost a group of room
    that it cannot use; with less than this a batch could wait for groups that nobody may take.
    """
    group_bytes = config.group_size * config.max_rollout_bytes
    share = -(-config.max_outstanding_groups // config.actor.count)
    needed = (share + 1) * group_bytes
    if config.stores.direct_bytes < needed:
        yield (
            f"stores.direct_bytes must hold {share + 1} groups of the longest rollouts, "
            f"{needed} bytes, got {config.stores.direct_bytes} (raise it, or start more actors)"
        )
