"""The tensors of a checkpoint: which there are, how ranks share them, one safetensors file a rank.

A file holds the flat part that its rank has of every tensor. How parts make a whole follows from
shape and number of ranks alone (FSDP2 cuts the first dimension as ``torch.chunk`` does), so another
number of ranks reads exactly the overlaps that it needs, and nobody needs a whole tensor.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
import xxhash
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from common.errors import FatalError
from common.types import Count
from learner.publication.weight_snapshot import Part, row_parts

_PIECE_BYTES = 16 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class TrainedModel(Protocol):
    """What a checkpoint asks of a model; see :class:`learner.models.model.PolicyModel`."""

    def trained_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimizer changes, tied weights once, in model order."""
        ...


Trainees = Mapping[str, tuple[TrainedModel, torch.optim.Optimizer]]
"""Models with what optimises them, by name: ``{"policy": (policy, optimizer), ...}``."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a checkpoint."""

    shape: tuple[Count, ...]
    is_sharded: bool
    """Every rank's file has a part of it; otherwise that of rank 0 has it whole."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a checkpoint."""

    num_bytes: Count
    checksum: str
    """xxh3-128 of the whole file, 32 hexadecimal digits."""


def named_tensors(trainees: Trainees) -> dict[str, Tensor]:
    """Weights and optimizer state under flat names; views, so loading fills them in place."""
    tensors: dict[str, Tensor] = {}
    for trainee, (model, optimizer) in trainees.items():
        if isinstance(model, FSDPModule):
            model.reshard()  # what a forward left gathered is not what the optimizer updated
        for name, weight in model.trained_weights():
            tensors[f"{trainee}.weight.{name}"] = weight.detach()
            for kind, value in optimizer.state[weight].items():
                tensors[f"{trainee}.{kind}.{name}"] = value.detach()
    return tensors


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """What a checkpoint says about each tensor."""
    return {
        name: TensorEntry(tuple(tensor.shape), isinstance(tensor, DTensor))
        for name, tensor in tensors.items()
    }


class HostCopies:
    """Memory for one copy of this rank's parts, pinned where there is a GPU; reused."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """Flat CPU copies of the parts that ``rank`` writes, as they are now."""
        parts = {
            name: local_part(tensor)
            for name, tensor in tensors.items()
            if rank == 0 or isinstance(tensor, DTensor)
        }
        self._copies = {name: self._memory_for(name, part) for name, part in parts.items()}
        for name, part in parts.items():
            self._copies[name].copy_(part, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._copies

    def _memory_for(self, name: str, part: Tensor) -> Tensor:
        held = self._copies.get(name)
        if held is not None and held.shape == part.shape and held.dtype == part.dtype:
            return held
        return torch.empty(part.shape, dtype=part.dtype, pin_memory=torch.cuda.is_available())


def local_part(tensor: Tensor) -> Tensor:
    """This rank's elements of ``tensor``, flat; a view.

    Raises :class:`FatalError` for a tensor that is not sharded by its first dimension.
    """
    if isinstance(tensor, DTensor):
        if tuple(tensor.placements) != (Shard(0),):
            raise FatalError(
                "a checkpointed tensor must be sharded along its first dimension over one mesh "
                f"axis, got placements {tensor.placements} (shard the model with learner.model)"
            )
        tensor = tensor.to_local()
    return tensor.detach().view(-1)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write flat CPU tensors durably as safetensors, then read the file again.

    Raises ``OSError`` when the disk does not take it or gives back something else.
    """
    digest, num_bytes = xxhash.xxh3_128(), 0
    with open(path, "wb") as file:
        for piece in _file_pieces(tensors):
            file.write(piece)
            digest.update(piece)
            num_bytes += len(piece)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # ask the disk, not memory
    if file_checksum(path) != digest.hexdigest():
        raise OSError(f"{path.name} does not hold what was written")
    return FileEntry(num_bytes, digest.hexdigest())


def file_checksum(path: Path) -> str:
    """xxh3-128 of what ``path`` holds, 32 hexadecimal digits."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def read_tensors(
    directory: Path,
    files: Sequence[str],
    entries: Mapping[str, TensorEntry],
    tensors: Mapping[str, Tensor],
) -> None:
    """Fill this rank's parts of ``tensors`` in place from ``files``, one of each rank that wrote.

    Raises ``ValueError`` when the checkpoint has other tensors than these.
    """
    _compare(entries, describe_tensors(tensors))
    for source, name in enumerate(files):
        with safe_open(directory / name, framework="pt") as file:
            for key, tensor in tensors.items():
                parts = _parts(entries[key], len(files))
                _fill_overlap(file, key, parts[source], tensor)


def _fill_overlap(file: Any, key: str, source: Part, tensor: Tensor) -> None:
    own = own_part(tensor)
    start, stop = max(own.start, source.start), min(own.stop, source.stop)
    if start < stop:
        found = file.get_slice(key)[start - source.start : stop - source.start]
        local_part(tensor)[start - own.start : stop - own.start].copy_(found)


def own_part(tensor: Tensor) -> Part:
    """Which elements of the whole ``tensor`` this rank holds."""
    if not isinstance(tensor, DTensor):
        return Part(0, tensor.numel())
    mesh = tensor.device_mesh
    return row_parts(tensor.shape, mesh.size())[mesh.get_local_rank()]


def _parts(entry: TensorEntry, num_ranks: int) -> tuple[Part, ...]:
    """What the file of each rank holds of a tensor."""
    if entry.is_sharded:
        return row_parts(entry.shape, num_ranks)
    num_elements = 1
    for size in entry.shape:
        num_elements *= size
    return (Part(0, num_elements), *[Part(0, 0)] * (num_ranks - 1))


def _compare(found: Mapping[str, TensorEntry], wanted: Mapping[str, TensorEntry]) -> None:
    lacking, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if lacking or foreign:
        what = f"lacks {lacking[0]}" if lacking else f"also holds {foreign[0]}"
        raise ValueError(f"it belongs to another model or optimizer: it {what}")
    for name, entry in wanted.items():
        if found[name].shape != entry.shape:
            raise ValueError(
                f"it belongs to another model: {name} has shape {found[name].shape}, "
                f"the model's has {entry.shape}"
            )


def _file_pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The safetensors format: length of the header, header, then the tensors one after another."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        data = tensor.view(torch.uint8).numpy().data
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]
