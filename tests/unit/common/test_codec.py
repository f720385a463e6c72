"""The codec refuses before it decodes and never changes an array."""

from __future__ import annotations

import struct
import time
import tracemalloc

import msgpack
import numpy as np
import pytest

from common.arrays import RolloutArrays, arrays_from_frames, logprobs_from_frame
from common.codec import MAX_HEADER_BYTES, Buffer, decode, encode
from common.errors import DataError, DecodeError
from common.messages import (
    SCHEMA,
    WITH_FRAMES,
    Ack,
    Heartbeat,
    PullGroups,
    SubmitRollout,
    SubmitVerdict,
    has_manifest,
    references_in,
    rollouts_in,
)
from common.types import ReferenceHeader, Verdict, VerdictStatus
from tests.builders import rollout_arrays, rollout_header, version
from tests.contract.samples import SAMPLES


def frames_of(arrays: RolloutArrays) -> list[Buffer]:
    return list(arrays.frames())


def reheader(parts: list[Buffer], plain: object) -> list[Buffer]:
    """The same message with another header."""
    return [parts[0], msgpack.packb(plain), *parts[2:]]


def test_a_rollout_comes_back_bit_for_bit() -> None:
    arrays = rollout_arrays(num_prompt=3, num_completion=5, seed=1)
    message = SubmitRollout(rollout=rollout_header(num_prompt=3, num_completion=5))
    decoded = decode(encode(message, 7, frames_of(arrays)))
    assert decoded.request_id == 7
    assert decoded.message == message
    back = arrays_from_frames(decoded.frames)
    np.testing.assert_array_equal(back.prompt_token_ids, arrays.prompt_token_ids)
    np.testing.assert_array_equal(back.completion_token_ids, arrays.completion_token_ids)
    assert back.behavior_logprobs.tobytes() == arrays.behavior_logprobs.tobytes()


def test_arrays_are_views_of_the_received_frames() -> None:
    arrays = rollout_arrays(num_prompt=2, num_completion=4, seed=2)
    message = SubmitRollout(rollout=rollout_header(num_prompt=2, num_completion=4))
    received = [
        bytearray(memoryview(part).cast("B")) for part in encode(message, 1, frames_of(arrays))
    ]
    view = arrays_from_frames(decode(received).frames)
    struct.pack_into("<i", received[3], 0, 99)
    assert view.completion_token_ids[0] == 99


def test_frames_of_another_length_than_the_header_says_are_refused() -> None:
    arrays = rollout_arrays(num_prompt=3, num_completion=5, seed=3)
    message = SubmitRollout(rollout=rollout_header(num_prompt=3, num_completion=6))
    with pytest.raises(ValueError, match="array frames have"):
        encode(message, 1, frames_of(arrays))
    honest = SubmitRollout(rollout=rollout_header(num_prompt=3, num_completion=5))
    parts = encode(honest, 1, frames_of(arrays))
    with pytest.raises(DecodeError, match="array frames have"):
        decode(parts[:-1])


def test_an_unknown_field_is_refused() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="at most length"):
        decode(reheader(parts, [*msgpack.unpackb(parts[1]), "surprise"]))


def test_a_map_is_refused_wherever_it_stands() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="object"):
        decode(reheader(parts, ["Ack", {"outcome": "accepted"}]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    parts = encode(PullGroups(policy_step=0, max_groups=1, wait_s=0.0), 1)
    with pytest.raises(DecodeError):
        decode(reheader(parts, ["PullGroups", 0, 1, value]))


def test_an_unknown_message_is_refused() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="Invalid value"):
        decode(reheader(parts, ["Exec", "rm"]))


def test_a_header_over_the_cap_is_refused_before_it_is_parsed() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="over the cap"):
        decode([parts[0], b"\xc1" * (MAX_HEADER_BYTES + 1)])


def test_a_claimed_length_of_four_billion_is_refused_at_once() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="malformed"):
        decode([parts[0], b"\xdd\xff\xff\xff\xff"])


def test_nesting_of_a_hundred_thousand_levels_is_refused() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="malformed"):
        decode([parts[0], b"\x91" * 100_000])


def test_another_schema_is_refused_by_name() -> None:
    parts = encode(Heartbeat(), 1)
    prelude = bytearray(memoryview(parts[0]))
    struct.pack_into("<H", prelude, 4, SCHEMA + 1)
    with pytest.raises(DecodeError, match=f"schema {SCHEMA + 1}, this process schema {SCHEMA}"):
        decode([prelude, parts[1]])


def test_foreign_bytes_are_refused() -> None:
    with pytest.raises(DecodeError, match="not a headrace message"):
        decode([b"GET / HTTP/1.1 .", b"x"])
    with pytest.raises(DecodeError, match="frames"):
        decode([b"alone"])


def test_a_log_probability_that_is_not_finite_never_becomes_an_array() -> None:
    arrays = rollout_arrays(num_prompt=1, num_completion=3, seed=4)
    arrays.behavior_logprobs[1] = np.nan
    with pytest.raises(DataError, match="finite"):
        arrays_from_frames(arrays.frames())


