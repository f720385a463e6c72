"""The bytes of the log, which older and newer programs must agree on, and small pure parts."""

from __future__ import annotations

import pytest
from xxhash import xxh3_64_intdigest

from broker.journal.index import Index, Place
from broker.journal.payloads import PayloadCache
from broker.journal.records import (
    MAX_OWNER_BYTES,
    SEGMENT_HEADER_BYTES,
    Kind,
    Part,
    SegmentHeader,
    body_of,
    decode_drops,
    decode_part,
    decode_record_header,
    decode_segment_header,
    encode_drops,
    encode_record,
    encode_segment_header,
    is_body_sound,
    salt_seed,
)
from broker.journal.segment_file import segment_number, segment_path, write_fully
from broker.journal.staging import Staging
from common.codec import Buffer
from tests.builders import rollout_header
from tests.fake_disk import FakeDisk
from tests.journal_workload import DIRECTORY

SALT = bytes(range(16))
RECORD = (
    "48524a52"  # magic
    "e02bdf12"  # of bytes 8 to 40, seeded with the salt's hash
    "1864a17c93811ede"  # XXH3-64 of body and padding
    "0500000000000000"  # sequence 5
    "0400000000000000"  # 4 was durable
    "0f000000"  # 15 bytes of body
    "0200"  # a turn
    "0000"
    "010000000700000000000000616263"  # drops group 7, then its contents
    "00"  # padding
)


def _encoded(body: list[Buffer], kind: Kind = Kind.TURN) -> bytes:
    buffers, num_bytes = encode_record(salt_seed(SALT), kind, 5, 4, body)
    data = b"".join(buffers)
    assert len(data) == num_bytes
    return data


def test_the_bytes_of_a_record_are_those_of_format_3() -> None:
    data = _encoded([encode_drops([7]), b"abc"])
    assert data.hex() == RECORD
    assert (
        int.from_bytes(data[4:8], "little")
        == xxh3_64_intdigest(data[8:40], xxh3_64_intdigest(SALT)) & 0xFFFFFFFF
    )
    assert int.from_bytes(data[8:16], "little") == xxh3_64_intdigest(data[40:])


def test_the_bytes_of_a_segment_header_are_those_of_format_3() -> None:
    header = SegmentHeader(number=3, capacity=65536, salt=SALT, owner="run")
    block = encode_segment_header(header)
    assert len(block) == SEGMENT_HEADER_BYTES
    assert block[:8] == b"HRJOURNL"
    assert (
        int.from_bytes(block[8:12], "little")
        == xxh3_64_intdigest(block[:8] + bytes(4) + block[12:]) & 0xFFFFFFFF
    )
    assert block[12:16] == (3).to_bytes(4, "little")
    assert block[16:32] == (3).to_bytes(8, "little") + (65536).to_bytes(8, "little")
    assert block[32:51] == SALT + b"run"
    assert not any(block[51:])
    assert decode_segment_header(block) == header


def test_a_body_may_come_in_any_pieces_and_is_not_copied() -> None:
    frame = bytearray(b"0123456789")
    buffers, _ = encode_record(salt_seed(SALT), Kind.PUT, 5, 4, [b"a", memoryview(frame), b""])
    assert any(isinstance(each, memoryview) and each.obj is frame for each in buffers)
    assert b"".join(buffers) == _encoded([b"a0123456789"], Kind.PUT)


@pytest.mark.parametrize("size", range(20))
def test_a_record_of_any_length_is_aligned_and_comes_back(size: int) -> None:
    contents = bytes(range(size))
    data = _encoded([contents])
    assert len(data) % 8 == 0
    header = decode_record_header(salt_seed(SALT), b"12345678" + data, 8)
    assert header is not None
    assert (header.sequence, header.durable, header.num_bytes) == (5, 4, len(data))
    assert is_body_sound(header, b"12345678" + data, 8)
    assert body_of(header, data) == contents


def test_a_record_of_another_log_or_cut_short_is_none() -> None:
    data = _encoded([b"abc"])
    assert decode_record_header(salt_seed(bytes(16)), data, 0) is None
    header = decode_record_header(salt_seed(SALT), data, 0)
    assert header is not None
    assert not is_body_sound(header, data[:-1], 0)


def test_drops_and_contents_of_a_turn_are_told_apart() -> None:
    for groups in ((), (1,), (3, 2**60, 5)):
        body = encode_drops(groups) + b"contents"
        dropped, start = decode_drops(body)
        assert dropped == groups
        assert body[start:] == b"contents"


def test_an_owner_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 bytes"):
        encode_segment_header(SegmentHeader(1, 65536, SALT, "r" * (MAX_OWNER_BYTES + 1)))


def test_only_the_names_of_segments_are_segments() -> None:
    for number in (1, 77, 10**10):
        assert segment_number(segment_path(DIRECTORY, number).name) == number
    for name in ("lock", "segment-1.log", "segment-0000000001.log.new", "segment-x.log", "x.log"):
        assert segment_number(name) is None


def test_a_disk_that_writes_nothing_is_an_error_and_not_an_endless_loop() -> None:
    class Stuck(FakeDisk):
        def pwritev(self, descriptor: int, buffers: object, offset: int) -> int:
            return 0

    with pytest.raises(OSError, match="wrote nothing"):
        write_fully(Stuck(), 0, [b"abc"], 3, 0)


# --- what is live ---------------------------------------------------------------------------------


