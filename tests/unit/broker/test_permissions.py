"""Which role may send what, with and without keys: every request, every role."""

from __future__ import annotations

from typing import get_args

import pytest

from broker.fleet import Client
from broker.handlers import REQUESTS
from broker.permissions import SENDERS, AccessControl
from common import messages
from common.errors import RefusedError
from common.messages import Register, Request
from common.types import Role

_KEYS = {
    **{f"{role.value}-key": (role, "") for role in Role},
    "actor-7-key": (Role.ACTOR, "actor-7"),
}
_MAY = {
    Role.ACTOR: {
        *(
            "LeasePrompts",
            "ReserveBytes",
            "SubmitRollout",
            "ReturnLease",
            "WatchWeights",
            "ReportWeights",
        ),
        "ListEnded",
    },
    Role.VERIFIER: {
        *("LeaseRollouts", "SubmitVerdict", "ReturnLease", "ReportLost", "ReserveBytes"),
    },
    Role.LEARNER: {
        *("PullGroups", "DescribeGroups", "FetchRollouts", "CommitStep", "CommitCheckpoint"),
        *("ResumeLearner", "EvictGroups", "EndRun", "PublishWeights", "GetFleet", "ReportLost"),
        *("SetReference", "FetchReferences"),
    },
    Role.COLLECTOR: {
        *("PullGroups", "DescribeGroups", "FetchRollouts", "CommitStep", "EvictGroups", "EndRun"),
        "ReportLost",
    },
    Role.SUPERVISOR: {"GetFleet"},
    Role.STORE: {"ListEnded"},
}
_EVERYBODY_MAY = {"Register", "Heartbeat", "GetStatus", "GetStores"}


def _client(role: Role, user_id: str = "", name: str = "x") -> Client:
    registration = Register(role=role, name=name, nonce="n", host="h", pid=1)
    return Client(registration, heard_at_s=0.0, user_id=user_id)


def _is_allowed(access: AccessControl, kind: type[Request], client: Client, user_id: str) -> bool:
    try:
        access.check_request(kind, client, user_id)
    except RefusedError as error:
        return error.code != "forbidden"
    return True


def test_the_table_names_every_request_that_the_broker_answers_and_no_other() -> None:
    assert set(SENDERS) == REQUESTS
    assert set(get_args(Request)) >= REQUESTS


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize("role", Role)
def test_a_role_may_send_what_it_is_for_and_nothing_else(role: Role, has_keys: bool) -> None:
    access = AccessControl(_KEYS.get if has_keys else None)
    user_id = f"{role.value}-key" if has_keys else ""
    client = _client(role, user_id)
    may = {kind.__name__ for kind in REQUESTS if _is_allowed(access, kind, client, user_id)}
    assert may == _MAY[role] | _EVERYBODY_MAY


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("key_of", Role)
def test_a_client_registers_as_what_its_key_says_it_is(role: Role, key_of: Role) -> None:
    message = Register(role=role, name="x", nonce="n", host="h", pid=1)
    AccessControl().check_registration(message, "")
    access = AccessControl(_KEYS.get)
    if role is key_of:
        access.check_registration(message, f"{key_of.value}-key")
        return
    with pytest.raises(RefusedError, match=f"with a key of a {key_of.value}") as refused:
        access.check_registration(message, f"{key_of.value}-key")
    assert refused.value.code == "forbidden"


def test_a_key_with_a_name_is_for_the_process_of_this_name_only() -> None:
    access = AccessControl(_KEYS.get)
    own = Register(role=Role.ACTOR, name="actor-7", nonce="n", host="h", pid=1)
    access.check_registration(own, "actor-7-key")
    other = Register(role=Role.ACTOR, name="actor-8", nonce="n", host="h", pid=1)
    with pytest.raises(RefusedError, match="only for actor-7"):
        access.check_registration(other, "actor-7-key")


@pytest.mark.parametrize("user_id", ["", "verifier-key", "actor-7-key"])
def test_a_message_under_another_key_than_the_registration_is_refused(user_id: str) -> None:
    access = AccessControl(_KEYS.get)
    client = _client(Role.ACTOR, "actor-key")
    assert _is_allowed(access, messages.Heartbeat, client, "actor-key")
    assert not _is_allowed(access, messages.Heartbeat, client, user_id)


def test_a_revoked_key_is_refused_at_the_next_message_and_found_by_the_sweep() -> None:
    keys = dict(_KEYS)
    access = AccessControl(keys.get)
    client = _client(Role.ACTOR, "actor-key")
    assert _is_allowed(access, messages.LeasePrompts, client, "actor-key")
    assert not access.is_revoked("actor-key")
    del keys["actor-key"]
    assert not _is_allowed(access, messages.LeasePrompts, client, "actor-key")
    assert access.is_revoked("actor-key")
    with pytest.raises(RefusedError, match="was revoked"):
        access.check_registration(client.registration, "actor-key")


def test_without_keys_nobody_is_revoked() -> None:
    assert not AccessControl().is_revoked("")
