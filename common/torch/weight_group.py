"""Numbered process groups between independent processes (hop: learner -> actor weights).

A group is built on a key-value store of the learner, never on torch's default group: the learner
trains and the engine serves on theirs. Rank 0 sends. A group is used until one operation fails and
is then aborted; nobody repairs it. Every wait has a deadline.

Gloo through host memory is the tested path and the default. NCCL is taken only where the
configuration asks for it and every member has a GPU of its own; no test here exercises it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore, Work

from common.errors import WeightTransferError

Backend = Literal["gloo", "nccl"]

_SLOWEST_BYTES_PER_S = 20e6
_DEADLINE_FLOOR_S = 5.0
_POLL_S = 0.005
_POLL_MAX_S = 0.05


def operation_deadline_s(num_bytes: int, longest_s: float) -> float:
    """Seconds that one broadcast may take: by its size at 20 MB/s, and never over ``longest_s``."""
    return min(longest_s, _DEADLINE_FLOOR_S + num_bytes / _SLOWEST_BYTES_PER_S)


def choose_backend(gpus: Collection[str]) -> Backend:
    """``nccl`` when all members named a GPU and no two the same one, which NCCL refuses."""
    distinct = len(set(gpus)) == len(gpus) and all(gpus)
    return "nccl" if distinct and len(gpus) > 1 else "gloo"


def own_gpu() -> str:
    """Identity of the GPU that this process would use for NCCL, empty without one."""
    if not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def serve_store(interface: str, deadline_s: float) -> TCPStore:
    """A store that listens on a free port of ``interface``; its port is ``store.port``.

    It is neither authenticated nor encrypted: ``interface`` should be loopback or a network that
    only the run can reach.
    """
    try:
        return TCPStore(
            interface,
            0,
            None,
            is_master=True,
            timeout=timedelta(seconds=deadline_s),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        raise WeightTransferError(
            f"weights.interface {interface!r} cannot be listened on: {_first_line(error)}"
        ) from None


def connect_store(host: str, port: int, deadline_s: float) -> TCPStore:
    """The store of a learner; raises :class:`WeightTransferError` when it is not there."""
    try:
        # torch would try again until the deadline and print a C++ stack when nobody listens
        socket.create_connection((host, port), timeout=deadline_s).close()
        return TCPStore(
            host,
            port,
            None,
            is_master=False,
            timeout=timedelta(seconds=deadline_s),
            wait_for_workers=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightTransferError(
            f"no weight store answers at {host}:{port}: {_first_line(error)}"
        ) from None


def wait_for_key(store: Store, key: str, deadline_s: float) -> bytes:
    """Value of ``key`` once somebody has set it."""
    give_up_at = time.monotonic() + deadline_s
    pause_s = _POLL_S
    while True:
        try:
            if store.check([key]):
                return bytes(store.get(key))
        except RuntimeError as error:
            raise WeightTransferError(f"the weight store is gone: {_first_line(error)}") from None
        if time.monotonic() >= give_up_at:
            raise WeightTransferError(f"{key} was not set within {deadline_s:.1f} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_MAX_S)


class WeightGroup:
    """One process group; ``rank`` 0 is the learner.

    After any :class:`WeightTransferError` the group is aborted and of no further use; the process
    is unharmed.
    """

    def __init__(self, group: Any, backend: Backend, longest_s: float) -> None:
        self._group: Any | None = group
        self._longest_s = longest_s
        self.device = torch.device("cuda" if backend == "nccl" else "cpu")

    @classmethod
    def join(
        cls,
        store: Store,
        prefix: str,
        *,
        rank: int,
        size: int,
        interface: str,
        deadline_s: float,
        backend: Backend = "gloo",
    ) -> WeightGroup:
        """Meet the other members under ``prefix``; all ``size`` of them must come in time.

        ``prefix`` holds run, group number and token: whoever knows an old one meets nobody.
        """
        scoped = PrefixStore(prefix, store)
        build = _nccl_group if backend == "nccl" else _gloo_group
        # Meeting needs no bandwidth: whoever said to be ready is either quick or gone.
        patience_s = operation_deadline_s(0, deadline_s)
        try:
            group = build(scoped, rank, size, interface, patience_s)
        except RuntimeError as error:
            raise WeightTransferError(
                f"weight group {prefix} of {size} did not form: {_first_line(error)}"
            ) from None
        return cls(group, backend, deadline_s)

    @property
    def is_usable(self) -> bool:
        """False after an abort."""
        return self._group is not None

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send ``tensor`` from rank 0, receive into it elsewhere; it must be contiguous.

        Raises :class:`WeightTransferError` and aborts the group when a peer is lost or late.
        """
        if self._group is None:
            raise WeightTransferError("the weight group was aborted")
        deadline_s = operation_deadline_s(tensor.nbytes, self._longest_s)
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        options.timeout = timedelta(seconds=deadline_s)
        try:
            # Bytes, so that every element type of a model travels on every backend.
            work = self._group.broadcast([tensor.view(-1).view(torch.uint8)], options)
            _wait(work, deadline_s, self.device)
        except (RuntimeError, WeightTransferError) as error:
            self.abort()
            raise WeightTransferError(f"a weight broadcast failed: {_first_line(error)}") from None

    def abort(self) -> None:
        """Drop all connections at once, without a word to the others; a second call is harmless.

        Never a graceful end: that would wait for members that may be dead.
        """
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError):
                group.abort()


def _gloo_group(store: Store, rank: int, size: int, interface: str, deadline_s: float) -> Any:
    # torch's public constructors go through its default group; its type stubs know less than this.
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=deadline_s)
    options._threads = 1
    options._devices = [_gloo_device(interface)]
    return gloo(store, rank, size, options)


def _gloo_device(interface: str) -> Any:
    if interface in ("127.0.0.1", "localhost"):
        return dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")
    return dist.ProcessGroupGloo.create_default_device()


def _nccl_group(store: Store, rank: int, size: int, _: str, deadline_s: float) -> Any:
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=deadline_s)
    return nccl(store, rank, size, options)


def _wait(work: Work, deadline_s: float, device: torch.device) -> None:
    """Return when ``work`` is done: NCCL's own wait only orders streams and has no deadline."""
    if device.type == "cpu":
        work.wait()
        return
    give_up_at = time.monotonic() + deadline_s
    while not work.is_completed():
        if time.monotonic() >= give_up_at:
            raise WeightTransferError(f"no peer answered within {deadline_s:.1f} s")
        time.sleep(_POLL_S)
    work.wait()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
