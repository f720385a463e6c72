"""The trained policy as an ordinary Hugging Face directory, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.errors import CheckpointError
from common.files import fsync_directory
from learner.models.lora import peft_config, peft_tensor_name
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel

_KEPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_model(
    policy: PolicyModel, mesh: Mesh, *, source: Path, output: Path, dtype: str = "float32"
) -> None:
    """Write ``output`` with the weights of ``policy`` as ``dtype``; a collective.

    Adapters are merged, and also written to ``output/adapter`` in PEFT's format. Tokenizer and
    generation files are copied from ``source``, the directory the policy came from.
    An older export is replaced only once the new one is complete. Raises :class:`CheckpointError`
    on rank 0 when the disk is full.
    """
    tensors = gather_weights(policy.published_weights(), mesh, _DTYPES[dtype])
    adapters = {}
    if policy.has_adapters:
        adapters = gather_weights(policy.trained_weights(), mesh, torch.float32)
    if not mesh.is_main:
        return
    staging = output.with_name(f".{output.name}.incomplete")
    try:
        _write(staging, policy, tensors, source, dtype)
        if adapters:
            _write_adapters(staging / "adapter", policy, adapters, source)
        _make_durable(staging)
        _replace_directory(staging, output)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(
            f"{output}: the model cannot be written: {error.strerror or error} "
            "(free space on that disk and start again)"
        ) from None


def gather_weights(
    weights: Iterable[tuple[str, Tensor]], mesh: Mesh, dtype: torch.dtype
) -> dict[str, Tensor]:
    """``weights``, whole, on the CPU of rank 0 (elsewhere empty); a collective, one at a time."""
    gathered = {}
    for name, weight in weights:
        value = weight.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if mesh.is_main:
            gathered[name] = whole.to(device="cpu", dtype=dtype, copy=True).contiguous()
    return gathered


def _write(
    staging: Path, policy: PolicyModel, tensors: dict[str, Tensor], source: Path, dtype: str
) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in _KEPT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, staging / name)
    config = policy.causal_lm.config
    config.dtype = dtype
    config.save_pretrained(staging)
    save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})


def _write_adapters(
    directory: Path, policy: PolicyModel, adapters: dict[str, Tensor], source: Path
) -> None:
    directory.mkdir()
    config = peft_config(policy.causal_lm, str(source))
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    named = {peft_tensor_name(name): tensor for name, tensor in adapters.items()}
    save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _make_durable(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            _make_durable(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    fsync_directory(directory)


def _replace_directory(staging: Path, output: Path) -> None:
    """A directory cannot be replaced in one call, so the old one steps aside for a moment."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    staging.rename(output)
    fsync_directory(output.parent)
    shutil.rmtree(old, ignore_errors=True)
