"""The log of a store: what was committed is there after a restart, a full disk is refused."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from broker.store_backing import LogBacking
from common.config import StoresConfig
from common.errors import RefusedError
from common.payloads.backing import Payload
from common.types import RolloutHeader
from tests.broker_process import arrays_of
from tests.builders import rollout_arrays, rollout_header

SMALL = StoresConfig(segment_bytes=1 << 20, hot_bytes=0)


def opened(folder: Path, settings: StoresConfig = SMALL) -> LogBacking:
    return LogBacking.open(folder / "store-0", "run", settings)


def put(backing: LogBacking, number: int) -> list[RolloutHeader]:
    headers = [rollout_header(group_id=group_id) for group_id in range(number)]
    for header in headers:
        backing.add(header, arrays_of(header.rollout_id).frames())
    backing.commit()
    return headers


def bytes_of(payload: Payload) -> list[bytes]:
    return [bytes(frame) for frame in payload[1]]


@pytest.mark.parametrize("hot_bytes", [0, 1 << 20])
def test_the_arrays_that_came_first_under_a_header_stay(tmp_path: Path, hot_bytes: int) -> None:
    backing = opened(tmp_path, StoresConfig(segment_bytes=1 << 20, hot_bytes=hot_bytes))
    (header,) = put(backing, 1)
    num_bytes = backing.num_bytes
    backing.add(header, rollout_arrays(num_prompt=3, num_completion=5, seed=99).frames())
    backing.commit()
    first = [bytes(frame) for frame in arrays_of(header.rollout_id).frames()]
    assert bytes_of(backing.payload(header.rollout_id)) == first
    assert backing.num_bytes == num_bytes
    backing.close()


@pytest.mark.parametrize("acks", ["durable", "relaxed"])
@pytest.mark.parametrize("hot_bytes", [0, 1 << 20])
def test_what_was_committed_is_there_when_the_store_starts_again(
    tmp_path: Path, acks: str, hot_bytes: int
) -> None:
    settings = StoresConfig(
        segment_bytes=1 << 20,
        hot_bytes=hot_bytes,
        acks="durable" if acks == "durable" else "relaxed",
    )
    before = opened(tmp_path, settings)
    headers = put(before, 50)
    before.drop_groups(range(10, 20))
    before.commit()
    with pytest.raises(KeyError):
        before.payload(headers[10].rollout_id)
    before.close()
    after = opened(tmp_path, settings)
    assert sorted(after.group_ids()) == [*range(10), *range(20, 50)]
    for header in headers[:10] + headers[20:]:
        found = after.payload(header.rollout_id)
        assert found[0] == header
        sent = [bytes(frame) for frame in arrays_of(header.rollout_id).frames()]
        assert bytes_of(found) == sent
    with pytest.raises(KeyError):
        after.payload(headers[10].rollout_id)
    after.close()


def test_a_relaxed_store_begins_anew_after_a_crash_of_the_machine(tmp_path: Path) -> None:
    settings = StoresConfig(segment_bytes=1 << 20, acks="relaxed")
    before = opened(tmp_path, settings)
    put(before, 5)
    before.close()
    (tmp_path / "store-0.boot_id").write_text("another boot")
    after = opened(tmp_path, settings)
    assert after.group_ids() == ()
    put(after, 3)
    after.close()
    again = opened(tmp_path, settings)
    assert sorted(again.group_ids()) == [0, 1, 2]
    again.close()


def test_a_store_may_change_between_durable_and_relaxed_and_keeps_what_it_holds(
    tmp_path: Path,
) -> None:
    for number, acks in enumerate(("durable", "relaxed", "durable")):
        backing = opened(
            tmp_path,
            StoresConfig(segment_bytes=1 << 20, acks="durable" if acks == "durable" else "relaxed"),
        )
        assert len(backing.group_ids()) == 5 * number
        put(backing, 5 * number + 5)
        assert (tmp_path / "store-0.boot_id").exists() == (acks == "relaxed")
        backing.close()


def test_a_store_without_room_refuses_and_takes_again_when_groups_have_ended(
    tmp_path: Path,
) -> None:
    settings = StoresConfig(segment_bytes=1 << 20, max_bytes=3 << 20, hot_bytes=0)
    backing = opened(tmp_path, settings)
    big = rollout_arrays(num_prompt=3, num_completion=20_000, seed=0)
    taken: list[int] = []

    def fill() -> None:
        for group_id in range(1000):
            header = rollout_header(group_id=group_id, num_completion=20_000)
            backing.add(header, big.frames())
            backing.commit()
            taken.append(group_id)

    with pytest.raises(RefusedError, match="full"):
        fill()
    assert len(taken) >= 4
    for group_id in taken:
        header = rollout_header(group_id=group_id, num_completion=20_000)
        sent = [bytes(frame) for frame in big.frames()]
        assert bytes_of(backing.payload(header.rollout_id)) == sent
    backing.drop_groups(taken)
    header = rollout_header(group_id=2000, num_completion=20_000)
    deadline = time.monotonic() + 10.0
    while not backing.group_ids():
        assert time.monotonic() < deadline
        backing.commit()
        with contextlib.suppress(RefusedError):
            backing.add(header, big.frames())
            backing.commit()
    assert backing.group_ids() == (2000,)
    backing.close()
