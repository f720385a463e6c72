"""One turn of the server: what is answered, in which order, and what is journaled before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import structlog

from broker.engine import Engine
from broker.exchange import Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.server import Server
from broker.snapshots import DEFAULT_PACE, SnapshotPace
from broker.watchdog import Watchdog
from common import messages
from common.broker_socket import BrokerSocket, Incoming
from common.clock import ManualClock
from common.codec import Buffer, Decoded
from common.errors import DecodeError, FatalError, JournalError, JournalFullError
from common.flow_control import FlowControl
from common.messages import AnyMessage, Reply
from common.metrics import Metrics
from common.types import Role
from tests.builders import version
from tests.unit.broker.test_handlers import first_prompts

POOL_BYTES = 1 << 20


class Outbox:
    """Takes the place of the socket: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, int, Reply]] = []
        self.num_unroutable = 0
        self.leaving_bytes = 0

    def send(
        self, peer: bytes, request_id: int, message: Reply, frames: Sequence[Buffer] = ()
    ) -> None:
        self.sent.append((peer, request_id, message))


class Bench:
    """A server with a real journal, a clock that is moved by hand and no socket."""

    def __init__(
        self, folder: Path, *, pace: SnapshotPace = DEFAULT_PACE, groups_per_step: int = 1
    ) -> None:
        self.outbox = Outbox()
        self.clock = ManualClock()
        self.disk_has_room = True
        self.journal = Journal(folder / "journal.sqlite", "run", pace=pace)
        rules = LedgerRules(group_size=1, groups_per_step=groups_per_step, max_policy_lag=0)
        self.engine = Engine(Ledger(rules), LeaseTable(15.0), self.journal, 0.0)
        fleet = Fleet(15.0)
        roles = (Role.ACTOR, Role.VERIFIER, Role.LEARNER)
        self.metrics = Metrics()
        self.server = Server(
            socket=cast("BrokerSocket", self.outbox),
            journal=self.journal,
            engine=self.engine,
            fleet=fleet,
            handlers=Handlers(
                self.engine, fleet, first_prompts(10), Identity("run", "n", 2.0, 15.0)
            ),
            watchdog=Watchdog(roles, no_progress_s=40.0, max_absence_s=600.0, now_s=0.0),
            clock=self.clock,
            metrics=self.metrics,
            log=structlog.stdlib.get_logger(),
            flow=FlowControl(POOL_BYTES, lambda: self.disk_has_room),
            max_leaving_bytes=1000,
        )

    def turn(self, *incoming: Incoming) -> list[tuple[bytes, int, Reply]]:
        """Handle these requests; returns what was sent."""
        self.outbox.sent = []
        self.server.turn(incoming)
        return self.outbox.sent

    def register(self, role: Role = Role.ACTOR, name: str = "a", peer: bytes = b"a") -> None:
        message = messages.Register(role=role, name=name, nonce=name, host="h", pid=1)
        ((_, _, reply),) = self.turn(_incoming(message, peer))
        assert isinstance(reply, messages.Registered)

    def announce(self, request_id: int = 1) -> list[tuple[bytes, int, Reply]]:
        """Publish the first weights from a learner of its own; returns what was sent."""
        self.register(Role.LEARNER, "publisher", b"publisher")
        publish = messages.PublishWeights(version=version(0), manifest_digest="d")
        decoded = Decoded(request_id, publish, [memoryview(b"m")])
        return self.turn(Incoming(b"publisher", request_id, decoded))

    def events_on_disk(self) -> int:
        return len(list(self.journal.load()[1]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


def _incoming(message: AnyMessage, peer: bytes = b"a", request_id: int = 1) -> Incoming:
    return Incoming(peer, request_id, Decoded(request_id, message, []))


def _lease(wait_s: float = 5.0) -> messages.LeasePrompts:
    return messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=wait_s)


def _code(reply: Reply) -> str:
    assert isinstance(reply, messages.Refused)
    return reply.code


def test_a_peer_that_did_not_register_is_refused_by_name(bench: Bench) -> None:
    ((peer, request_id, reply),) = bench.turn(_incoming(_lease(), b"stranger", 7))
    assert (peer, request_id, _code(reply)) == (b"stranger", 7, "unregistered")


def test_a_malformed_message_is_refused_and_counted_and_others_are_served(bench: Bench) -> None:
    bench.register()
    sent = bench.turn(
        Incoming(b"x", 3, DecodeError("header of 9 bytes")),
        _incoming(messages.Ack(), b"a", 4),
        _incoming(messages.GetStatus(), b"a", 5),
    )
    assert [(request_id, type(reply).__name__) for _, request_id, reply in sent] == [
        (3, "Refused"),
        (4, "Refused"),
        (5, "Status"),
    ]
    refused = bench.metrics.registry.get_sample_value(
        "headrace_requests_refused_total", {"code": "malformed"}
    )
    assert refused == 2


def test_a_held_request_is_answered_when_its_work_appears(bench: Bench) -> None:
    bench.register()
    assert bench.turn(_incoming(_lease(), request_id=9)) == []
    sent = bench.announce(request_id=10)
    assert [(request_id, type(reply).__name__) for _, request_id, reply in sent] == [
        (10, "Ack"),
        (9, "PromptLeases"),
    ]


def test_a_held_request_is_answered_empty_when_its_wait_runs_out(bench: Bench) -> None:
    bench.register()
    assert bench.turn(_incoming(_lease(wait_s=5.0))) == []
    bench.clock.advance(4.9)
    assert bench.turn() == []
    bench.clock.advance(0.1)
    ((_, _, reply),) = bench.turn()
    assert reply == messages.PromptLeases()


def test_a_client_that_connects_anew_is_not_answered_on_its_old_connection(bench: Bench) -> None:
    bench.register()
    bench.turn(_incoming(_lease(), request_id=9))
    bench.register(peer=b"b")
    sent = bench.announce()
    assert [request_id for _, request_id, _ in sent] == [1]
    assert bench.engine.ledger.counts.leased == 0
    ((_, _, reply),) = bench.turn(_incoming(messages.GetStatus(), b"a"))
    assert _code(reply) == "unregistered"


def test_replies_leave_only_after_their_events_are_on_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register()
    bench.announce()
    calls: list[str] = []

    def watch(name: str) -> None:
        step = getattr(bench.journal, name)

        def watched() -> None:
            calls.append(name)
            step()

        monkeypatch.setattr(bench.journal, name, watched)

    watch("write")
    watch("sync")
    monkeypatch.setattr(bench.outbox, "send", lambda *_: calls.append("send"))
    bench.turn(_incoming(_lease()))
    assert calls == ["write", "sync", "send"]


def test_a_snapshot_goes_on_turn_by_turn_while_requests_change_what_it_holds(
    tmp_path: Path,
) -> None:
    pace = SnapshotPace(min_events=4, slice_rollouts=1)
    bench = Bench(tmp_path, pace=pace, groups_per_step=8)
    bench.announce()
    bench.register()
    lease = messages.LeasePrompts(serving=version(0), max_groups=4, wait_s=5.0)
    ((_, _, leased),) = bench.turn(_incoming(lease))
    assert isinstance(leased, messages.PromptLeases)
    assert bench.engine.snapshot is not None
    assert bench.server._wait_s() < 0.1, "a broker with nothing to do gets on with it"
    last = leased.leases[-1].lease
    bench.turn(_incoming(messages.ReturnLease(lease=last, error="no memory"), request_id=2))
    num_turns = 0
    while bench.engine.snapshot is not None:
        bench.turn()
        num_turns += 1
    assert num_turns >= 2
    bench.journal.close()
    journal = Journal(tmp_path / "journal.sqlite", "run")
    state, history = journal.load()
    assert state is not None
    assert [group.is_leased for group in state.groups.values()] == [True] * 4, "as it began"
    ledger = Ledger.replay(bench.engine.ledger.rules, state, history)
    assert ledger.state == bench.engine.ledger.state
    assert len(ledger.groups[last.group_id].errors) == 1
    journal.close()


def test_nothing_leaves_after_a_sync_that_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register()
    bench.announce()

    def broken_disk() -> None:
        raise JournalError("journal: input/output error")

    monkeypatch.setattr(bench.journal, "sync", broken_disk)
    with pytest.raises(JournalError):
        bench.turn(_incoming(_lease()))
    assert bench.outbox.sent == []


def test_while_the_disk_is_full_what_is_promised_waits_and_signs_of_life_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register()
    bench.announce()

    def full_disk() -> None:
        raise JournalFullError("journal: no space left")

    with monkeypatch.context() as while_full:
        while_full.setattr(bench.journal, "write", full_disk)
        assert bench.turn(_incoming(_lease(), request_id=4)) == []
        watch = messages.WatchWeights(known=None, wait_s=5.0)
        sent = bench.turn(
            _incoming(watch, request_id=5),
            _incoming(messages.GetStatus(), request_id=6),
            _incoming(messages.Heartbeat(), request_id=7),
        )
        assert [(request_id, type(reply).__name__) for _, request_id, reply in sent] == [
            (6, "Status"),
            (7, "HeartbeatReply"),
        ]
    sent = bench.turn()
    assert [(request_id, type(reply).__name__) for _, request_id, reply in sent] == [
        (4, "PromptLeases"),
        (5, "WeightNotice"),
    ]
    assert bench.events_on_disk() > 0


def test_a_silent_client_loses_its_registration_and_its_leases(bench: Bench) -> None:
    bench.register()
    bench.announce()
    bench.turn(_incoming(_lease()))
    assert bench.engine.ledger.counts.leased == 1
    bench.clock.advance(15.0)
    bench.turn()
    assert bench.engine.ledger.counts.leased == 0
    ((_, _, reply),) = bench.turn(_incoming(messages.GetStatus()))
    assert _code(reply) == "unregistered"


def test_a_standstill_ends_the_broker_with_a_line_that_names_who_holds_what(bench: Bench) -> None:
    for role, name in ((Role.ACTOR, "a"), (Role.VERIFIER, "v"), (Role.LEARNER, "l")):
        bench.register(role, name, name.encode())
    bench.announce()
    ((_, _, reply),) = bench.turn(_incoming(_lease()))
    assert isinstance(reply, messages.PromptLeases)
    bench.turn(_incoming(messages.PullGroups(policy_step=0, max_groups=1, wait_s=60.0), b"l", 2))
    named = messages.Heartbeat(leases=(reply.leases[0].lease,))
    for _ in range(7):
        bench.clock.advance(5.0)
        bench.turn(_incoming(named), *(_incoming(messages.Heartbeat(), p) for p in (b"v", b"l")))
    bench.clock.advance(5.0)
    with pytest.raises(FatalError) as ended:
        bench.turn()
    message = str(ended.value)
    assert "all roles are present but nothing has moved for 40 s" in message
    assert "request_PullGroups 1" in message
    assert "leases are held by: a 1" in message


def test_the_metrics_show_the_conservation_law(bench: Bench) -> None:
    bench.register()
    bench.announce()
    bench.turn(_incoming(_lease()))
    bench.clock.advance(1.0)
    bench.turn()
    sample = bench.metrics.registry.get_sample_value
    assert sample("headrace_groups", {"state": "admitted"}) == 1
    assert sample("headrace_groups", {"state": "leased"}) == 1
    assert sample("headrace_conservation_imbalance") == 0
    assert sample("headrace_clients", {"role": "actor"}) == 1


def test_who_asks_is_looked_up_anew_after_a_registration_in_the_same_turn(bench: Bench) -> None:
    bench.register(Role.LEARNER, "learner", b"p")
    as_actor = messages.Register(role=Role.ACTOR, name="actor", nonce="n", host="h", pid=2)
    sent = bench.turn(
        _incoming(messages.GetFleet(), b"p", 2),
        _incoming(as_actor, b"p", 3),
        _incoming(messages.GetFleet(), b"p", 4),
    )
    replies = {request_id: reply for _, request_id, reply in sent}
    assert isinstance(replies[2], messages.Fleet)
    assert isinstance(replies[3], messages.Registered)
    assert _code(replies[4]) == "forbidden"


def test_a_role_that_may_send_one_kind_of_request_may_not_send_another(bench: Bench) -> None:
    bench.register(Role.LEARNER, "learner", b"p")
    asked: list[AnyMessage] = [messages.GetFleet(), _lease(), messages.GetFleet(), _lease()]
    sent = bench.turn(*(_incoming(message, b"p", n) for n, message in enumerate(asked, start=1)))
    refused = [request_id for _, request_id, reply in sent if isinstance(reply, messages.Refused)]
    assert refused == [2, 4]
