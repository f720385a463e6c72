"""A model process that follows a script, in place of the one that holds weights."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np

from actors.verification.models.frames import ForwardReply, ForwardRequest
from actors.verification.models.layout import lay_out
from actors.verification.models.model_process import ModelProcessError
from common.arrays import Float32Array, Int32Array


class ScriptedProcess:
    """Answers each wanted place with its token id; may die or stammer, and has memory for ``room``
    places at once.
    """

    def __init__(
        self, *, dies_at: Sequence[int] = (), short_at: Sequence[int] = (), room: int = 1 << 30
    ) -> None:
        self._dies_at = set(dies_at)
        self._short_at = set(short_at)
        self._room = room
        self._sent: deque[tuple[ForwardRequest, tuple[Int32Array, ...]]] = deque()
        self.requests: list[ForwardRequest] = []
        self.num_starts = 0
        self.num_answered = 0
        self.most_under_way = 0
        self.pid = None

    async def start(self) -> None:
        self.num_starts += 1

    def send(self, request: ForwardRequest, arrays: Sequence[Int32Array]) -> None:
        self._sent.append((request, tuple(arrays)))
        self.requests.append(request)
        self.most_under_way = max(self.most_under_way, len(self._sent))

    async def receive(self, limit_s: float) -> tuple[ForwardReply, Float32Array | None]:
        await asyncio.sleep(0)
        request, (token_ids, places, _) = self._sent.popleft()
        number, self.num_answered = self.num_answered, self.num_answered + 1
        if number in self._dies_at:
            raise ModelProcessError("the model process died in mid-batch")
        flat = lay_out(request, token_ids).input_ids.reshape(-1)
        if len(flat) > self._room:
            return ForwardReply(failure="CUDA out of memory", out_of_memory=True), None
        outputs = flat[places].astype(np.float32)[:, None]
        if number in self._short_at:
            outputs = outputs[1:]
        return ForwardReply(num_outputs=len(outputs), num_labels=1), outputs

    async def kill(self) -> None:
        self._sent.clear()
