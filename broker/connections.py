"""Which client is behind each connection, and what it may say there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.fleet import Fleet
from broker.handlers import REQUESTS
from broker.permissions import NAME_TAKEN, AccessControl
from common.broker_socket import BrokerSocket
from common.errors import RefusedError
from common.flow_control import FlowControl
from common.messages import AnyMessage, Register

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

Sender = tuple[bytes, type[AnyMessage], str]
"""Peer, kind of request and proven identity."""


class Connections:
    """The clients that are connected; their byte credit ends with the connection."""

    def __init__(
        self,
        *,
        socket: BrokerSocket,
        fleet: Fleet,
        access: AccessControl,
        flow: FlowControl,
        log: BoundLogger,
    ) -> None:
        self._socket = socket
        self._fleet = fleet
        self._access = access
        self._flow = flow
        self._log = log
        self.names: dict[bytes, str] = {}
        """Name of the client behind each peer."""
        self.peers: dict[str, bytes] = {}
        """The other way round."""
        self.admitted: dict[Sender, str] = {}
        """Name of each sender that was admitted this turn; the next one begins by clearing it."""

    def admit(self, sender: Sender, now_s: float) -> str:
        """Name of a client that may send such a request, which is a sign of life.

        Known for the rest of the turn, so that all requests of a batch are looked at once. Raises
        :class:`RefusedError`.
        """
        peer, kind, user_id = sender
        name = self.names.get(peer, "")
        client = self._fleet.get(name)
        if kind not in REQUESTS:
            raise RefusedError("malformed", f"{kind.__name__} is no request to the broker")
        if client is None:
            raise RefusedError("unregistered", "register first")
        self._access.check_request(kind, client, user_id)
        self._fleet.hear(name, now_s)
        self.admitted[sender] = name
        return name

    def check_registration(self, message: Register, user_id: str, now_s: float) -> None:
        """Raise :class:`RefusedError` for a client that may not be who it says it is."""
        self._access.check_registration(message, user_id)
        self._refuse_twin(message, now_s)

    def _refuse_twin(self, message: Register, now_s: float) -> None:
        """Two live processes of one name would take each other's work away for ever."""

        def is_connected() -> bool:
            peer = self.peers.get(message.name)
            return peer is not None and self._socket.is_connected(peer)

        twin = self._fleet.live_twin(message, now_s, is_connected)
        if twin is None:
            return
        reason = (
            f"{message.name} on {message.host} (pid {message.pid}) has the name of a live process "
            f"on {twin.host} (pid {twin.pid}); give each a name of its own (--name)"
        )
        self._log.error("refused a second process of one name", reason=reason)
        raise RefusedError(NAME_TAKEN, reason)

    def open(self, peer: bytes, name: str) -> None:
        """A registered client speaks through ``peer`` from here on."""
        self.admitted.clear()
        self.names[peer] = name
        self.peers[name] = peer

    def close(self, name: str) -> None:
        """The connection of a client is over, if it has one."""
        peer = self.peers.pop(name, None)
        if peer is not None:
            del self.names[peer]
            self._flow.disconnect(name)

    def remove_revoked(self) -> list[str]:
        """Take clients whose key was revoked out of the fleet; returns their names."""
        return self._fleet.remove_revoked(self._access.is_revoked)
