"""A simulated machine with one broker on it: the real server over a simulated socket and disk.

Everything from :class:`common.broker_socket.BrokerSocket` up is the real code, put together as
``broker.main`` does. The machine can be killed at any operation on its disk and at any reply.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from broker.engine import Engine
from broker.exchange import Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal.files import Files
from broker.journal.journal import RELAXED_WINDOW_S, Acks, Journal
from broker.journal.log import Log
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.resume_rules import adopt_rules
from broker.server import Server
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket
from common.errors import JournalError
from common.flow_control import FlowControl
from common.metrics import Metrics
from common.types import Prompt, Role
from tests.fake_disk import Killed
from tests.scripted_prompts import ScriptedPrompts
from tests.simulation.books import Books
from tests.simulation.checked_ledger import CheckedLedger, History
from tests.simulation.disk import Disk, PowerLost
from tests.simulation.network import Network, RouterSocket, SimulatedContext, as_context, as_socket
from tests.simulation.sync_thread import VirtualSyncer, VirtualSyncThread
from tests.simulation.trace import Violation
from tests.simulation.upkeep_thread import SteppedFiles, VirtualUpkeep
from tests.simulation.virtual_time import VirtualClock, VirtualLoop

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

HEARTBEAT_S = 2.0
LEASE_S = 15.0
_RESTART_S = 3.0
_SLACK_S = 0.1
_POOLS_BYTES = (160, 400, 1 << 20)
"""Byte credit: for three rollouts at a time, for some, for all."""


class _Silence:
    """A logger that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _numbered_prompts(num_prompts: int | None) -> ScriptedPrompts:
    """Numbered prompts; ``num_prompts`` of them, or no end."""

    def prompt_at(cursor: int) -> Prompt | None:
        is_over = num_prompts is not None and cursor >= num_prompts
        return None if is_over else _prompt(cursor)

    return ScriptedPrompts(prompt_at)


def _prompt(cursor: int) -> Prompt:
    return Prompt(prompt_id=f"p{cursor}", text="1+1=", task="arithmetic")


