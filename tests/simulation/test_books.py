"""What the oracle lets pass where a relaxed broker has lost its last second, and what not."""

from __future__ import annotations

import pytest

from broker import events
from broker.ledger_state import LedgerRules
from common.messages import Lease
from tests.builders import version
from tests.simulation.books import Books
from tests.simulation.trace import Violation


def lease_on(group_id: int) -> Lease:
    """A lease under the one number that these tests are about."""
    return Lease(group_id=group_id, indices=(0,), attempt=22)


def granted(lease: Lease) -> events.Leased:
    """The event behind ``lease``."""
    return events.Leased(
        group_id=lease.group_id,
        indices=lease.indices,
        attempt=lease.attempt,
        owner="actor-0",
        version=version(0),
        deadline_step=0,
    )


def test_a_number_may_come_twice_where_the_reply_to_a_forgotten_grant_outlived_its_machine() -> (
    None
):
    books = Books(LedgerRules())
    books.forget([granted(lease_on(0))])
    books.prompt_leased(lease_on(0))
    books.prompt_leased(lease_on(12))


def test_the_reply_to_a_forgotten_grant_may_come_after_the_number_was_granted_anew() -> None:
    books = Books(LedgerRules())
    books.forget([granted(lease_on(0))])
    books.prompt_leased(lease_on(12))
    books.prompt_leased(lease_on(0))


@pytest.mark.parametrize("is_told_first", [True, False])
def test_a_number_that_was_forgotten_once_is_granted_anew_once(is_told_first: bool) -> None:
    books = Books(LedgerRules())
    if is_told_first:
        books.prompt_leased(lease_on(0))
    books.forget([granted(lease_on(0))])
    if not is_told_first:
        books.prompt_leased(lease_on(0))
    books.prompt_leased(lease_on(12))
    with pytest.raises(Violation, match="attempt 22 was granted twice"):
        books.prompt_leased(lease_on(13))


def test_a_number_that_was_never_forgotten_is_granted_once() -> None:
    books = Books(LedgerRules())
    books.prompt_leased(lease_on(0))
    with pytest.raises(Violation, match="attempt 22 was granted twice"):
        books.prompt_leased(lease_on(0))
