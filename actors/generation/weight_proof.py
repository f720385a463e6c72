"""Proof that an engine holds exactly the weights of a manifest (hop: learner -> actor weights).

A load that "succeeded" proves nothing: loaders skip tensors, leave tied copies behind or raise
nothing when half the tensors are missing. So the engine's own parameters are read back under
their Hugging Face names and digested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.generation.model_directory import TensorShapes
from common.errors import ModelDirectoryError, WeightLoadError
from common.torch.digest import digest_text, tensor_digest
from common.weight_layout import TensorSpec, WeightManifest


class ReadTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, read when they are asked for.

    An engine may keep rows in an order of its own; reading those makes a copy, one at a time.
    """

    def __init__(self, readers: Mapping[str, Callable[[], torch.Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The parameters that an engine computes with, under canonical Hugging Face names.

    ``tensors`` read live storage, each parameter once. ``tied`` maps a name to the tensor
    whose values it must share; it stands in ``tensors`` too where it has storage of its own.
    """

    tensors: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]

    def holder(self, name: str) -> str | None:
        """Name of the tensor that holds the values of ``name``, or None."""
        if name in self.tensors:
            return name
        source = self.tied.get(name)
        return source if source in self.tensors else None


def staged_tensors(
    staged: Mapping[str, torch.Tensor], manifest: WeightManifest
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the manifest's tensors out of ``staged``, in order, refusing a wrong shape or dtype."""
    for spec in manifest.tensors:
        if spec.name not in staged:
            raise WeightLoadError(f"tensor {spec.name} of the manifest was not staged")
        tensor = staged[spec.name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != _torch_dtype(spec):
            raise WeightLoadError(
                f"staged tensor {spec.name} must be {spec.dtype} {list(spec.shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        yield spec.name, tensor


def check_layout(weights: LoadedWeights, shapes: TensorShapes, model_dir: Path) -> None:
    """Raise ``ModelDirectoryError`` unless every checkpoint tensor has a readable place.

    Catches, before the first request is served, architectures whose names or layouts the engine's
    map cannot follow, and backends that repack weights and empty the originals.
    """
    for name, shape in shapes.items():
        holder = weights.holder(name)
        found = None if holder is None else tuple(weights.tensors[holder].shape)
        if found != shape:
            raise ModelDirectoryError(
                f"weights of {model_dir} must stay readable inside the engine, but {name} "
                f"{list(shape)} is held as {found} (use an unquantised architecture such as Qwen2, "
                "Qwen3, Qwen3-MoE or Llama, the experts of a mixture in float32 on a CPU and of "
                "a width that 32 divides)"
            )
    extra = weights.tensors.keys() - shapes.keys() - weights.tied.keys()
    if extra:
        raise ModelDirectoryError(
            f"model directory {model_dir} must hold every tensor of the engine, "
            f"{min(extra)} is missing (save the model again with save_pretrained)"
        )


def check_names(weights: LoadedWeights, manifest: WeightManifest) -> None:
    """Raise ``WeightLoadError`` unless engine and manifest cover each other, naming a tensor."""
    named = {spec.name for spec in manifest.tensors}
    unknown = [name for name in named if weights.holder(name) is None]
    if unknown:
        raise WeightLoadError(
            f"the engine has no tensor {min(unknown)} ({len(unknown)} such names in the manifest)"
        )
    uncovered = [name for name in weights.tensors if not named & {name, weights.tied.get(name)}]
    if uncovered:
        raise WeightLoadError(
            f"the manifest does not cover the engine's tensor {min(uncovered)} "
            f"({len(uncovered)} such tensors)"
        )


def prove_loaded(weights: LoadedWeights, manifest: WeightManifest) -> None:
    """Digest every loaded tensor; raises ``WeightLoadError`` naming those that differ."""
    check_names(weights, manifest)
    differing = [
        name for name, spec in _pairs(weights, manifest) if not _agrees(weights.tensors[name], spec)
    ]
    if differing:
        raise WeightLoadError(
            f"{len(differing)} loaded tensors differ from manifest {manifest.version}: "
            f"{', '.join(differing[:4])}"
        )


def _pairs(weights: LoadedWeights, manifest: WeightManifest) -> Iterator[tuple[str, TensorSpec]]:
    """Which loaded tensor must agree with which entry; a tied copy answers to its source's."""
    specs = {spec.name: spec for spec in manifest.tensors}
    for spec in manifest.tensors:
        holder = weights.holder(spec.name)
        if holder is not None:
            yield holder, spec
    for name in weights.tensors:
        if name not in specs:
            yield name, specs[weights.tied[name]]


def _agrees(tensor: torch.Tensor, spec: TensorSpec) -> bool:
    # An engine of wider dtype holds the same values: narrowing them again restores the exact bits.
    same_bits = tensor.to(_torch_dtype(spec))
    return (
        tuple(tensor.shape) == spec.shape and digest_text(tensor_digest(same_bits)) == spec.digest
    )


def _torch_dtype(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise WeightLoadError(f"tensor {spec.name} has unknown dtype {spec.dtype!r}")
    return dtype
