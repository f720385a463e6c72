"""A record of experts travels beside the arrays of its rollout, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.arrays import (
    ExpertArray,
    arrays_from_frames,
    experts_from_frame,
    frame_of_experts,
)
from common.codec import Buffer, decode, encode, frames_of_each, pack, unpack
from common.errors import DataError, DecodeError
from common.messages import Rollouts, SubmitRollout
from common.mixture import Mixture, read_mixture
from common.types import MAX_EXPERTS, RolloutHeader, RoutingHeader
from tests.builders import rollout_arrays, rollout_header


def _routed(header: RolloutHeader, **fields: int) -> RolloutHeader:
    shape = {"start": 0, "num_tokens": 4, "num_layers": 2, "top_k": 3, "num_experts": 8}
    return msgspec.structs.replace(header, routing=RoutingHeader(**{**shape, **fields}))


def _frames(header: RolloutHeader, experts: ExpertArray | None = None) -> list[Buffer]:
    arrays = rollout_arrays(
        num_prompt=header.num_prompt_tokens, num_completion=header.num_completion_tokens, seed=1
    )
    own: list[Buffer] = [*arrays.frames()]
    return own if experts is None else [*own, frame_of_experts(experts)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_experts=st.sampled_from([2, 8, 256, 257, 1000, MAX_EXPERTS]))
def test_a_record_comes_back_number_for_number(data: st.DataObject, num_experts: int) -> None:
    start = data.draw(st.integers(0, 7))
    num_tokens = data.draw(st.integers(1, 8 - start))
    top_k = data.draw(st.integers(1, min(4, num_experts)))
    header = _routed(
        rollout_header(num_prompt=3, num_completion=5),
        start=start, num_tokens=num_tokens, top_k=top_k, num_experts=num_experts,
    )  # fmt: skip
    numbers = st.integers(0, num_experts - 1)
    size = num_tokens * 2 * top_k
    drawn = data.draw(st.lists(numbers, min_size=size, max_size=size))
    dtype: type[np.unsignedinteger] = np.uint8 if num_experts <= 256 else np.uint16
    experts = np.array(drawn, dtype).reshape(num_tokens, 2, top_k)
    decoded = decode(encode(SubmitRollout(rollout=header), 7, _frames(header, experts)))
    assert decoded.message == SubmitRollout(rollout=header)
    assert header.routing is not None
    back = experts_from_frame(header.routing, decoded.frames[3])
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, experts)
    assert len(arrays_from_frames(decoded.frames).completion_token_ids) == 5


def test_rollouts_with_and_without_a_record_share_a_message() -> None:
    plain = rollout_header(index=0)
    routed = _routed(rollout_header(index=1))
    experts = np.arange(24, dtype=np.uint8).reshape(4, 2, 3) % 8
    frames = [*_frames(plain), *_frames(routed, experts), *_frames(plain)]
    message = Rollouts(rollouts=(plain, routed, plain))
    parts = list(frames_of_each(message.rollouts, decode(encode(message, 1, frames)).frames))
    assert [len(part) for part in parts] == [3, 4, 3]
    assert bytes(parts[1][3]) == experts.tobytes()
    assert bytes(parts[2][0]) == bytes(memoryview(frames[-3]).cast("B"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_tokens": 9}, "routing must end by token 8, got 9"),
        ({"start": 6}, "routing must end by token 8, got 10"),
        ({"start": 2**53}, "routing must end by token 8"),
        ({"num_tokens": 0}, ">= 1"),
        ({"num_layers": 0}, ">= 1"),
        ({"num_layers": 1025}, "<= 1024"),
        ({"top_k": 0}, ">= 1"),
        ({"top_k": 9}, "top_k must be at most 8 experts, got 9"),
        ({"num_experts": MAX_EXPERTS + 1}, "<= 32768"),
        ({"start": -1}, ">= 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_any_frame_is_read(
    fields: dict[str, int], reason: str
) -> None:
    good: list[Any] = msgspec.msgpack.decode(pack(_routed(rollout_header())))
    shape = {"start": 0, "num_tokens": 4, "num_layers": 2, "top_k": 3, "num_experts": 8}
    good[-1] = list({**shape, **fields}.values())
    with pytest.raises(DecodeError, match=reason):
        unpack(msgspec.msgpack.encode(good), RolloutHeader)


def test_a_record_must_be_as_long_as_its_header_says() -> None:
    header = _routed(rollout_header())
    short = np.zeros((3, 2, 3), np.uint8)
    for frames in (_frames(header), _frames(header, short)):
        with pytest.raises(ValueError, match="array frames have"):
            encode(SubmitRollout(rollout=header), 1, frames)
    whole = encode(SubmitRollout(rollout=header), 1, _frames(header, np.zeros((4, 2, 3), np.uint8)))
    with pytest.raises(DecodeError, match="array frames have"):
        decode([*whole[:-1], whole[-1][:-1]])


@pytest.mark.parametrize(("num_experts", "bad"), [(8, 8), (8, 255), (300, 300), (300, 65535)])
def test_experts_that_the_model_does_not_have_are_named(num_experts: int, bad: int) -> None:
    header = _routed(rollout_header(), num_experts=num_experts)
    assert header.routing is not None
    experts = np.zeros((4, 2, 3), np.uint8 if num_experts <= 256 else np.uint16)
    experts[2, 1, 0] = bad
    with pytest.raises(DataError, match=f"must be below {num_experts}, got {bad}"):
        experts_from_frame(header.routing, frame_of_experts(experts))


def test_a_header_without_a_record_may_leave_the_field_out() -> None:
    """Journals hold rollouts that were written before there were records."""
    header = rollout_header()
    *told, routing = msgspec.msgpack.decode(pack(header))
    assert routing is None
    assert unpack(msgspec.msgpack.encode(told), RolloutHeader) == header


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_experts": 128, "num_experts_per_tok": 8}, Mixture(48, 128, 8)),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, Mixture(48, 8, 2)),
        ({"n_routed_experts": 384, "num_experts_per_tok": 8}, Mixture(48, 384, 8)),
        ({}, None),
        ({"num_experts": "many"}, None),
    ],
)
def test_experts_are_read_from_the_model_directory(
    tmp_path: Path, config: dict[str, object], expected: Mixture | None
) -> None:
    assert read_mixture(str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 48, **config}))
    assert read_mixture(str(tmp_path)) == expected


def test_the_record_of_a_token_takes_a_byte_or_two_for_each_expert() -> None:
    assert Mixture(48, 128, 8).record_bytes == 48 * 8
    assert Mixture(61, 384, 8).record_bytes == 2 * 61 * 8
