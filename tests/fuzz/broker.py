"""Damaged messages against a whole broker, while honest clients are served.

The world is that of ``tests.simulation`` without faults, so its oracle watches the learner: what
reaches it must have been submitted by an honest actor.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from broker.events import AnyEvent
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from common.batching import decode_requests
from common.codec import decode
from common.messages import Acks, Refused, Register
from common.types import Role
from tests.fuzz.mutations import Parts, whole_message
from tests.simulation.books import Books, RecoveredJournal
from tests.simulation.network import BROKER, Connection, DealerSocket, Network
from tests.simulation.scenario import Scenario
from tests.simulation.trace import Violation
from tests.simulation.world import World

_MESSAGES_A_TURN = 40
_TURN_S = 0.01
_BEGIN_S = 5.0
_SETTLE_S = 60.0
_KEPT_STRANGERS = 200
_INSIDERS = tuple(Role)
_RULES = LedgerRules(group_size=2, groups_per_step=2, num_steps=10**6, max_policy_lag=2)


@dataclass
class Fuzzed:
    """What became of the damaged messages."""

    num_messages: int = 0
    num_requests: int = 0
    """Requests in them, each to be answered; what is no message counts as one."""
    answers: Counter[str] = field(default_factory=Counter)
    honest_steps: int = 0
    rss_growth_bytes: int = 0


class _Thrower(DealerSocket):
    """A connection without a client: it throws what it is given and counts what it is answered."""

    def __init__(self, network: Network, peer: bytes, answers: Counter[str]) -> None:
        super().__init__(network, "thrower")
        self._answers = answers
        router = network.routers[BROKER]
        self._thrown = Connection("thrower", peer, self, router)
        router.peers[peer] = self._thrown

    def throw(self, parts: Parts) -> None:
        """Have the broker receive ``parts`` at once."""
        self._thrown.router.on_message(self._thrown, parts)

    def leave(self) -> None:
        """Be answered no more."""
        self._thrown.router.peers.pop(self._thrown.peer, None)

    def on_message(self, connection: Connection, parts: list[bytes]) -> None:
        """Count an answer."""
        message = decode(parts).message
        if isinstance(message, Acks):
            self._answers["Ack"] += len(message.acks)
            return
        code = f" {message.code}" if isinstance(message, Refused) else ""
        self._answers[type(message).__name__ + code] += 1


class _BlindBooks(Books):
    """Insiders may end groups as they like: only conservation is left to check."""

    def event_happened(self, ledger: Ledger, event: AnyEvent) -> None:
        """See :meth:`Books.event_happened`."""

    def check_recovered(self, ledger: Ledger, payloads: RecoveredJournal) -> None:
        """See :meth:`Books.check_recovered`."""


class FuzzedWorld(World):
    """A world into which damaged messages are thrown until there are none left.

    Strangers never register; the honest clients beside them must not notice. Insiders are
    registered, one of each role, and have the broker to themselves.
    """

    def __init__(self, messages: Iterator[Parts], num_messages: int, *, as_insiders: bool) -> None:
        scenario = Scenario(
            rules=_RULES,
            num_actors=2,
            num_verifiers=1,
            enabled=(),
            rate=1.0,
            storm_s=0.0,
            poison_every=0,
            num_prompts=None,
        )
        super().__init__("fuzz", scenario, _BlindBooks(_RULES) if as_insiders else None)
        self.fuzzed = Fuzzed()
        self._messages = messages
        self._num_messages = num_messages
        self._as_insiders = as_insiders
        self._throwers: deque[_Thrower] = deque()

    async def _run(self) -> None:
        honest = [] if self._as_insiders else [client.run() for client in self.clients]
        tasks = [asyncio.create_task(job) for job in (self.broker.run(), *honest)]
        throwing = asyncio.create_task(self._throw_all())
        await asyncio.wait([*tasks, throwing], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, throwing):
            if task.done():
                task.result()

    async def _throw_all(self) -> None:
        """Throw everything in two equal rounds: what the first one takes in memory is warming up.

        Both readings come after the same rest, so that what the world itself keeps (its trace, its
        disk) is filled with the same kind of traffic at either.
        """
        await asyncio.sleep(_BEGIN_S)
        half = self._num_messages // 2
        await self._throw(range(half))
        warm_bytes = _rss_bytes()
        await self._throw(range(half, self._num_messages))
        self.fuzzed.num_messages = self._num_messages
        self.fuzzed.rss_growth_bytes = _rss_bytes() - warm_bytes
        self.fuzzed.honest_steps = self.books.committed_step

    async def _throw(self, numbers: range) -> None:
        """One round, and a rest in which the honest clients have to be served."""
        for number in numbers:
            thrower = self._insider(number) if self._as_insiders else self._stranger(number)
            parts = next(self._messages)
            self.fuzzed.num_requests += len(decode_requests(parts))
            thrower.throw(parts)
            if number % _MESSAGES_A_TURN == 0:
                await asyncio.sleep(_TURN_S)
        steps_before = self.books.committed_step
        await asyncio.sleep(_SETTLE_S)
        if not self._as_insiders and self.books.committed_step <= steps_before:
            raise Violation("G10", "the honest clients are not served any more")

    def _stranger(self, number: int) -> _Thrower:
        if len(self._throwers) > _KEPT_STRANGERS:
            self._throwers.popleft().leave()
        peer = b"s" + number.to_bytes(5, "big")
        self._throwers.append(_Thrower(self.network, peer, self.fuzzed.answers))
        return self._throwers[-1]

    def _insider(self, number: int) -> _Thrower:
        """One of the registered peers; each registers anew from time to time."""
        roles = len(_INSIDERS)
        if len(self._throwers) < roles:
            peer = b"i" + len(self._throwers).to_bytes(5, "big")
            self._throwers.append(_Thrower(self.network, peer, self.fuzzed.answers))
        thrower = self._throwers[number % len(self._throwers)]
        if number % (roles * 100) < roles:
            role = _INSIDERS[number % roles]
            name = f"insider-{number % roles}"
            register = Register(role=role, name=name, nonce=f"n{number}", host="h", pid=1)
            thrower.throw(whole_message(register))
        return thrower


def _rss_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def fuzz_broker(messages: Iterator[Parts], num_messages: int, *, as_insiders: bool) -> Fuzzed:
    """Throw ``num_messages`` at a broker; raises :class:`Violation` when it breaks a promise."""
    world = FuzzedWorld(messages, num_messages, as_insiders=as_insiders)
    world.run()
    return world.fuzzed