def test_a_negative_token_id_never_becomes_an_array() -> None:
    arrays = rollout_arrays(num_prompt=1, num_completion=3, seed=5)
    arrays.completion_token_ids[2] = -1
    with pytest.raises(DataError, match="token ids"):
        arrays_from_frames(arrays.frames())


def test_the_messages_that_carry_frames_are_those_that_the_codec_counts_frames_of() -> None:
    carrying = {
        type(one) for one in SAMPLES if rollouts_in(one) or references_in(one) or has_manifest(one)
    }
    assert carrying <= WITH_FRAMES
    assert WITH_FRAMES - carrying <= {SubmitRollout}, "its sample has its arrays in a store"


def _verdict(num_tokens: int | None) -> SubmitVerdict:
    reference = None
    if num_tokens is not None:
        reference = ReferenceHeader(reference_version=version(4), num_tokens=num_tokens)
    return SubmitVerdict(
        rollout_id=rollout_header().rollout_id,
        verify_attempt=2,
        verdict=Verdict(status=VerdictStatus.GRADED, reward=1.0),
        reference=reference,
    )


def test_a_verdict_carries_one_frame_exactly_when_it_has_reference_logprobs() -> None:
    logprobs = np.array([-0.5, -1.25, -3.0], dtype="<f4")
    decoded = decode([bytes(part) for part in encode(_verdict(3), 9, [logprobs.data])])
    assert decoded.message == _verdict(3)
    found = logprobs_from_frame(decoded.frames[0], "reference_logprobs")
    assert found.tolist() == [-0.5, -1.25, -3.0]
    assert decode(encode(_verdict(None), 9)).frames == []


@pytest.mark.parametrize(
    ("num_tokens", "frames"),
    [(3, []), (3, [bytes(8)]), (3, [bytes(16)]), (3, [bytes(12)] * 2), (None, [bytes(12)])],
)
def test_a_reference_frame_that_is_absent_extra_or_of_another_size_is_refused(
    num_tokens: int | None, frames: list[bytes]
) -> None:
    with pytest.raises(ValueError, match="array frames have"):
        encode(_verdict(num_tokens), 1, frames)
    good = encode(_verdict(num_tokens), 1, [bytes(12)] if num_tokens else [])
    with pytest.raises(DecodeError, match="array frames have"):
        decode([*good[:2], *frames])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_reference_logprobs_that_are_no_log_probabilities_never_become_an_array(
    value: float,
) -> None:
    frame = np.array([-1.0, value], dtype="<f4").data
    with pytest.raises(DataError, match="reference_logprobs must be finite and at most 0"):
        logprobs_from_frame(frame, "reference_logprobs")


def test_frames_after_a_message_that_has_none_are_refused() -> None:
    with pytest.raises(ValueError, match="array frames have"):
        encode(Ack(), 1, [b"more"])
    with pytest.raises(DecodeError, match="array frames have"):
        decode([*encode(Ack(), 1), b"more"])


def test_text_that_is_not_utf8_is_refused() -> None:
    parts = encode(Ack(), 1)
    with pytest.raises(DecodeError, match="malformed"):
        decode([parts[0], b"\x92\xa3Ack\xa2\xff\xfe"])


def _hostile_headers() -> dict[str, bytes]:
    """Headers at the cap that would cost much if they were parsed before they are checked."""
    size = MAX_HEADER_BYTES
    row = b"\xdd" + struct.pack(">I", 1 << 17) + b"\x90" * (1 << 17)
    heartbeat = msgpack.packb("Heartbeat")
    status = b"\x9d" + msgpack.packb("Status") + msgpack.packb("r") + b"\x96" + bytes(6)
    return {
        "empty arrays": b"\x93" + heartbeat + b"\xdd" + struct.pack(">I", size) + b"\x90" * size,
        "maps": b"\x92\xa3Ack" + b"\x81\xa1a" * (size // 3),
        "claims of four billion, one in another": b"\x93"
        + heartbeat
        + b"\xdd\xff\xff\xff\xff" * 9999,
        "a claim of as many items as bytes": status
        + b"\xdd"
        + struct.pack(">I", size)
        + bytes(size),
        "one long text": b"\x92\xa3Ack\xdb" + struct.pack(">I", size) + b"x" * size,
        "nesting": b"\x91" * size,
        "arrays of empty arrays": b"\x92" + heartbeat + b"\xdc\x00\x40" + row * 63,
    }


@pytest.mark.parametrize("kind", _hostile_headers())
def test_a_hostile_header_costs_no_more_memory_than_its_size(kind: str) -> None:
    prelude = encode(Ack(), 1)[0]
    header = _hostile_headers()[kind][:MAX_HEADER_BYTES]
    tracemalloc.start()
    with pytest.raises(DecodeError):
        decode([prelude, header])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * MAX_HEADER_BYTES


def test_a_hostile_header_is_refused_long_before_it_could_be_parsed() -> None:
    prelude = encode(Ack(), 1)[0]
    for kind, header in _hostile_headers().items():
        start_s = time.process_time()
        with pytest.raises(DecodeError):
            decode([prelude, header[:MAX_HEADER_BYTES]])
        assert time.process_time() - start_s < 0.5, kind
