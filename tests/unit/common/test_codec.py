"""The codec refuses before it decodes and never changes an array."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest

from common.arrays import RolloutArrays, arrays_from_frames
from common.codec import MAX_HEADER_BYTES, Buffer, decode, encode
from common.errors import DataError, DecodeError
from common.messages import SCHEMA, Ack, Heartbeat, PullGroups, SubmitRollout
from tests.builders import rollout_arrays, rollout_header


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
        decode(reheader(parts, ["Ack", "accepted", "", "surprise"]))


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
