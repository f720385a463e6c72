"""Who takes part in one weight transfer (hop: learner -> actor weights).

The learner announces a numbered group with its members through the broker. Each member that is
there says so in the learner's store; the learner waits for them for a moment, then writes the plan:
the members that will really receive, in rank order. A member that died, hangs or is late is left
out and pulls; nobody waits for it. The same members as before keep their process group, others get
a new one: at most one is built for a publish.

A member is known by a nonce of its process, so a restarted actor of the same name is another
member, and by run, number and token of the group, so a zombie of an earlier group meets nobody.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import Store

from common.errors import WeightTransferError
from common.messages import FleetMember, TransferGroup
from common.torch.weight_group import (
    Backend,
    WeightGroup,
    choose_backend,
    connect_store,
    own_gpu,
    serve_store,
    wait_for_key,
)
from common.types import WeightVersion

READY_WINDOW_S = 2.0
"""A member answers within milliseconds or is away; a pull costs less than waiting longer."""
_POLL_S = 0.005


class _Ready(msgspec.Struct, frozen=True):
    nonce: str
    gpu: str


class _Plan(msgspec.Struct, frozen=True):
    group: str
    nonces: tuple[str, ...]
    backend: Backend


@dataclass(frozen=True, slots=True)
class _Held:
    """A process group and the plan that it was built from."""

    plan: _Plan
    group: WeightGroup


_NoteT = TypeVar("_NoteT", _Ready, _Plan)


def _decode(data: bytes, kind: type[_NoteT]) -> _NoteT:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise WeightTransferError(f"malformed note in the weight store: {error}") from None


def _prefix(run_id: str, transfer: TransferGroup) -> str:
    return f"{run_id}/{transfer.number}/{transfer.token}"


def _ready_key(prefix: str, version: WeightVersion, member: str) -> str:
    return f"{prefix}/{version}/ready/{member}"


def _plan_key(prefix: str, version: WeightVersion) -> str:
    return f"{prefix}/{version}/plan"


class TransferHost:
    """The learner's end: owns the store, numbers the groups, sends.

    Not thread-safe; belongs to the publishing thread of rank 0.
    """

    def __init__(
        self,
        *,
        run_id: str,
        interface: str,
        deadline_s: float,
        prefer_nccl: bool = False,
        ready_window_s: float = READY_WINDOW_S,
    ) -> None:
        self._prefer_nccl = prefer_nccl
        self._run_id = run_id
        self._interface = interface
        self._deadline_s = deadline_s
        self._ready_window_s = min(ready_window_s, deadline_s)
        self._store = serve_store(interface, deadline_s)
        self._number = 0
        self._membership: tuple[tuple[str, str, int], ...] = ()
        self._transfer: TransferGroup | None = None
        self._held: _Held | None = None
        self._old_keys: list[str] = []

    def transfer_for(self, members: Sequence[FleetMember]) -> TransferGroup | None:
        """The group to announce for these members: the last one while they stay the same."""
        membership = tuple(sorted((item.name, item.host, item.pid) for item in members))
        if membership != self._membership:
            self._number += 1
            self._membership = membership
            self._transfer = self._new_transfer()
        return self._transfer if membership else None

    def open(self, transfer: TransferGroup, version: WeightVersion) -> WeightGroup:
        """Build or reuse the process group for one publish of ``version``.

        Raises :class:`WeightTransferError` when no member is ready or the group does not form.
        """
        prefix = _prefix(self._run_id, transfer)
        self._forget_last_publish()
        ready = self._wait_ready(prefix, version, transfer.members)
        plan = _Plan(
            group=f"{prefix}/{version}/group",
            nonces=tuple(item.nonce for item in ready),
            backend=self._backend(ready),
        )
        held = self._held
        if held and held.group.is_usable and held.plan.nonces == plan.nonces:
            plan = held.plan
        self._store.set(_plan_key(prefix, version), msgspec.json.encode(plan).decode())
        self._old_keys = [_plan_key(prefix, version)]
        self._old_keys += [_ready_key(prefix, version, member) for member in transfer.members]
        if not ready:
            raise WeightTransferError(f"none of {len(transfer.members)} members is ready")
        return self._enter(plan)

    def close(self) -> None:
        """Abort the group; members that still hold it notice at their next transfer."""
        if self._held is not None:
            self._held.group.abort()
            self._held = None

    def _backend(self, ready: Sequence[_Ready]) -> Backend:
        if not self._prefer_nccl:
            return "gloo"
        return choose_backend([own_gpu(), *(item.gpu for item in ready)])

    def _forget_last_publish(self) -> None:
        for key in self._old_keys:
            self._store.delete_key(key)
        self._old_keys = []

    def _new_transfer(self) -> TransferGroup:
        return TransferGroup(
            number=self._number,
            store_host=self._interface,
            store_port=self._store.port,
            token=secrets.token_hex(8),
            members=tuple(name for name, _, _ in self._membership),
        )

    def _enter(self, plan: _Plan) -> WeightGroup:
        if self._held is not None and self._held.plan == plan:
            return self._held.group
        self.close()
        group = WeightGroup.join(
            self._store,
            plan.group,
            rank=0,
            size=len(plan.nonces) + 1,
            interface=self._interface,
            deadline_s=self._deadline_s,
            backend=plan.backend,
        )
        self._held = _Held(plan, group)
        return group

    def _wait_ready(
        self, prefix: str, version: WeightVersion, members: Sequence[str]
    ) -> list[_Ready]:
        missing = list(members)
        ready: dict[str, _Ready] = {}
        give_up_at = time.monotonic() + self._ready_window_s
        while missing and time.monotonic() < give_up_at:
            for member in list(missing):
                key = _ready_key(prefix, version, member)
                if self._store.check([key]):
                    ready[member] = _decode(self._store.get(key), _Ready)
                    missing.remove(member)
            if missing:
                time.sleep(_POLL_S)
        return [ready[member] for member in members if member in ready]


class TransferGuest:
    """An actor's end: says that it is ready, joins what the learner planned, receives.

    Not thread-safe; belongs to the weight agent.
    """

    def __init__(self, *, run_id: str, member: str, deadline_s: float) -> None:
        self._run_id = run_id
        self._member = member
        self._deadline_s = deadline_s
        self._nonce = ""
        self._store: Store | None = None
        self._store_address = ("", 0)
        self._held: _Held | None = None

    def open(self, transfer: TransferGroup, version: WeightVersion) -> WeightGroup:
        """The process group that will carry ``version`` to this member.

        Raises :class:`WeightTransferError` when the learner is gone, planned without this member
        (then it should pull), or the group does not form in time.
        """
        if self._member not in transfer.members:
            raise WeightTransferError(f"{self._member} is no member of group {transfer.number}")
        store = self._connect(transfer)
        prefix = _prefix(self._run_id, transfer)
        if self._held is None or not self._held.group.is_usable:
            self._nonce = secrets.token_hex(8)  # without a group it is a new member to the learner
        note = msgspec.json.encode(_Ready(nonce=self._nonce, gpu=own_gpu())).decode()
        try:
            store.set(_ready_key(prefix, version, self._member), note)
        except RuntimeError as error:
            self.close()
            raise WeightTransferError(f"the learner's store is gone: {error!r}") from None
        answer_s = min(self._deadline_s, 2 * READY_WINDOW_S)
        data = wait_for_key(store, _plan_key(prefix, version), answer_s)
        return self._enter(store, _decode(data, _Plan), transfer)

    def close(self) -> None:
        """Abort the group and forget the store."""
        self.abandon()
        self._store = None

    def abandon(self) -> None:
        """Abort the group after a broken transfer; the next one begins with a new group."""
        if self._held is not None:
            self._held.group.abort()
            self._held = None

    def _connect(self, transfer: TransferGroup) -> Store:
        address = (transfer.store_host, transfer.store_port)
        if self._store is None or address != self._store_address:
            self.close()
            self._store = connect_store(*address, min(self._deadline_s, READY_WINDOW_S))
            self._store_address = address
        return self._store

    def _enter(self, store: Store, plan: _Plan, transfer: TransferGroup) -> WeightGroup:
        if self._nonce not in plan.nonces:
            raise WeightTransferError(f"group {transfer.number} was planned without this member")
        if self._held is not None and self._held.plan == plan and self._held.group.is_usable:
            return self._held.group
        self.abandon()
        group = WeightGroup.join(
            store,
            plan.group,
            rank=plan.nonces.index(self._nonce) + 1,
            size=len(plan.nonces) + 1,
            interface=transfer.store_host,
            deadline_s=self._deadline_s,
            backend=plan.backend,
        )
        self._held = _Held(plan, group)
        return group
