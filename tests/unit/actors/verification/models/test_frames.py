"""Messages between a backend and its model process are read whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io

import numpy as np
import pytest

from actors.verification.models.frames import (
    MAX_PART_BYTES,
    ForwardReply,
    joined,
    output_array,
    read_parts,
    receive_parts,
)
from common.errors import DecodeError

PARTS = [b"head", b"", np.arange(3, dtype=np.int32).tobytes()]


async def _received(data: bytes) -> list[bytes]:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    return await receive_parts(stream)


def test_parts_come_back_as_they_were_on_both_ends() -> None:
    message = joined(PARTS)
    stream = io.BytesIO(message + message)
    assert [read_parts(stream), read_parts(stream), read_parts(stream)] == [PARTS, PARTS, None]
    assert asyncio.run(_received(message)) == PARTS


@pytest.mark.parametrize("cut", range(1, len(joined(PARTS))))
def test_a_message_that_is_cut_off_is_none(cut: int) -> None:
    message = joined(PARTS)[:cut]
    with contextlib.suppress(DecodeError):
        assert read_parts(io.BytesIO(message)) is None
    with pytest.raises((asyncio.IncompleteReadError, DecodeError)):
        asyncio.run(_received(message))


_TOO_LONG = b"\1\0\0\0" + (MAX_PART_BYTES + 1).to_bytes(4, "little")


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\xff\xff\xff\xff", _TOO_LONG])
def test_lengths_are_capped_before_anything_is_read(head: bytes) -> None:
    with pytest.raises(DecodeError, match=r"parts|over the cap"):
        read_parts(io.BytesIO(head))


def test_outputs_must_be_as_many_as_the_header_says() -> None:
    reply = ForwardReply(num_outputs=2, num_labels=3)
    data = np.arange(6, dtype=np.float32)
    assert output_array(reply, data.tobytes()).tolist() == data.reshape(2, 3).tolist()
    with pytest.raises(DecodeError, match="5 outputs, the header says 2"):
        output_array(reply, data[:5].tobytes())
