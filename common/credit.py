"""Byte credit: how many bytes of rollouts may be on their way to a server. Pure.

A producer sends arrays only against credit that it was granted before, so what can lie in the
receive queues of a broker or store, with any number of producers, is bounded by one pool. Credit
comes in two kinds: a small standing *allowance* that a client gets when it registers and gets back
with each acknowledgement, so that small rollouts cost no extra round trip, and *reservations* for
anything larger, granted first come, first served while the pool lasts and used up by what is sent.

Accounting. ``granted`` is what a client may still send, ``in_use`` what it has sent and what is
being handled. With ``pool`` bytes in all::

    sum over clients of granted + in_use  <=  pool

A grant needs room in the pool; sending moves bytes from ``granted`` to ``in_use``; once they are
written to the journal they leave ``in_use``. Sending more than was granted is refused, and the
producer keeps the rollout: nothing is dropped on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

ALLOWANCE_BYTES = 64 << 10
_ALLOWANCE_SHARE = 4
"""Standing allowances take at most a quarter of the pool; who registers later gets none."""
_GENEROSITY = 8


@dataclass(slots=True)
class _Account:
    """The credit of one client, in bytes."""

    allowance: int = 0
    granted: int = 0
    in_use: int = 0


class ByteCredit:
    """The pool and who holds what of it."""

    def __init__(self, pool_bytes: int) -> None:
        self.pool_bytes = pool_bytes
        self._accounts: dict[str, _Account] = {}
        self._taken = 0
        self._allowances = 0

    @property
    def free_bytes(self) -> int:
        """What can still be granted."""
        return self.pool_bytes - self._taken

    @property
    def in_use_bytes(self) -> int:
        """Bytes sent by clients and not yet written to the journal."""
        return sum(account.in_use for account in self._accounts.values())

    def open(self, client: str) -> int:
        """A client connects anew: whatever it held is void; returns its first credit."""
        self.close(client)
        left = self.pool_bytes // _ALLOWANCE_SHARE - self._allowances
        allowance = ALLOWANCE_BYTES if left >= ALLOWANCE_BYTES <= self.free_bytes else 0
        self._accounts[client] = _Account(allowance=allowance, granted=allowance)
        self._allowances += allowance
        self._taken += allowance
        return allowance

    def close(self, client: str) -> None:
        """A client is gone; what it held is free again."""
        account = self._accounts.pop(client, None)
        if account is not None:
            self._allowances -= account.allowance
            self._taken -= account.granted + account.in_use

    def may_ever_hold(self, num_bytes: int) -> bool:
        """Whether a rollout of this size fits into the pool at all, beside the allowances."""
        return num_bytes <= self.pool_bytes - self.pool_bytes // _ALLOWANCE_SHARE

    def reserve(self, client: str, least: int, most: int) -> int:
        """Grant at least ``least`` and up to ``most`` bytes more, or 0 without room for the least.

        Beyond the least a client gets at most an eighth of the pool, so that others find room.
        """
        if least > self.free_bytes:
            return 0
        wanted = max(least, min(most, self.pool_bytes // _GENEROSITY))
        granted = min(wanted, self.free_bytes)
        self._accounts.setdefault(client, _Account()).granted += granted
        self._taken += granted
        return granted

    def spend(self, client: str, num_bytes: int) -> bool:
        """``num_bytes`` arrived from ``client``; False when it had no credit for them."""
        account = self._accounts.get(client)
        if account is None or num_bytes > account.granted:
            return False
        account.granted -= num_bytes
        account.in_use += num_bytes
        return True

    def settle(self, client: str, num_bytes: int, *, renew: bool) -> int:
        """``num_bytes`` of ``client`` are in the journal; returns the credit that it gets back.

        With ``renew`` its allowance is filled up again, as far as the pool has room.
        """
        account = self._accounts.get(client)
        if account is None:
            return 0
        settled = min(num_bytes, account.in_use)
        account.in_use -= settled
        self._taken -= settled
        missing = account.allowance - account.granted
        back = min(missing, self.free_bytes) if renew else 0
        back = max(back, 0)
        account.granted += back
        self._taken += back
        return back
