"""Which request belongs to which lease, and how much room is left."""

from __future__ import annotations

from actors.generation.lease_book import LeaseBook
from common.messages import Lease, PromptLease
from common.types import RolloutId
from tests.builders import prompt


def _lease(group_id: int, *indices: int, attempt: int = 1) -> PromptLease:
    lease = Lease(group_id=group_id, indices=indices, attempt=attempt)
    return PromptLease(prompt=prompt(), lease=lease)


def _rollout(group_id: int, index: int, attempt: int = 1) -> RolloutId:
    return RolloutId(group_id=group_id, index=index, attempt=attempt)


def test_every_index_of_a_lease_becomes_one_job() -> None:
    book = LeaseBook(max_sequences=8, group_size=2)
    jobs = book.take(_lease(5, 0, 2, attempt=3), [7, 8], now_s=1.5)
    assert [job.rollout_id for job in jobs] == [_rollout(5, 0, 3), _rollout(5, 2, 3)]
    assert [job.request_id for job in jobs] == ["5/0/3", "5/2/3"]
    assert {job.prompt_token_ids for job in jobs} == {(7, 8)}
    assert {job.began_s for job in jobs} == {1.5}


def test_a_lease_that_is_told_twice_is_sampled_once() -> None:
    book = LeaseBook(max_sequences=8, group_size=2)
    book.take(_lease(5, 0, 1), [7], 0.0)
    book.finish("5/0/1")
    assert book.take(_lease(5, 0, 1), [7], 0.0) == []
    assert book.num_sampling == 1


def test_a_group_is_asked_for_as_soon_as_one_of_its_answers_finds_a_slot() -> None:
    book = LeaseBook(max_sequences=10, group_size=4)
    assert book.room_groups == 2, "the rest of a third would wait for slots that these take"
    book.take(_lease(1, 0, 1, 2, 3), [7], 0.0)
    assert book.room_groups == 1
    book.take(_lease(2, 0, 1, 2, 3), [7], 0.0)
    assert book.room_groups == 1, "two slots are free"
    book.take(_lease(3, 0, 1, 2, 3), [7], 0.0)
    assert book.room_groups == 0, "two answers wait for slots already"
    for request_id in ("1/0/1", "1/1/1"):
        book.finish(request_id)
    assert book.room_groups == 0
    book.finish("1/2/1")
    assert book.room_groups == 1
    assert LeaseBook(max_sequences=4, group_size=16).room_groups == 1


def test_a_finished_rollout_makes_room_but_is_held_until_it_is_confirmed() -> None:
    book = LeaseBook(max_sequences=2, group_size=2)
    book.take(_lease(1, 0, 1), [7], 0.0)
    finished = book.finish("1/1/1")
    assert finished is not None
    assert finished.rollout_id == _rollout(1, 1)
    assert (book.num_sampling, book.num_unacknowledged) == (1, 1)
    assert book.held_leases() == (Lease(group_id=1, indices=(0, 1), attempt=1),)
    assert book.unfinished_leases() == (Lease(group_id=1, indices=(0,), attempt=1),)
    book.acknowledge(_rollout(1, 1))
    assert book.held_leases() == (Lease(group_id=1, indices=(0,), attempt=1),)


def test_attempts_of_one_group_are_separate_leases() -> None:
    book = LeaseBook(max_sequences=8, group_size=2)
    book.take(_lease(4, 1, attempt=2), [7], 0.0)
    book.take(_lease(4, 0, attempt=9), [7], 0.0)
    book.take(_lease(3, 0, attempt=5), [7], 0.0)
    assert book.held_leases() == (
        Lease(group_id=3, indices=(0,), attempt=5),
        Lease(group_id=4, indices=(0,), attempt=9),
        Lease(group_id=4, indices=(1,), attempt=2),
    )


def test_dropping_names_the_requests_to_abort_and_forgets_the_rest() -> None:
    book = LeaseBook(max_sequences=8, group_size=3)
    book.take(_lease(1, 0, 1, 2), [7], 0.0)
    book.finish("1/0/1")
    assert book.drop(Lease(group_id=1, indices=(0, 1), attempt=1)) == ["1/1/1"]
    assert book.held_leases() == (Lease(group_id=1, indices=(2,), attempt=1),)


def test_a_completion_of_a_dropped_request_is_nobodys() -> None:
    book = LeaseBook(max_sequences=8, group_size=1)
    book.take(_lease(1, 0), [7], 0.0)
    book.drop(Lease(group_id=1, indices=(0,), attempt=1))
    assert book.finish("1/0/1") is None
    assert book.held_leases() == ()
