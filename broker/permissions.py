"""Which role may send which request, and who is behind a connection. Pure.

The table holds with and without keys: without them a client says itself what it is, which keeps
mistakes out; with them it cannot lie about it, which keeps everybody else out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.fleet import Client
from common import messages
from common.errors import RefusedError
from common.messages import Register, Request
from common.types import Role

FORBIDDEN = "forbidden"
NAME_TAKEN = "name_taken"
RoleOf = Callable[[str], tuple[Role, str] | None]
"""Role and only permitted name ("" for any) behind the user id of a connection; None: revoked."""

_EVERYBODY = frozenset(Role)
_ACTOR = frozenset({Role.ACTOR})
_VERIFIER = frozenset({Role.VERIFIER})
_LEARNER = frozenset({Role.LEARNER})
_CONSUMERS = frozenset({Role.LEARNER, Role.COLLECTOR})
_READERS = frozenset({Role.VERIFIER, Role.LEARNER, Role.COLLECTOR})
_PAYLOAD_SERVERS = frozenset({Role.STORE, Role.ACTOR})

SENDERS: Mapping[type[Request], frozenset[Role]] = {
    messages.Register: _EVERYBODY,
    messages.Heartbeat: _EVERYBODY,
    messages.GetStatus: _EVERYBODY,
    messages.LeasePrompts: _ACTOR,
    messages.ReserveBytes: _ACTOR | _VERIFIER,
    messages.SubmitRollout: _ACTOR,
    messages.WatchWeights: _ACTOR,
    messages.ReportWeights: _ACTOR,
    messages.LeaseRollouts: _VERIFIER,
    messages.SubmitVerdict: _VERIFIER,
    messages.ReturnLease: _ACTOR | _VERIFIER,
    messages.PullGroups: _CONSUMERS,
    messages.DescribeGroups: _CONSUMERS,
    messages.FetchRollouts: _CONSUMERS,
    messages.CommitStep: _CONSUMERS,
    messages.EvictGroups: _CONSUMERS,
    messages.EndRun: _CONSUMERS,
    messages.SetReference: _LEARNER,
    messages.FetchReferences: _LEARNER,
    messages.CommitCheckpoint: _LEARNER,
    messages.ResumeLearner: _LEARNER,
    messages.PublishWeights: _LEARNER,
    messages.GetFleet: _LEARNER | {Role.SUPERVISOR},
    messages.GetStores: _EVERYBODY,
    messages.ReportLost: _READERS,
    messages.ListEnded: _PAYLOAD_SERVERS,
}
"""Roles that may send each request that the broker answers."""


class AccessControl:
    """Refuses what the sender may not do; raises :class:`RefusedError` with code ``forbidden``."""

    def __init__(self, role_of: RoleOf | None = None) -> None:
        """``role_of`` tells whom a connection belongs to; None where there are no keys."""
        self._role_of = role_of

    def check_registration(self, message: Register, user_id: str) -> None:
        """A client is what its key says it is."""
        if self._role_of is None:
            return
        role, name = self._holder(user_id)
        if role is not message.role:
            raise RefusedError(
                FORBIDDEN,
                f"{message.name} registers as {message.role.value} with a key of a {role.value} "
                f"(use {message.role.value}.key_secret)",
            )
        if name and name != message.name:
            raise RefusedError(
                FORBIDDEN,
                f"{message.name} registers with a key that is only for {name} "
                f"(make one with headrace keys --role {role.value} --name {message.name})",
            )

    def check_request(self, kind: type[Request], client: Client, user_id: str) -> None:
        """A client does what its role is for, under the key that it registered with."""
        if self._role_of is not None:
            self._holder(user_id)
            if user_id != client.user_id:
                raise RefusedError(FORBIDDEN, "the connection has another key than the client")
        role = client.registration.role
        if role not in SENDERS[kind]:
            raise RefusedError(FORBIDDEN, f"a {role.value} may not send {kind.__name__}")

    def is_revoked(self, user_id: str) -> bool:
        """Whether the key behind ``user_id`` was taken off the list of clients."""
        return self._role_of is not None and self._role_of(user_id) is None

    def _holder(self, user_id: str) -> tuple[Role, str]:
        known = None if self._role_of is None else self._role_of(user_id)
        if known is None:
            raise RefusedError(FORBIDDEN, "the key of this client was revoked (ask for another)")
        return known
