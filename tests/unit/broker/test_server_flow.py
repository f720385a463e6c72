"""The server lets arrays in against credit and out as fast as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common import messages
from common.broker_socket import Incoming
from common.codec import Decoded
from common.credit import ALLOWANCE_BYTES
from common.messages import AnyMessage, Reply
from common.types import ReferenceHeader, Role, RolloutId, Verdict, VerdictStatus
from tests.builders import rollout_arrays, rollout_header, version
from tests.unit.broker.test_server import POOL_BYTES, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


def asked(message: AnyMessage, peer: bytes = b"a", request_id: int = 1) -> Incoming:
    return Incoming(peer, request_id, Decoded(request_id, message, []))


def submission(group_id: int, num_tokens: int) -> tuple[Incoming, int]:
    """A rollout of the first attempt of a group, and its size."""
    header = rollout_header(
        group_id=group_id,
        index=0,
        attempt=1,
        num_prompt=3,
        num_completion=num_tokens,
        spans=((0, version(0)),),
    )
    frames = rollout_arrays(num_prompt=3, num_completion=num_tokens, seed=group_id).frames()
    views = [memoryview(frame).cast("B") for frame in frames]
    decoded = Decoded(9, messages.SubmitRollout(rollout=header), views)
    return Incoming(b"a", 9, decoded), sum(map(len, views))


def sample(bench: Bench) -> None:
    """Let actor a hold the lease of group 0, attempt 1."""
    bench.register()
    bench.announce()
    lease = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=0)
    ((_, _, reply),) = bench.turn(asked(lease))
    assert isinstance(reply, messages.PromptLeases)


def only(sent: list[tuple[bytes, int, Reply]]) -> Reply:
    ((_, _, reply),) = sent
    return reply


def test_a_rollout_without_credit_is_refused_and_changes_nothing(bench: Bench) -> None:
    sample(bench)
    before = bench.events_on_disk()
    request, num_bytes = submission(0, ALLOWANCE_BYTES)
    assert num_bytes > ALLOWANCE_BYTES
    reply = only(bench.turn(request))
    assert isinstance(reply, messages.Refused)
    assert reply.code == "no_credit"
    assert bench.events_on_disk() == before


def test_reserved_bytes_let_the_same_rollout_in(bench: Bench) -> None:
    sample(bench)
    request, num_bytes = submission(0, ALLOWANCE_BYTES)
    wish = messages.ReserveBytes(least=num_bytes, most=num_bytes, wait_s=5)
    assert only(bench.turn(asked(wish))) == messages.Credit(num_bytes=num_bytes)
    reply = only(bench.turn(request))
    assert isinstance(reply, messages.Ack)
    assert (reply.outcome, reply.credit_bytes) == ("accepted", 0)


def test_an_acknowledgement_gives_the_allowance_back(bench: Bench) -> None:
    sample(bench)
    request, num_bytes = submission(0, 100)
    reply = only(bench.turn(request))
    assert isinstance(reply, messages.Ack)
    assert reply.credit_bytes == num_bytes


def test_while_the_disk_is_full_a_wish_waits_and_is_told_why(bench: Bench) -> None:
    sample(bench)
    bench.disk_has_room = False
    wish = messages.ReserveBytes(least=1, most=1, wait_s=5)
    assert bench.turn(asked(wish)) == []
    bench.clock.advance(5.0)
    reply = only(bench.turn())
    assert isinstance(reply, messages.Credit)
    assert (reply.num_bytes, reply.reason) == (0, "the disk takes no more rollouts")
    assert bench.turn(asked(wish, request_id=2)) == []
    bench.disk_has_room = True
    assert only(bench.turn()) == messages.Credit(num_bytes=1)


def test_credit_of_a_client_that_is_gone_goes_to_those_who_wait(bench: Bench) -> None:
    bench.register()
    bench.register(name="b", peer=b"b")
    most = POOL_BYTES * 3 // 4
    wish = messages.ReserveBytes(least=most, most=most, wait_s=60)
    assert isinstance(only(bench.turn(asked(wish))), messages.Credit)
    assert bench.turn(asked(wish, peer=b"b")) == []
    bench.clock.advance(10.0)
    bench.turn(asked(messages.Heartbeat(), peer=b"b"))
    bench.clock.advance(5.0)
    sent = bench.turn()
    assert (b"b", 1, messages.Credit(num_bytes=most)) in sent


def test_arrays_wait_while_slow_readers_hold_too_many_and_are_then_sent(bench: Bench) -> None:
    sample(bench)
    request, _ = submission(0, 100)
    bench.turn(request)
    bench.register(Role.LEARNER, "l", b"l")
    rollout_id = RolloutId(group_id=0, index=0, attempt=1)
    fetch = messages.FetchRollouts(rollout_ids=(rollout_id,))
    bench.outbox.leaving_bytes = 1001
    assert bench.turn(asked(fetch, peer=b"l", request_id=4)) == []
    assert bench.turn(asked(messages.GetStatus(), peer=b"l", request_id=5))
    bench.outbox.leaving_bytes = 0
    ((peer, request_id, reply),) = bench.turn()
    assert (peer, request_id, type(reply)) == (b"l", 4, messages.Rollouts)


def test_a_verifier_is_given_no_arrays_while_slow_readers_hold_too_many(bench: Bench) -> None:
    sample(bench)
    request, _ = submission(0, 100)
    bench.turn(request)
    bench.register(Role.VERIFIER, "v", b"v")
    bench.outbox.leaving_bytes = 1001
    lease = messages.LeaseRollouts(max_rollouts=1, wait_s=60)
    assert bench.turn(asked(lease, peer=b"v")) == []
    bench.clock.advance(1.0)
    assert bench.turn() == []
    bench.outbox.leaving_bytes = 0
    bench.clock.advance(1.0)
    assert isinstance(only(bench.turn()), messages.RolloutLeases)


def test_a_rollout_that_the_journal_has_no_room_for_is_turned_away_and_its_sender_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(bench)
    request, num_bytes = submission(0, 100)
    with monkeypatch.context() as while_full:
        while_full.setattr(bench.journal, "has_room", lambda _num_bytes: False)
        reply = only(bench.turn(request))
        assert isinstance(reply, messages.Refused)
        assert (reply.code, reply.reason) == ("no_credit", "the disk takes no more rollouts")
    wish = messages.ReserveBytes(least=num_bytes, most=num_bytes, wait_s=5)
    assert only(bench.turn(asked(wish))) == messages.Credit(num_bytes=num_bytes)
    assert isinstance(only(bench.turn(request)), messages.Ack)


def test_while_the_journal_takes_no_arrays_no_prompt_is_leased(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register()
    bench.announce()
    lease = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=60)
    with monkeypatch.context() as while_full:
        while_full.setattr(type(bench.journal), "accepts_payloads", False)
        assert bench.turn(asked(lease)) == []
    bench.clock.advance(1.0)
    assert isinstance(only(bench.turn()), messages.PromptLeases)


def test_who_asks_anew_does_not_overtake_those_who_wait(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.register(name=name, peer=name.encode())
    lease = messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=60)
    assert bench.turn(asked(lease, peer=b"a")) == []
    assert bench.turn(asked(lease, peer=b"b")) == []
    bench.register(Role.LEARNER, "publisher", b"publisher")
    publish = messages.PublishWeights(version=version(0), manifest_digest="d")
    announced = Incoming(b"publisher", 1, Decoded(1, publish, [memoryview(b"m")]))
    sent = bench.turn(announced, asked(lease, peer=b"c"))
    served = [peer for peer, _, reply in sent if isinstance(reply, messages.PromptLeases)]
    assert served == [b"a"], "one group fits the window, and a has waited longest"


def test_reference_log_probabilities_cost_credit_wherever_their_rollout_is(bench: Bench) -> None:
    sample(bench)
    num_tokens = ALLOWANCE_BYTES // 4 + 1
    header = rollout_header(group_id=0, attempt=1, num_completion=num_tokens)
    stored = msgspec.structs.replace(header, store="store-0")
    bench.turn(asked(messages.SubmitRollout(rollout=stored, content_hash="c")))
    bench.register(Role.VERIFIER, "v", b"v")
    leased = only(bench.turn(asked(messages.LeaseRollouts(max_rollouts=1, wait_s=0), peer=b"v")))
    assert isinstance(leased, messages.RolloutLeases)
    verdict = messages.SubmitVerdict(
        rollout_id=header.rollout_id,
        verify_attempt=leased.leases[0].verify_attempt,
        verdict=Verdict(status=VerdictStatus.GRADED, reward=1.0),
        reference=ReferenceHeader(reference_version=version(0), num_tokens=num_tokens),
    )
    num_bytes = 4 * num_tokens
    request = Incoming(b"v", 7, Decoded(7, verdict, [memoryview(bytes(num_bytes))]))
    refused = only(bench.turn(request))
    assert isinstance(refused, messages.Refused)
    assert refused.code == "no_credit"
    wish = messages.ReserveBytes(least=num_bytes, most=num_bytes, wait_s=5)
    assert only(bench.turn(asked(wish, peer=b"v"))) == messages.Credit(num_bytes=num_bytes)
    assert only(bench.turn(request)) == messages.Ack(outcome="accepted")
