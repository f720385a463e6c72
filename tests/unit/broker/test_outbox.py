"""What leaves at the end of a turn."""

from __future__ import annotations

from broker.exchange import Answer
from broker.outbox import Outbox
from common.messages import Ack, Acks, Groups


def test_acknowledgements_to_one_peer_leave_as_one_message() -> None:
    outbox = Outbox()
    for request_id, outcome in ((3, "accepted"), (4, "late"), (9, "accepted")):
        outbox.add(b"p", request_id, Answer(Ack(outcome=outcome)))
    (one,) = outbox.take()
    assert (one.peer, one.request_id) == (b"p", 0)
    assert one.answer.message == Acks(acks=((3, Ack()), (4, Ack(outcome="late")), (9, Ack())))


def test_a_single_acknowledgement_leaves_under_its_own_number() -> None:
    outbox = Outbox()
    outbox.add(b"p", 3, Answer(Ack(outcome="late")))
    outbox.add(b"q", 3, Answer(Ack()))
    assert [(item.peer, item.request_id, item.answer.message) for item in outbox.take()] == [
        (b"p", 3, Ack(outcome="late")),
        (b"q", 3, Ack()),
    ]


def test_what_was_taken_is_not_sent_twice() -> None:
    outbox = Outbox()
    outbox.add(b"p", 3, Answer(Ack()))
    outbox.add(b"p", 4, Answer(Groups()))
    assert len(outbox.take()) == 2
    assert outbox.take() == []
