"""Requests that are held because there is nothing to give yet. Pure: the time is passed in.

Held requests stand in lines: those of one line are interchangeable, so that once a few clients got
nothing, nobody further back would. Between lines of a kind the order of arrival decides. Offering
costs a few attempts a line, however many requests are held.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Hashable, Iterator

import msgspec

from broker.groups import MAX_FAILED_BY
from common.messages import LeasePrompts, LeaseRollouts, PullGroups, Request, WatchWeights
from common.types import WeightVersion

_Ticket = tuple[bytes, int]
_MAX_STALE_DEADLINES = 1024


class Parked(msgspec.Struct, frozen=True):
    """One held request: who to answer, what it asked for, and until when it waits."""

    peer: bytes
    request_id: int
    client: str
    request: Request
    until_s: float


class _Place(msgspec.Struct, frozen=True):
    """Where a held request stands; ``number`` counts arrivals."""

    number: int
    line: tuple[type[Request], Hashable]
    parked: Parked


class WaitingRoom:
    """Held requests, in the order of arrival. A repeated request takes the place of the first."""

    def __init__(self) -> None:
        self._places: dict[_Ticket, _Place] = {}
        self._lines: dict[type[Request], dict[Hashable, dict[_Ticket, _Place]]] = {}
        self._by_client: dict[str, set[_Ticket]] = {}
        self._deadlines: list[tuple[float, _Ticket]] = []
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Parked]:
        return iter([place.parked for place in self._places.values()])

    def __len__(self) -> int:
        return len(self._places)

    def add(self, parked: Parked, serving: WeightVersion | None = None) -> None:
        """Hold a request of a client that serves ``serving``."""
        ticket = (parked.peer, parked.request_id)
        line = _line_of(parked.request, serving)
        former = self._places.get(ticket)
        if former is not None and former.line == line and former.parked.client == parked.client:
            self._insert(ticket, _Place(former.number, line, parked))
        else:
            self._remove(ticket)
            self._insert(ticket, _Place(next(self._numbers), line, parked))
        heapq.heappush(self._deadlines, (parked.until_s, ticket))

    def has_line(self, request: Request, serving: WeightVersion | None = None) -> bool:
        """Whether others already wait for just what ``request`` asks for."""
        kind, key = _line_of(request, serving)
        return bool(self._lines.get(kind, {}).get(key))

    def discard(self, parked: Parked) -> None:
        """Forget a request that was answered."""
        self._remove((parked.peer, parked.request_id))

    def serve(self, client: str, serving: WeightVersion) -> bool:
        """Note what a client serves by now; True when a request of it waits on that.

        Such a request goes to the end of the line of those that serve the same.
        """
        moved = False
        for ticket in sorted(self._by_client.get(client, ())):
            place = self._places[ticket]
            line = _line_of(place.parked.request, serving)
            if line != place.line:
                self._remove(ticket)
                self._insert(ticket, _Place(next(self._numbers), line, place.parked))
                moved = True
        return moved

    def take_client(self, name: str) -> list[Parked]:
        """Forget and return the requests of a client that is gone or has connected anew."""
        tickets = sorted(self._by_client.get(name, ()))
        return [place.parked for place in map(self._remove, tickets) if place is not None]

    def offer(self, kinds: Collection[type[Request]], attempt: Callable[[Parked], bool]) -> None:
        """Let held requests of these kinds try again; those for which ``attempt`` holds leave.

        A line is given up once ``MAX_FAILED_BY + 1`` different clients got nothing: no work is
        barred to more than ``MAX_FAILED_BY`` of them.
        """
        answered: list[Parked] = []
        for kind, lines in self._lines.items():  # a set of kinds has no order that can be repeated
            if lines and kind in kinds:
                answered.extend(_answered(list(lines.values()), attempt))
        for parked in answered:
            self.discard(parked)

    def take_expired(self, now_s: float) -> list[Parked]:
        """Forget and return the requests whose wait ran out."""
        expired: list[Parked] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            until_s, ticket = heapq.heappop(self._deadlines)
            place = self._places.get(ticket)
            if place is not None and place.parked.until_s == until_s:
                expired.append(place.parked)
                self._remove(ticket)
        return expired

    def next_deadline_s(self) -> float:
        """When the first wait may run out; infinity when nothing is held."""
        self._forget_stale_deadlines()
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def num_by_kind(self) -> dict[str, int]:
        """Held requests by the name of their message."""
        return {
            kind.__name__: sum(map(len, lines.values()))
            for kind, lines in self._lines.items()
            if lines
        }

    # --- lines ------------------------------------------------------------------------------------

    def _insert(self, ticket: _Ticket, place: _Place) -> None:
        self._places[ticket] = place
        self._by_client.setdefault(place.parked.client, set()).add(ticket)
        kind, key = place.line
        self._lines.setdefault(kind, {}).setdefault(key, {})[ticket] = place

    def _remove(self, ticket: _Ticket) -> _Place | None:
        place = self._places.pop(ticket, None)
        if place is None:
            return None
        kind, key = place.line
        line = self._lines[kind][key]
        del line[ticket]
        if not line:
            del self._lines[kind][key]
        tickets = self._by_client[place.parked.client]
        tickets.discard(ticket)
        if not tickets:
            del self._by_client[place.parked.client]
        return place

    def _forget_stale_deadlines(self) -> None:
        """Drop the deadlines of requests that have left: from the front, or all of them if many."""
        while self._deadlines and not self._is_due(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        if len(self._deadlines) > 2 * len(self._places) + _MAX_STALE_DEADLINES:
            self._deadlines = list(filter(self._is_due, self._deadlines))
            heapq.heapify(self._deadlines)

    def _is_due(self, deadline: tuple[float, _Ticket]) -> bool:
        until_s, ticket = deadline
        place = self._places.get(ticket)
        return place is not None and place.parked.until_s == until_s


def _line_of(request: Request, serving: WeightVersion | None) -> tuple[type[Request], Hashable]:
    """What tells requests apart that may fare differently; who asks is left to the attempts."""
    key: Hashable = None
    if isinstance(request, LeasePrompts):
        proven = request.serving if serving is None else max(request.serving, serving)
        key = (proven, request.max_groups == 0)
    elif isinstance(request, PullGroups):
        key = (request.policy_step, request.max_groups == 0, request.held)
    elif isinstance(request, WatchWeights):
        key = request.known
    elif isinstance(request, LeaseRollouts):
        key = request.max_rollouts == 0
    return type(request), key


def _answered(
    lines: list[dict[_Ticket, _Place]], attempt: Callable[[Parked], bool]
) -> Iterator[Parked]:
    """Try the requests of some lines in the order of arrival until the lines are given up."""
    heads: list[tuple[int, int, Parked]] = []
    followers = [iter(line.values()) for line in lines]
    failed: list[set[str]] = [set() for _ in lines]

    def advance(index: int) -> None:
        place = next(followers[index], None)
        if place is not None:
            heapq.heappush(heads, (place.number, index, place.parked))

    for index in range(len(lines)):
        advance(index)
    while heads:
        _, index, parked = heapq.heappop(heads)
        if attempt(parked):
            yield parked
        else:
            failed[index].add(parked.client)
        if len(failed[index]) <= MAX_FAILED_BY:
            advance(index)
