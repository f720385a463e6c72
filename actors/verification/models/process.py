"""The process that holds the weights: packed batches in, outputs out, nothing decided.

It shares no loop and no memory with the verifier: when a model crashes or hangs, it is killed and
started again, and rule verdicts never notice. A second thread reads and lays out the next batch
while the first computes this one.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from actors.verification.models.frames import (
    ForwardReply,
    ForwardRequest,
    ModelSpec,
    Setup,
    int32_array,
    joined,
    read_parts,
)
from actors.verification.models.layout import lay_out
from common.arrays import Float32Array
from common.codec import pack, unpack
from common.errors import HeadraceError
from common.lifecycle import die_with_parent
from common.torch.scoring_model import ScoringModel
from common.types import WeightVersion

_PREFETCHED = 1


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A request as tensors in host memory, pinned where there is a GPU to copy to."""

    request: ForwardRequest
    rows: tuple[Tensor, ...]
    """int64 [R, L] each: input, position, document and branch ids."""
    places: Tensor
    """int64 [N]."""
    targets: Tensor
    """int64 [N] or [0]."""


class Models:
    """The models of one process: each is loaded when it is first asked for, and stays."""

    def __init__(self, specs: tuple[ModelSpec, ...]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._loaded: dict[str, ScoringModel] = {}

    def run(self, batch: PreparedBatch) -> tuple[ForwardReply, Float32Array]:
        """Outputs for ``batch``; raises what loading or computing raises."""
        request = batch.request
        spec = self._specs[request.model]
        model, fresh = self._model(spec, request.version)
        started_s = time.perf_counter()
        outputs = forward(model, spec.head, batch)
        reply = ForwardReply(
            num_outputs=outputs.shape[0],
            num_labels=outputs.shape[1],
            compute_s=time.perf_counter() - started_s,
            weight_bytes=model.weight_bytes,
            loaded=fresh,
        )
        return reply, outputs

    def holds(self, name: str) -> bool:
        """Whether the model's weights are there, so that what failed was to compute."""
        return name in self._loaded

    def _model(self, spec: ModelSpec, version: WeightVersion | None) -> tuple[ScoringModel, bool]:
        """The model with the weights of ``version``, and whether it had to be loaded.

        One whose weights could not be replaced is dropped: it never answers with others.
        """
        model = self._loaded.pop(spec.name, None)
        if version is None and model is not None and model.version is not None:
            model = None
        fresh = model is None
        if model is None:
            model = ScoringModel.load(
                Path(spec.path),
                spec.head,
                device=spec.device,
                dtype=spec.dtype,
                max_tokens=spec.max_tokens,
            )
        if version is not None:
            model.use_version(Path(spec.weights), version)
        self._loaded[spec.name] = model
        return model, fresh


@torch.inference_mode()
def forward(model: ScoringModel, head: str, batch: PreparedBatch) -> Float32Array:
    """Outputs float32 [N, labels] of one batch on the host."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(model.device, non_blocking=True)

    hidden = model.hidden_states(*map(moved, batch.rows))
    chosen = hidden.index_select(0, moved(batch.places))
    if head == "logprobs":
        temperature = batch.request.temperature
        outputs = model.logprobs(chosen, moved(batch.targets), temperature).unsqueeze(-1)
    else:
        outputs = model.scores(chosen)
    found: Float32Array = outputs.cpu().numpy()
    return found


def prepare(parts: list[bytes]) -> PreparedBatch:
    """Read one request and lay it out; raises :class:`DataError` where it contradicts itself."""
    request: ForwardRequest = unpack(parts[0], ForwardRequest)
    token_ids, places, targets = map(int32_array, parts[1:])
    layout = lay_out(request, token_ids)
    rows = (layout.input_ids, layout.position_ids, layout.document_ids, layout.branch_ids)
    pinned = torch.cuda.is_available()

    def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> Tensor:
        whole = torch.from_numpy(array.astype(np.int64))
        return whole.pin_memory() if pinned else whole

    return PreparedBatch(request, tuple(map(tensor, rows)), tensor(places), tensor(targets))


Prepared = PreparedBatch | HeadraceError


def main() -> None:
    """Serve requests until the input ends."""
    die_with_parent()
    requests, replies = _take_pipes()
    first = read_parts(requests)
    if first is None:
        return
    setup: Setup = unpack(first[0], Setup)
    torch.set_num_threads(setup.num_threads)
    prepared: queue.Queue[Prepared] = queue.Queue(_PREFETCHED)
    reader = threading.Thread(target=_read_ahead, args=(requests, prepared.put), daemon=True)
    reader.start()
    models = Models(setup.models)
    while True:
        _write(replies, _answer(models, prepared.get()))


def _read_ahead(requests: BinaryIO, put: Callable[[Prepared], None]) -> None:
    """Prepare batches as they come; the end of the input ends the process, computing or not."""
    while (parts := read_parts(requests)) is not None:
        try:
            put(prepare(parts))
        except HeadraceError as error:
            put(error)
    os._exit(0)


def _answer(models: Models, batch: Prepared) -> bytes:
    """Outputs, or why there are none: a failed batch must not end the others."""
    if isinstance(batch, HeadraceError):
        return joined([pack(ForwardReply(failure=str(batch)[:4096]))])
    try:
        reply, outputs = models.run(batch)
        return joined([pack(reply), np.ascontiguousarray(outputs, dtype="<f4").data])
    except Exception as error:  # the one place that may say so: it becomes a typed infra-error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next batch may fit
        reason = f"{type(error).__name__}: {error}"[:4096]
        too_large = models.holds(batch.request.model) and _is_out_of_memory(error)
        return joined([pack(ForwardReply(failure=reason, out_of_memory=too_large))])


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the host, where torch has no class for it."""
    said = "not enough memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or said


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the two pipes to private descriptors, so that no ``print`` reaches them."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _write(stream: BinaryIO, message: bytes) -> None:
    data = memoryview(message)
    while data:
        data = data[os.write(stream.fileno(), data) :]


if __name__ == "__main__":
    main()