class BrokerNode:
    """The broker of a world, over all its lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        disk: Disk,
        books: Books,
        rules: LedgerRules,
        seeded: random.Random,
        num_prompts: int | None,
        acks: Acks = "durable",
    ) -> None:
        self._acks = acks
        self._loop = loop
        self._network = network
        self._disk = disk
        self._books = books
        self._rules = rules
        self._random = seeded
        self._prompts = _numbered_prompts(num_prompts)
        self._pool_bytes = seeded.choice(_POOLS_BYTES)
        self._upkeep_random = random.Random(seeded.getrandbits(32))
        self._upkeep: VirtualUpkeep | None = None
        self._upkeep_error: BaseException | None = None
        self._files = SteppedFiles(disk.fake)
        self._num_lives = 0
        self._router: RouterSocket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._replies_left = -1
        self.ledger: Ledger = CheckedLedger(rules)
        self._history = History(loop.time)
        self._may_forget_since_s = float("inf")
        """What happened later may be gone: the promise of relaxed acknowledgements."""
        self._journal: Journal | None = None
        self._safe_s = 0.0
        """What happened before is durable, as far as the lives that ended have promised."""

    @property
    def payload_groups(self) -> Collection[int]:
        """Groups whose arrays are kept."""
        return () if self._journal is None else self._journal.payload_groups

    @property
    def is_up(self) -> bool:
        """Whether a broker is serving."""
        return self._serving is not None and not self._serving.done()

    async def run(self) -> None:
        """Serve, and start again whenever the broker has died."""
        while True:
            try:
                server, journal = self._assemble()
                self._journal = journal
            except Killed:
                self._restore_power()
                continue
            except JournalError as error:
                if not self._disk.is_full:
                    raise
                self._network.trace.step(f"broker did not start: {error}")
                await asyncio.sleep(_RESTART_S)
                continue
            started_s, self._may_forget_since_s = self._loop.time(), float("inf")
            self._serving = asyncio.create_task(server.serve(), name="broker")
            try:
                await asyncio.wait({self._serving})
                self._check_death(self._serving)
            finally:
                self._stop(journal)
            unsafe_s = RELAXED_WINDOW_S + 2 * self._disk.fake.sync_s + _SLACK_S
            self._safe_s = max(started_s, self._loop.time() - unsafe_s)
            await asyncio.sleep(_RESTART_S * self._random.random())
            self._restore_power()

    def _restore_power(self) -> None:
        """Start the machine again; only if that had stopped may a relaxed broker forget."""
        if self._disk.restore_power() and self._acks == "relaxed":
            self._may_forget_since_s = min(self._safe_s, self._disk.full_since_s)

    def kill(self) -> None:
        """As ``kill -9`` does: what was written stays, nothing more is written or sent."""
        self._disk.cut_power(forget=False)
        if self._serving is not None:
            self._serving.cancel()

    def lose_power(self) -> None:
        """The machine stops: what was not made durable may be gone."""
        self._disk.cut_power(forget=True)
        if self._serving is not None:
            self._serving.cancel()

    def kill_after_replies(self, num_replies: int) -> None:
        """Die between two of the next replies."""
        self._replies_left = num_replies

    def make_sync_thread(
        self, sync: Callable[[], None], when_done: Callable[[], None]
    ) -> VirtualSyncThread:
        """What the server of this life syncs with when the disk is slow."""
        sync_s = self._disk.fake.sync_s

        def at_once() -> None:
            with self._disk.timeless():  # the thread has taken the time
                sync()

        return VirtualSyncThread(self._loop, sync_s, self._die_in_thread, at_once, when_done)

    def make_syncer(self, log: Log, window_s: float) -> VirtualSyncer:
        """What the journal of this life syncs with where acknowledgements are relaxed."""
        disk = self._disk

        def die() -> None:
            self._die_in_thread()

        return VirtualSyncer(self._loop, disk.fake.sync_s, die, log, window_s)

    def make_upkeep(self, log: Log) -> VirtualUpkeep:
        """What tidies the journal of this life behind the back of its loop."""
        self._upkeep = VirtualUpkeep(
            self._loop,
            self._upkeep_random,
            timeless=self._disk.timeless,
            when_stepped=lambda: self._network.trace.step("upkeep"),
            when_ended=self._upkeep_ended,
            log=log,
        )
        self._files.pause = self._upkeep.pause
        return self._upkeep

    def _upkeep_ended(self, error: BaseException) -> None:
        self._upkeep_error = error
        self._die_in_thread()

    def _die_in_thread(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    def _before_send(self) -> None:
        if self._disk.is_off:
            raise PowerLost
        if self._replies_left >= 0:
            self._replies_left -= 1
            if self._replies_left < 0:
                self._disk.cut_power(forget=False)
                raise PowerLost

    def _check_death(self, serving: asyncio.Task[None]) -> None:
        """Only a kill or the disk may end a broker."""
        error = None if serving.cancelled() else serving.exception()
        error, self._upkeep_error = self._upkeep_error or error, None
        if error is None or isinstance(error, Killed):
            self._network.trace.step("broker died")
        elif isinstance(error, JournalError) and self._disk.has_failed:
            self._network.trace.step(f"broker stopped: {error}")
        else:
            raise error

    def _stop(self, journal: Journal) -> None:
        if self._router is not None:
            self._router.close()
            self._network.break_broker(self._router)
        if self._disk.is_off and self._upkeep is not None:
            self._upkeep.kill()
        elif not self._disk.is_off:
            with suppress(Killed, JournalError):
                journal.close()
        self._upkeep = None

    def _flip_a_bit(self) -> None:
        self._disk.flips_next = False
        self._network.trace.fault(self._disk.check_flipped_bit(self._rules))

    def _check_replay(self, ledger: Ledger, journal: Journal) -> None:
        """Snapshot and events must lead to the same state as all events from the first on."""
        lost = self._history.cut(journal._next_event)
        since_s = self._may_forget_since_s
        self._books.forget([event for at_s, event in lost if at_s >= since_s])
        if Ledger.replay(self._rules, None, self._history.events).state != ledger.state:
            raise Violation("G1", f"event {len(self._history.events)} was to lead to another state")

    def _assemble(self) -> tuple[Server, Journal]:
        self._num_lives += 1
        self._replies_left = -1
        clock = VirtualClock(self._loop)
        if self._disk.flips_next:
            self._flip_a_bit()
        journal = self._disk.open_journal(cast("Files", self._files), self._acks)
        state, history = journal.load()
        ledger = CheckedLedger.replay(self._rules, state, history)
        self._check_replay(ledger, journal)
        journal.drop_payloads([g for g in journal.payload_groups if g not in ledger.groups])
        self._books.check_recovered(ledger, journal)
        if adopted := adopt_rules(ledger).events:
            raise Violation("restart", f"the same rules were adopted by {adopted}")
        checked = cast("CheckedLedger", ledger)
        checked.books, checked.history = self._books, self._history
        self.ledger = ledger
        engine = Engine(ledger, LeaseTable(LEASE_S), journal, clock.now_s(), journal.num_events)
        fleet = Fleet(LEASE_S)
        identity = Identity(
            "simulation", f"life-{self._num_lives}", HEARTBEAT_S, LEASE_S, promise=self._acks
        )
        consumer = Role.LEARNER if self._rules.kind == "train" else Role.COLLECTOR
        watchdog = Watchdog(
            (Role.ACTOR, Role.VERIFIER, consumer),
            no_progress_s=1e6,
            max_absence_s=1e6,
            now_s=clock.now_s(),
        )
        self._router = RouterSocket(self._network)
        self._router.before_send = self._before_send
        context = as_context(SimulatedContext(self._network, "broker"))
        server = Server(
            socket=BrokerSocket(context, as_socket(self._router)),
            journal=journal,
            engine=engine,
            fleet=fleet,
            handlers=Handlers(engine, fleet, self._prompts, identity, references=journal),
            watchdog=watchdog,
            clock=clock,
            metrics=Metrics(),
            log=cast("BoundLogger", _Silence()),
            flow=FlowControl(self._pool_bytes, lambda: journal.accepts_payloads),
        )
        journal.use_thread()
        self._network.trace.step(f"broker started, life {self._num_lives}")
        return server, journal
