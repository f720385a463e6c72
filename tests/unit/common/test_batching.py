"""Batches: requests that travel together and are each taken for what they are."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from common.batching import decode_requests, encode_batch
from common.codec import Buffer, Decoded, check_frameless, encode, pack
from common.errors import DecodeError
from common.messages import (
    MAX_BATCH_REQUESTS,
    AnyMessage,
    Batch,
    GetFleet,
    Heartbeat,
    Register,
    Request,
    SubmitRollout,
)
from common.types import Role
from tests.builders import rollout_header
from tests.contract.samples import SAMPLES

_GOLDEN = Path(__file__).parents[2] / "golden" / "wire.json"
_BATCH = next(sample for sample in SAMPLES if isinstance(sample, Batch))


def batch_of(messages: Sequence[tuple[int, AnyMessage]]) -> list[Buffer]:
    return encode_batch([(request_id, pack(message)) for request_id, message in messages])


def spoiled(number: int, request: object) -> list[Buffer]:
    """The sample batch with other bytes for one of its requests."""
    prelude, header = batch_of(_BATCH.requests)
    tag, entries = msgspec.msgpack.decode(header)
    entries[number][1] = request
    return [prelude, msgspec.msgpack.encode([tag, entries])]


def test_headers_encoded_one_by_one_make_the_golden_bytes_of_a_batch() -> None:
    _, header = batch_of(_BATCH.requests)
    assert bytes(header).hex() == json.loads(_GOLDEN.read_text())["messages"]["Batch"]
    assert batch_of(_BATCH.requests) == encode(_BATCH, 0)


def test_each_request_of_a_batch_comes_out_as_if_it_had_come_alone_and_in_order() -> None:
    taken = decode_requests(batch_of(_BATCH.requests))
    assert taken == [(n, Decoded(n, request, [])) for n, request in _BATCH.requests]


def _is_whole(message: AnyMessage) -> bool:
    """Whether it needs no frames."""
    try:
        check_frameless(message)
    except DecodeError:
        return False
    return True


_FRAMELESS: list[Request] = [
    each
    for each in SAMPLES
    if isinstance(each, Request) and not isinstance(each, Register) and _is_whole(each)
]


@pytest.mark.parametrize("request_", _FRAMELESS, ids=lambda request: type(request).__name__)
def test_whatever_a_client_may_send_without_frames_may_stand_in_a_batch(request_: Request) -> None:
    taken = decode_requests(batch_of([(1, Heartbeat()), (2, request_)]))
    assert taken == [(1, Decoded(1, Heartbeat(), [])), (2, Decoded(2, request_, []))]


def test_a_message_that_is_no_batch_comes_out_alone() -> None:
    assert decode_requests(encode(Heartbeat(), 5)) == [(5, Decoded(5, Heartbeat(), []))]


@pytest.mark.parametrize(
    "request_",
    [
        ["Heartbeat", "no leases"],
        ["Acks", [[1, ["Ack", "accepted", "", 0]]]],
        ["Batch", [[1, ["EndRun"]]]],
        7,
        msgspec.to_builtins(Register(role=Role.ACTOR, name="a", nonce="n", host="h", pid=1)),
    ],
    ids=["wrong-type", "a-reply", "a-batch", "no-message", "a-registration"],
)
def test_a_malformed_request_is_an_error_under_its_own_id_and_harms_no_other(
    request_: object,
) -> None:
    first, middle, last = decode_requests(spoiled(1, request_))
    assert first == (7, Decoded(7, _BATCH.requests[0][1], []))
    assert last == (9, Decoded(9, _BATCH.requests[2][1], []))
    assert middle[0] == 8
    assert isinstance(middle[1], DecodeError)


def test_a_request_whose_frames_are_missing_is_an_error_and_harms_no_other() -> None:
    here = SubmitRollout(rollout=rollout_header())
    elsewhere = SubmitRollout(
        rollout=msgspec.structs.replace(rollout_header(), store="s"), content_hash="ab"
    )
    first, second = decode_requests(batch_of([(1, here), (2, elsewhere)]))
    assert first[0] == 1
    assert isinstance(first[1], DecodeError)
    assert second == (2, Decoded(2, elsewhere, []))


@pytest.mark.parametrize("number", [0, MAX_BATCH_REQUESTS + 1])
def test_a_batch_of_none_or_too_many_is_refused_as_a_whole(number: int) -> None:
    ((request_id, error),) = decode_requests(
        batch_of([(n + 1, Heartbeat()) for n in range(number)])
    )
    assert request_id == 0
    assert isinstance(error, DecodeError)


def test_the_largest_batch_is_taken() -> None:
    taken = decode_requests(batch_of([(n + 1, Heartbeat()) for n in range(MAX_BATCH_REQUESTS)]))
    assert [request_id for request_id, _ in taken] == list(range(1, MAX_BATCH_REQUESTS + 1))


def test_a_batch_with_frames_or_of_another_schema_is_refused_as_a_whole() -> None:
    prelude, header = spoiled(1, 7)
    other_schema = bytes(prelude[:4]) + b"\xff\xff" + bytes(prelude[6:])
    for parts in ([prelude, header, b""], [other_schema, header]):
        ((request_id, error),) = decode_requests(parts)
        assert request_id == 0
        assert isinstance(error, DecodeError)


def test_a_refused_message_leaves_no_cycle_behind() -> None:
    def refusals(parts: list[bytes]) -> list[weakref.ref[DecodeError]]:
        kept = [decoded for _, decoded in decode_requests(parts)]
        return [weakref.ref(item) for item in kept if isinstance(item, DecodeError)]

    envelope = [bytes(part) for part in encode_batch([(1, pack(GetFleet())), (2, b"\xc1")])]
    gc.disable()  # as in a broker, whose collector leaves alone what came under load
    try:
        for parts in ([b"junk"], [b"junk", b"junk"], envelope):
            watched = refusals(parts)
            assert watched
            assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()