def test_live_bytes_follow_puts_replacements_drops_turns_and_checkpoints() -> None:
    index = Index()
    index.put((1, 0, 0), Place(1, 0, 100))
    index.put((1, 1, 0), Place(1, 100, 50))
    index.put((2, 0, 0), Place(1, 150, 30))
    index.add_turn(Place(1, 180, 7))
    assert index.live_bytes == 187
    index.put((1, 0, 0), Place(2, 0, 60))
    assert index.live_bytes == 147
    assert index.keys_in(1) == [(1, 1, 0), (2, 0, 0)]
    index.set_checkpoint(Part(5, 0), Place(2, 60, 9))
    assert index.live_bytes == 149
    assert not index.has_history(1)
    assert index.has_history(2)
    index.drop(1)
    index.drop(99)
    assert (index.live_bytes, index.keyed_bytes_in(1), index.keyed_bytes_in(2)) == (39, 30, 0)
    assert list(index.groups) == [2]


def test_a_checkpoint_replaces_the_turns_before_its_first_part_and_no_later_ones() -> None:
    index = Index()
    index.add_turn(Place(1, 0, 10))
    index.set_checkpoint(Part(2, 0), Place(1, 10, 5))
    index.add_turn(Place(1, 15, 20))
    index.add_part(Part(4, 0), Place(2, 0, 100))
    index.add_turn(Place(2, 100, 30))
    index.add_part(Part(4, 1), Place(3, 0, 200))
    assert index.live_bytes == 355, "until it is whole, what it will replace is needed"
    assert index.turns == [Place(1, 15, 20), Place(2, 100, 30)]
    index.set_checkpoint(Part(4, 2), Place(4, 0, 400))
    assert index.checkpoint.places == [Place(2, 0, 100), Place(3, 0, 200), Place(4, 0, 400)]
    assert index.turns == [Place(2, 100, 30)]
    assert index.last_turn == Place(2, 100, 30)
    assert index.live_bytes == 730
    assert [index.has_history(segment) for segment in range(1, 6)] == [False, *[True] * 3, False]


def test_a_checkpoint_that_was_left_unfinished_counts_for_nothing() -> None:
    index = Index()
    index.add_turn(Place(1, 0, 10))
    index.add_part(Part(2, 0), Place(1, 10, 100))
    index.add_turn(Place(1, 110, 20))
    index.give_up_checkpoint()
    assert (index.live_bytes, index.turns) == (30, [Place(1, 0, 10), Place(1, 110, 20)])
    index.add_part(Part(4, 0), Place(2, 0, 7))
    index.add_part(Part(2, 1), Place(2, 7, 1000))
    index.set_checkpoint(Part(4, 1), Place(2, 1007, 8))
    assert (index.live_bytes, index.turns) == (15, [])


def test_a_checkpoint_that_lacks_a_part_is_noted_until_a_later_one_is_whole() -> None:
    """Parts go with their segment once a later checkpoint has replaced them."""
    index = Index()
    index.add_part(Part(3, 1), Place(1, 0, 100))
    index.set_checkpoint(Part(3, 2), Place(1, 100, 50))
    assert index.incomplete == Place(1, 100, 50)
    index.set_checkpoint(Part(9, 0), Place(1, 150, 5))
    assert index.incomplete is None
    assert index.live_bytes == 5


def test_the_parts_of_a_checkpoint_are_numbered_and_its_last_part_takes_the_drops() -> None:
    staging = Staging(salt_seed(SALT), 5)
    staging.add_part(b"ab", 0, is_last=False)
    staging.drop(7)
    staging.add_part(b"cd", 0, is_last=True)
    staging.add_part(b"ef", 0, is_last=True)
    records = [staging.pop()[0] for _ in range(3)]
    assert [(each.kind, each.part) for each in records] == [
        (Kind.PART, Part(5, 0)),
        (Kind.CHECKPOINT, Part(5, 1)),
        (Kind.CHECKPOINT, Part(7, 0)),
    ]
    body = b"".join(records[1].buffers[1:-1])
    assert body.hex() == "0100000007000000000000000500000000000000010000006364"
    assert decode_part(body) == ((7,), Part(5, 1), len(body) - 2)
    assert decode_part(b"".join(records[0].buffers[1:]))[0] == ()


def test_what_is_put_after_a_drop_in_one_turn_stays() -> None:
    staging = Staging(salt_seed(SALT), 1)
    staging.put((1, 0, 0), [b"old"], 0)
    staging.drop(1)
    assert staging.get((1, 0, 0)) is None
    staging.put((1, 0, 0), [b"new"], 0)
    assert bytes(staging.get((1, 0, 0)) or b"") == b"new"
    records = [staging.pop() for _ in range(len(staging))]
    assert [(record.kind, counts) for record, counts in records] == [
        (Kind.PUT, False),
        (Kind.TURN, False),
        (Kind.PUT, True),
    ]
    assert staging.is_empty
    assert staging.num_bytes == 0


def test_the_cache_keeps_the_newest_payloads_up_to_its_bytes() -> None:
    cache = PayloadCache(100)
    for group in range(4):
        cache.add((group, 0, 0), rollout_header(group_id=group), [bytes(10), bytes(20)])
    assert cache.num_bytes == 90
    assert cache.get((0, 0, 0)) is None
    kept = cache.get((3, 0, 0))
    assert kept is not None
    assert [bytes(frame) for frame in kept[1]] == [bytes(10), bytes(20)]
    cache.add((3, 0, 0), rollout_header(group_id=3), [bytes(5)])
    cache.drop([1, 2, 77])
    assert cache.num_bytes == 5
    cache.add((5, 0, 0), rollout_header(group_id=5), [bytes(101)])
    assert cache.num_bytes == 0
