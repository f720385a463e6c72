"""Garbage: a payload server asks which of its groups have ended, and forgets those.

Asking is stateless and can be repeated: neither a restart of the broker nor one of the server can
leave anything behind for good.
"""

from __future__ import annotations

import asyncio
import contextlib

from common.errors import DecodeError, InfraError
from common.messages import Ended, ListEnded
from common.payloads.backing import Backing
from common.payloads.client import Requester

GROUPS_PER_QUESTION = 16384
_TIMEOUT_S = 10.0


async def drop_ended(broker: Requester, backing: Backing, *, stepped: bool = False) -> int:
    """Ask once about all groups that are kept; returns how many were dropped.

    ``stepped`` also gives up what would only serve a replay. Raises :class:`InfraError` when the
    broker does not answer.
    """
    held = backing.group_ids()
    num_dropped = 0
    for start in range(0, len(held), GROUPS_PER_QUESTION):
        question = ListEnded(
            group_ids=tuple(held[start : start + GROUPS_PER_QUESTION]), stepped=stepped
        )
        reply = (await broker.request(question, timeout_s=_TIMEOUT_S)).message
        if not isinstance(reply, Ended):
            raise DecodeError(f"unexpected reply {type(reply).__name__} to ListEnded")
        backing.drop_groups(reply.group_ids)
        num_dropped += len(reply.group_ids)
    backing.commit()
    return num_dropped


async def sweep_forever(broker: Requester, backing: Backing, every_s: float) -> None:
    """Drop what has ended every ``every_s``; an absent broker ends no groups."""
    while True:
        with contextlib.suppress(InfraError, DecodeError):
            await drop_ended(broker, backing)
        await asyncio.sleep(every_s)
