"""Which failed handshakes are final, and which are a broker that is away or stuck."""

from __future__ import annotations

from collections.abc import Iterable

import zmq
from hypothesis import given
from hypothesis import strategies as st

from common.security_handshake import GIVE_UP_S, MAX_GAP_S, HandshakeWatch

_OK = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_NO_DETAIL = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_CAUSES = {_AUTH: "unknown key", _NO_DETAIL: "wrong server key", _PROTOCOL: "no keys"}


def _first_cause(
    events: Iterable[tuple[float, int]], causes: dict[int, str] = _CAUSES
) -> tuple[float, str] | None:
    watch = HandshakeWatch(causes)
    for at_s, event in events:
        cause = watch.observe(event, at_s)
        if cause is not None:
            return at_s, cause
    return None


def _every(step_s: float, event: int, number: int = 20) -> list[tuple[float, int]]:
    return [(index * step_s, event) for index in range(number)]


def test_failures_that_go_on_are_final_within_five_seconds_and_say_why() -> None:
    for event, cause in _CAUSES.items():
        for step_s in (0.2, 1.0, 2.0):
            outcome = _first_cause(_every(step_s, event))
            assert outcome is not None
            assert outcome[1] == cause
            assert GIVE_UP_S <= outcome[0] <= 5.0


def test_one_failure_is_not_final() -> None:
    assert _first_cause([(0.0, _AUTH)]) is None


def test_a_key_that_is_added_late_is_accepted() -> None:
    assert _first_cause([*_every(0.2, _AUTH, 5), (1.0, _OK)]) is None


def test_one_reason_explains_failures_without_one() -> None:
    resets = [(at_s + 0.05, event) for at_s, event in _every(0.2, _NO_DETAIL)]
    for known in ((0.0, _PROTOCOL), (1.0, _PROTOCOL)):
        outcome = _first_cause(sorted([known, *resets]))
        assert outcome is not None
        assert outcome[1] == "no keys"
        assert outcome[0] <= 2.3


def test_a_stuck_broker_is_waited_for() -> None:
    assert _first_cause(_every(MAX_GAP_S + 0.5, _NO_DETAIL, 100)) is None


def test_a_broker_that_goes_away_after_it_accepted_the_key_is_waited_for() -> None:
    broken_off = [(10.0 + at_s, event) for at_s, event in _every(0.2, _NO_DETAIL, 100)]
    assert _first_cause([(0.0, _OK), *broken_off]) is None


def test_a_key_that_was_revoked_meanwhile_is_final() -> None:
    refused = [(10.0 + at_s, event) for at_s, event in _every(0.2, _AUTH)]
    assert _first_cause([(0.0, _OK), *refused]) is not None


def test_a_client_without_keys_takes_a_dead_proxy_for_no_refusal() -> None:
    assert _first_cause(_every(0.2, _NO_DETAIL, 100), {_PROTOCOL: "keys needed"}) is None


@given(
    st.lists(
        st.tuples(st.floats(0.0, 10.0), st.sampled_from([_OK, _AUTH, _NO_DETAIL, _PROTOCOL])),
        max_size=40,
    )
)
def test_nothing_is_final_before_failures_have_lasted(steps: list[tuple[float, int]]) -> None:
    now_s, events = 0.0, []
    for step_s, event in steps:
        now_s += step_s
        events.append((now_s, event))
    outcome = _first_cause(events)
    if outcome is None:
        return
    last_ok_s = max((at for at, event in events if event == _OK and at < outcome[0]), default=0.0)
    failures = [at for at, event in events if last_ok_s <= at <= outcome[0] and event != _OK]
    assert outcome[0] - min(failures) >= GIVE_UP_S
