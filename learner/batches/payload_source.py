"""Arrays of rollouts, from the broker or from the server that holds them (hop: broker -> learner).

They come as frames: whether their values are possible is for ``documents`` to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from common.codec import frames_of_each
from common.errors import FatalError
from common.messages import FetchRollouts, Rollouts
from common.payloads.client import Fetched, Wanted
from common.types import RolloutHeader, RolloutId
from learner.batches.layout import PlannedRollout
from learner.broker_client import BrokerClient, in_portions

Payload = tuple[RolloutHeader, Sequence[memoryview]]


class PayloadFetcher(Protocol):
    """What the learner needs of :class:`common.payloads.wiring.SyncPayloadClient`."""

    def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | None]:
        """Each rollout in order, None for one that is lost, which the broker then knows."""
        ...


class PayloadSource:
    """Where this rank gets the arrays of its share."""

    def __init__(self, channel: BrokerClient, fetcher: PayloadFetcher | None = None) -> None:
        """``fetcher`` gets what is not with the broker; None where everything is."""
        self._channel = channel
        self._fetcher = fetcher

    def fetch(self, wanted: Sequence[PlannedRollout]) -> Iterator[Payload]:
        """Headers with their frames, those of the broker first; one that is lost is left out.

        Raises :class:`FatalError` where the broker does not hold what it handed over, and where
        payloads lie with servers that this learner does not ask.
        """
        yield from self._from_broker([item.rollout_id for item in wanted if not item.store])
        elsewhere = [item for item in wanted if item.store]
        for part in in_portions(elsewhere):
            for fetched in self._fetcher_for(part[0]).fetch([_wanted(item) for item in part]):
                if fetched is not None:
                    yield fetched.header, fetched.frames

    def _fetcher_for(self, rollout: PlannedRollout) -> PayloadFetcher:
        if self._fetcher is None:
            raise FatalError(
                f'stores.payloads must not be "broker": the arrays of group '
                f"{rollout.rollout_id.group_id} are with {rollout.store!r} (use the value under "
                "which they were sampled)"
            )
        return self._fetcher

    def _from_broker(self, wanted: Sequence[RolloutId]) -> Iterator[Payload]:
        for part in in_portions(wanted):
            decoded = self._channel.request(FetchRollouts(rollout_ids=tuple(part)))
            reply = decoded.message
            if not isinstance(reply, Rollouts) or len(reply.rollouts) != len(part):
                raise FatalError(f"the broker does not hold all payloads of {part[0].group_id}...")
            frames = frames_of_each(reply.rollouts, decoded.frames)
            yield from zip(reply.rollouts, frames, strict=True)


def _wanted(rollout: PlannedRollout) -> Wanted:
    arrays = 4 * (rollout.num_prompt_tokens + 2 * rollout.num_completion_tokens)
    num_bytes = arrays + rollout.num_routing_bytes
    return Wanted(rollout.rollout_id, rollout.store, num_bytes, rollout.header_hash)
