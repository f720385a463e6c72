"""The conversation with a program is strictly in turn, whatever the program sends."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.sandbox.exchange import Conversation, OutputTap
from actors.verification.sandbox.frames import FAILED, READY, framed
from actors.verification.sandbox.limits import BoxLimits, Limit

_MAX = 1000


def _sent(talk: Conversation) -> bytes:
    """What the conversation writes now."""
    reading, writing = os.pipe()
    while talk.wants_to_write:
        talk.write_to(writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        return stream.read()


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.integers(1, 7))
def test_each_input_is_asked_after_the_answer_before_it(inputs: list[bytes], step: int) -> None:
    talk = Conversation(inputs, _MAX)
    for number, body in enumerate([READY, *inputs]):
        message = framed(body)
        for start in range(0, len(message), step):
            assert not talk.wants_to_write
            talk.feed(message[start : start + step], now_s=float(number))
        if number < len(inputs):
            assert _sent(talk) == framed(inputs[number])
    assert (talk.done, talk.error, talk.answers) == (True, "", inputs)
    assert talk.call_s == [1.0] * len(inputs)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([framed(b"x")], "it did not say that it was ready"),
        ([framed(READY) + framed(b"1")], "it sent a frame before it was asked"),
        ([framed(READY), framed(b"1") + b"\0"], "it sent a frame before it was asked"),
        ([framed(READY), framed(b"1"), framed(b"2"), b"\0"], "it sent a frame that nobody asked"),
        ([b"\xff\xff\xff\xff"], "it sent a frame of 4294967295 bytes"),
    ],
)
def test_a_broken_protocol_is_named_and_ends_the_conversation(
    chunks: list[bytes], error: str
) -> None:
    talk = Conversation([b"a", b"b"], _MAX)
    for chunk in chunks:
        talk.feed(chunk, 0.0)
        _sent(talk)
    assert talk.error.startswith(error)
    assert talk.done


def test_a_frame_sent_while_its_input_is_still_on_the_way_is_too_early() -> None:
    talk = Conversation([b"a"], _MAX)
    talk.feed(framed(READY), 0.0)
    talk.feed(framed(b"guess"), 0.0)
    assert talk.error == "it sent a frame before it was asked"


def test_a_source_that_does_not_load_says_why() -> None:
    talk = Conversation([b"a"], _MAX)
    talk.feed(framed(FAILED + b"SyntaxError: \xff"), 0.0)
    assert (talk.done, talk.load_error, talk.answers) == (True, "SyntaxError: \ufffd", [])


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_random_bytes_never_end_in_more_answers_than_inputs(chunks: list[bytes]) -> None:
    talk = Conversation([b"a", b"b"], _MAX)
    for chunk in chunks:
        talk.feed(chunk, 0.0)
    assert len(talk.answers) <= 2
    assert talk.limit in (None, Limit.OUTPUT)


def test_output_is_counted_in_full_and_kept_in_part() -> None:
    tap = OutputTap(BoxLimits(kept_output_bytes=4, max_output_bytes=10))
    for chunk in (b"abc", b"def", b"ghi"):
        tap.feed(1, chunk)
    tap.feed(2, b"x")
    assert (tap.kept(1), tap.kept(2), tap.over) == (b"abcd", b"x", False)
    tap.feed(2, b"y")
    assert (tap.num_bytes, tap.over) == (11, True)
