"""Where the arrays of rollouts are when they are not with the broker, and how they travel then.

A payload server (a store, or an actor that keeps its own) answers ``PutRollouts`` and
``FetchRollouts``. The broker answers the others: which servers there are, which groups no longer
need their arrays, and what to do about arrays that are gone.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import GroupIds, Message, Names
from common.types import Endpoint, Name, Record, RolloutHeader, RolloutId


class PutRollouts(Message, frozen=True):
    """Keep the arrays of these rollouts: the frames of each, in order.

    The acknowledgement names what it promises; putting the same rollout again changes nothing.
    """

    rollouts: Annotated[tuple[RolloutHeader, ...], msgspec.Meta(min_length=1, max_length=65536)]


class GetStores(Message, frozen=True):
    """Ask the broker where payload servers are; without ``names``, for all stores."""

    names: Names = ()


class StoreAddress(Record, frozen=True):
    """One live payload server."""

    name: Name
    endpoint: Endpoint


class Stores(Message, frozen=True):
    """Reply to :class:`GetStores`: those of the servers asked for that are alive."""

    stores: Annotated[tuple[StoreAddress, ...], msgspec.Meta(max_length=16384)] = ()


class ListEnded(Message, frozen=True):
    """A payload server asks which of the groups that it holds need their arrays no more.

    ``stepped`` asks for groups in a committed step as well: their arrays would only serve a replay,
    and a learner that cannot replay forks.
    """

    group_ids: GroupIds
    stepped: bool = False


class Ended(Message, frozen=True):
    """Reply to :class:`ListEnded`."""

    group_ids: GroupIds = ()


class ReportLost(Message, frozen=True):
    """The server that should hold these rollouts does not: they have to be sampled again."""

    rollout_ids: Annotated[tuple[RolloutId, ...], msgspec.Meta(min_length=1, max_length=65536)]
