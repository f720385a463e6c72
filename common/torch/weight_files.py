"""Published weights on disk, ``weights/<version>/`` (hop: learner -> actor weights, pull path).

A version is immutable and complete or absent: it is written under another name, made durable, then
renamed. Any actor can pull it, whatever became of the learner. One safetensors file and the
manifest; the manifest proves the tensors.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from common.errors import CheckpointError, WeightTransferError
from common.files import fsync_directory
from common.torch.digest import digest_text, tensor_digest
from common.types import WeightVersion
from common.weight_layout import TensorSpec, WeightManifest

TENSORS_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
_UNFINISHED = ".unfinished-"
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def version_directory(root: Path, version: WeightVersion) -> Path:
    """Where ``version`` lies under the weights directory of a run."""
    return root / str(version)


def write_version(
    root: Path, manifest: WeightManifest, flat_buckets: Iterable[torch.Tensor]
) -> Path:
    """Write ``manifest`` and its tensors; returns the directory of the version.

    ``flat_buckets`` are the tensors of the manifest in order, flattened and joined in runs of any
    length, on the CPU; they are consumed one at a time. Writing the same content again is harmless.
    Raises :class:`CheckpointError` when the version exists with another content, and when the disk
    does not take it.
    """
    directory = version_directory(root, manifest.version)
    temporary = root / f"{_UNFINISHED}{manifest.version}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_tensors(temporary / TENSORS_FILE, manifest.tensors, flat_buckets)
        _write_durably(temporary / MANIFEST_FILE, [msgspec.json.encode(manifest)])
        fsync_directory(temporary)
        if not _is_published(directory, manifest):
            os.rename(temporary, directory)
            fsync_directory(root)
    except OSError as error:
        raise CheckpointError(
            f"weights {manifest.version} cannot be written under {root}: {error.strerror} "
            "(free disk space, or lower weights.keep_versions)"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def read_manifest(directory: Path) -> WeightManifest:
    """The manifest of a published version; raises :class:`WeightTransferError`."""
    try:
        return msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=WeightManifest)
    except (OSError, msgspec.DecodeError) as error:
        raise WeightTransferError(f"{directory / MANIFEST_FILE} cannot be read: {error}") from None


def read_tensors(
    directory: Path, manifest: WeightManifest
) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
    """Yield every tensor of ``manifest`` from a published version, not yet proven.

    Raises :class:`WeightTransferError` for a missing, cut-off or differently shaped file.
    """
    file = directory / TENSORS_FILE
    try:
        with safe_open(file, framework="pt") as tensors:
            for spec in manifest.tensors:
                tensor = tensors.get_tensor(spec.name)
                if tuple(tensor.shape) != spec.shape or tensor.dtype != getattr(torch, spec.dtype):
                    raise WeightTransferError(
                        f"{file}: {spec.name} must be {spec.dtype} {list(spec.shape)}, "
                        f"got {tensor.dtype} {list(tensor.shape)}"
                    )
                yield spec, tensor
    except (OSError, SafetensorError) as error:
        raise WeightTransferError(f"{file} cannot be read: {error}") from None


def flat_bucket(directory: Path, bucket: Collection[TensorSpec]) -> torch.Tensor:
    """The tensors of one transfer bucket, read back from disk, flattened and joined."""
    file = directory / TENSORS_FILE
    try:
        with safe_open(file, framework="pt") as tensors:
            return torch.cat([tensors.get_tensor(spec.name).view(-1) for spec in bucket])
    except (OSError, SafetensorError) as error:
        raise WeightTransferError(f"{file} cannot be read: {error}") from None


def check_digests(tensors: Mapping[str, torch.Tensor], manifest: WeightManifest) -> None:
    """Raise :class:`WeightTransferError`, naming tensors, unless all digests are the manifest's."""
    differing = [
        spec.name
        for spec in manifest.tensors
        if digest_text(tensor_digest(tensors[spec.name])) != spec.digest
    ]
    if differing:
        raise WeightTransferError(
            f"{len(differing)} of {len(manifest.tensors)} tensors of {manifest.version} arrived "
            f"changed: {', '.join(differing[:4])}"
        )


def published_versions(root: Path) -> list[WeightVersion]:
    """Complete versions under ``root``, oldest first."""
    names = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    return sorted(WeightVersion.parse(name) for name in names if not name.startswith("."))


def prune_versions(root: Path, keep: int, pinned: Collection[WeightVersion] = ()) -> None:
    """Delete all but the newest ``keep`` versions and those ``pinned``, and unfinished leftovers.

    A version is renamed before it is deleted, so that no reader meets half of it; one that is
    already open stays readable.
    """
    for leftover in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for version in published_versions(root)[:-keep]:
        if version not in pinned:
            doomed = root / f"{_UNFINISHED}{version}-old"
            os.rename(version_directory(root, version), doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _is_published(directory: Path, manifest: WeightManifest) -> bool:
    if not directory.exists():
        return False
    if read_manifest(directory).digest() != manifest.digest():
        raise CheckpointError(
            f"weights {manifest.version} exist in {directory} with another content: a version is "
            "never used twice (resume with a new incarnation, or use a fresh run.directory)"
        )
    return True


def _write_tensors(
    file: Path, specs: Collection[TensorSpec], flat_buckets: Iterable[torch.Tensor]
) -> None:
    chunks = (memoryview(flat.view(torch.uint8).numpy().data) for flat in flat_buckets)
    num_bytes = _write_durably(file, _chain(_safetensors_header(specs), chunks))
    expected = len(_safetensors_header(specs)) + sum(spec.num_bytes for spec in specs)
    if num_bytes != expected:
        raise CheckpointError(f"{file} must have {expected} bytes, got {num_bytes}")


def _chain(header: bytes, chunks: Iterable[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from chunks


def _safetensors_header(specs: Iterable[TensorSpec]) -> bytes:
    """Length and JSON table of the safetensors format, padded so that the data is aligned."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        end = start + spec.num_bytes
        table[spec.name] = {
            "dtype": _SAFETENSORS_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_durably(file: Path, chunks: Iterable[bytes | memoryview]) -> int:
    with open(file, "wb") as stream:
        num_bytes = sum(stream.write(chunk) for chunk in chunks)
        stream.flush()
        os.fsync(stream.fileno())
    file.chmod(0o444)
    return num_bytes
