"""Who may send how many bytes, and who waits for that: the server's end of byte credit. Pure.

Reservations wait in one line, and nobody overtakes: a large rollout is not starved by small ones.
While the disk takes no more arrays, no credit is given at all and the line stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from common.credit import ByteCredit
from common.errors import RefusedError
from common.messages import Credit, ReserveBytes

NO_CREDIT = "no_credit"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A wish that waits: who to answer, for how many bytes, and until when."""

    peer: bytes
    request_id: int
    client: str
    least: int
    most: int
    until_s: float


class FlowControl:
    """The pool of one server and the line of those who wait for it."""

    def __init__(self, pool_bytes: int, is_open: Callable[[], bool]) -> None:
        """``is_open`` tells whether arrays can be kept at all; with a full disk it is False."""
        self.credit = ByteCredit(pool_bytes)
        self._is_open = is_open
        self._line: deque[Reservation] = deque()
        self._arrived: dict[str, int] = {}
        self._granted: dict[str, tuple[int, Credit]] = {}
        """Request id and answer of the last grant of each client."""
        self._again: list[tuple[Reservation, Credit]] = []

    @property
    def num_waiting(self) -> int:
        """Reservations in the line."""
        return len(self._line)

    def connect(self, client: str) -> int:
        """A client connects anew; returns its first credit in bytes."""
        self._forget(client)
        return self.credit.open(client)

    def disconnect(self, client: str) -> None:
        """A client is gone."""
        self._forget(client)
        self.credit.close(client)

    def arrive(self, client: str, num_bytes: int) -> None:
        """Arrays of a client came in; raises :class:`RefusedError` if it had no credit for them."""
        if not self.credit.spend(client, num_bytes):
            raise RefusedError(
                NO_CREDIT, f"{client} sent {num_bytes} bytes without credit for them: reserve first"
            )
        self._arrived[client] = self._arrived.get(client, 0) + num_bytes

    def turn_away(self, client: str, num_bytes: int) -> None:
        """Arrays that arrived are not kept: their sender has to ask for credit again."""
        self._arrived[client] -= num_bytes
        self.credit.settle(client, num_bytes, renew=False)

    def settle(self, is_told: Callable[[str], bool]) -> dict[str, int]:
        """What arrived is on disk; returns the credit that its senders get back, where any.

        ``is_told`` says whether a client is being sent a reply that can carry credit.
        """
        renew = self._is_open() and not self._line
        arrived, self._arrived = self._arrived, {}
        back = {
            client: self.credit.settle(client, num_bytes, renew=renew and is_told(client))
            for client, num_bytes in arrived.items()
        }
        return {client: num_bytes for client, num_bytes in back.items() if num_bytes}

    def reserve(
        self, wish: ReserveBytes, peer: bytes, request_id: int, client: str, now_s: float
    ) -> None:
        """Put a wish into the line; a repeated one keeps its place, or gets its answer again.

        Request ids of one connection ascend, so one that is not above the last that was granted is
        a repetition. Raises :class:`RefusedError` for more than can ever be held.
        """
        if not self.credit.may_ever_hold(wish.least):
            raise RefusedError(
                "too_large",
                f"{wish.least} bytes are more than this server takes in at once, "
                f"{self.credit.pool_bytes * 3 // 4} (raise broker.max_memory_bytes)",
            )
        until_s = now_s + wish.wait_s
        item = Reservation(peer, request_id, client, wish.least, wish.most, until_s)
        granted_id, credit = self._granted.get(client, (0, None))
        if request_id <= granted_id:
            if request_id == granted_id and credit is not None:
                self._again.append((item, credit))
        elif all((other.peer, other.request_id) != (peer, request_id) for other in self._line):
            self._line.append(item)

    def answer(self, now_s: float) -> list[tuple[Reservation, Credit]]:
        """Grant from the front while there is room, then turn away those whose wait ran out."""
        answered, self._again = self._again, []
        while self._line and self._is_open():
            front = self._line[0]
            granted = self.credit.reserve(front.client, front.least, front.most)
            if not granted:
                break
            credit = Credit(num_bytes=granted)
            self._granted[front.client] = front.request_id, credit
            answered.append((self._line.popleft(), credit))
        expired = [item for item in self._line if item.until_s <= now_s]
        if expired:
            refusal = Credit(reason=self._why())
            answered.extend((item, refusal) for item in expired)
            self._line = deque(item for item in self._line if item.until_s > now_s)
        return answered

    def next_deadline_s(self) -> float:
        """When the first wait runs out; infinity when nobody waits."""
        return min((item.until_s for item in self._line), default=float("inf"))

    def _why(self) -> str:
        if not self._is_open():
            return "the disk takes no more rollouts"
        return f"{self.credit.pool_bytes} bytes are already on their way"

    def _forget(self, client: str) -> None:
        """Nothing of its last connection matters any more."""
        self._arrived.pop(client, None)
        self._granted.pop(client, None)
        self._again = [item for item in self._again if item[0].client != client]
        self._line = deque(item for item in self._line if item.client != client)
