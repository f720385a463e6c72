"""What a Hugging Face model directory promises, read before an engine is started on it."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import ModelDirectoryError

TensorShapes = dict[str, tuple[int, ...]]


def read_tensor_shapes(model_dir: Path) -> TensorShapes:
    """Names and shapes of every tensor in the directory's safetensors files (headers only).

    Raises ``ModelDirectoryError`` where the directory, its ``config.json`` or its weights are
    missing or unreadable.
    """
    from safetensors import SafetensorError, safe_open

    _check_config(model_dir)
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise ModelDirectoryError(
            f"model directory {model_dir} must hold *.safetensors files, found none "
            "(save the model with save_pretrained)"
        )
    shapes: TensorShapes = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelDirectoryError(
                f"weights file {file} must be complete safetensors, got: {error} (copy it again)"
            ) from error
    return shapes


def _check_config(model_dir: Path) -> None:
    config = model_dir / "config.json"
    try:
        json.loads(config.read_bytes())
    except OSError as error:
        raise ModelDirectoryError(
            f"a model directory must hold config.json, cannot read {config}: {error.strerror} "
            "(give the path of a directory written by save_pretrained)"
        ) from error
    except ValueError as error:
        raise ModelDirectoryError(
            f"{config} must be valid JSON, got: {error} (copy the model directory again)"
        ) from error
