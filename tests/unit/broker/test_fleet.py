"""Clients by name."""

from __future__ import annotations

from broker.fleet import Fleet
from common.messages import Register
from common.types import Role
from tests.builders import version


def _register(nonce: str = "one", name: str = "actor-0") -> Register:
    return Register(role=Role.ACTOR, name=name, nonce=nonce, host="h", pid=7)


def test_only_another_nonce_under_a_known_name_is_a_restart() -> None:
    fleet = Fleet(dead_after_s=15.0)
    assert not fleet.register(_register(), now_s=0.0)
    assert not fleet.register(_register(), now_s=1.0)
    assert fleet.register(_register("two"), now_s=2.0)


def _twin(fleet: Fleet, registration: Register, now_s: float, *, connected: bool) -> bool:
    return fleet.live_twin(registration, now_s, lambda: connected) is not None


def test_a_process_whose_connection_is_gone_is_replaced_at_once() -> None:
    fleet = Fleet(dead_after_s=15.0, heartbeat_s=2.0)
    fleet.register(_register(), now_s=0.0)
    other = Register(role=Role.ACTOR, name="actor-0", nonce="two", host="h", pid=8)
    assert not _twin(fleet, other, 0.1, connected=False)
    assert _twin(fleet, other, 0.1, connected=True)


def test_a_process_that_is_heard_of_keeps_its_name_and_a_silent_one_loses_it() -> None:
    fleet = Fleet(dead_after_s=15.0, heartbeat_s=2.0)
    fleet.register(_register(), now_s=0.0)
    other = Register(role=Role.ACTOR, name="actor-0", nonce="two", host="g", pid=7)
    fleet.hear("actor-0", now_s=3.0)
    assert _twin(fleet, other, 6.9, connected=True)
    assert not _twin(fleet, other, 7.0, connected=True)


def test_nobody_is_a_twin_of_itself() -> None:
    fleet = Fleet(dead_after_s=15.0)
    assert not _twin(fleet, _register(), 0.0, connected=True)
    fleet.register(_register(), now_s=0.0)
    assert not _twin(fleet, _register(), 0.0, connected=True)  # it reconnects
    assert not _twin(fleet, _register("two"), 0.0, connected=True)  # another channel of one process


def test_a_client_with_a_revoked_key_is_forgotten() -> None:
    fleet = Fleet(dead_after_s=15.0)
    fleet.register(_register(), now_s=0.0, user_id="old")
    fleet.register(_register(name="actor-1"), now_s=0.0, user_id="good")
    assert fleet.remove_revoked(lambda user_id: user_id == "old") == ["actor-0"]
    assert fleet.num_by_role() == {Role.ACTOR: 1}
    assert fleet.get("actor-0") is None


def test_a_silent_client_is_gone_after_the_deadline_and_a_heard_one_is_not() -> None:
    fleet = Fleet(dead_after_s=15.0)
    fleet.register(_register(), now_s=0.0)
    fleet.register(_register(name="actor-1"), now_s=0.0)
    fleet.hear("actor-1", now_s=10.0)
    assert fleet.remove_silent(14.9) == []
    assert fleet.remove_silent(15.0) == ["actor-0"]
    assert "actor-0" not in fleet
    assert fleet.num_by_role() == {Role.ACTOR: 1}


def test_a_restarted_actor_serves_nothing_until_it_has_proved_it() -> None:
    fleet = Fleet(dead_after_s=15.0)
    fleet.register(_register(), now_s=0.0)
    fleet.set_serving("actor-0", version(3))
    fleet.register(_register(), now_s=1.0)
    assert fleet.serving("actor-0") == version(3)
    fleet.register(_register("two"), now_s=2.0)
    assert fleet.serving("actor-0") is None


def test_members_tell_how_long_they_have_been_silent() -> None:
    fleet = Fleet(dead_after_s=15.0)
    fleet.register(_register(), now_s=5.0)
    (member,) = fleet.members(now_s=7.5)
    assert (member.name, member.pid, member.silent_s) == ("actor-0", 7, 2.5)
