"""Our end of one model process: start it, send batches, receive outputs in order, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

from actors.verification.models.frames import (
    ForwardReply,
    ForwardRequest,
    ModelSpec,
    Setup,
    joined,
    output_array,
    receive_parts,
)
from common.arrays import Float32Array, Int32Array
from common.codec import pack, unpack
from common.errors import DecodeError, InfraError

_KILL_LIMIT_S = 5.0
_MODULE = "actors.verification.models.process"


class ModelProcessError(InfraError):
    """The process ended, hung or spoke nonsense before it answered."""


class ModelProcess:
    """The process that runs ``models``, and its successors when it has to be replaced."""

    def __init__(self, models: Sequence[ModelSpec], num_threads: int) -> None:
        self._setup = Setup(models=tuple(models), num_threads=num_threads)
        self._process: asyncio.subprocess.Process | None = None
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process unless it runs; raises :class:`ModelProcessError`."""
        if self._process is not None:
            return
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(self._setup.num_threads)
        environment["HF_HUB_OFFLINE"] = "1"  # weights come from this disk, never from the network
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _MODULE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise ModelProcessError(f"a model process cannot start: {error}") from None
        self.num_starts += 1
        self._write(joined([pack(self._setup)]))

    def send(self, request: ForwardRequest, arrays: Sequence[Int32Array]) -> None:
        """Hand one batch over; its outputs come after those of the batches before it."""
        self._write(joined([pack(request), *(array.data for array in arrays)]))

    async def receive(self, limit_s: float) -> tuple[ForwardReply, Float32Array | None]:
        """The next answer; raises :class:`ModelProcessError` after ``limit_s`` without one."""
        if self._process is None or self._process.stdout is None:
            raise ModelProcessError("there is no model process")
        try:
            async with asyncio.timeout(limit_s):
                parts = await receive_parts(self._process.stdout)
            reply: ForwardReply = unpack(parts[0], ForwardReply)
            return reply, None if reply.failure else output_array(reply, parts[1])
        except TimeoutError:
            raise ModelProcessError(f"no answer of the model within {limit_s:g} s") from None
        except asyncio.IncompleteReadError:
            raise ModelProcessError("the model process died in mid-batch") from None
        except (DecodeError, IndexError) as error:
            raise ModelProcessError(f"the model process spoke nonsense: {error}") from None

    async def kill(self) -> None:
        """End the process; the next :meth:`start` makes another."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):  # stuck in a driver: it dies when that returns
            async with asyncio.timeout(_KILL_LIMIT_S):
                await process.wait()

    def _write(self, message: bytes) -> None:
        """Never waits: few batches are under way, and the process reads while it computes."""
        if self._process is None or self._process.stdin is None:
            raise ModelProcessError("there is no model process")
        if self._process.stdin.is_closing():
            raise ModelProcessError("the model process died while idle")
        self._process.stdin.write(message)
