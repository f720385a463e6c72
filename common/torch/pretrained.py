"""Hugging Face model directories, loaded fail-closed: whole, plain, and from this disk only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from common.errors import ModelDirectoryError


def read_model_config(directory: Path, *, key: str) -> PretrainedConfig:
    """``config.json`` of ``directory``; ``key`` is the setting that names it, for the error.

    Raises :class:`ModelDirectoryError` where there is none or its model type is unknown.
    """
    if not (directory / "config.json").is_file():
        raise ModelDirectoryError(
            f"{directory}: no config.json ({key} must name a Hugging Face model directory)"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelDirectoryError(
            f"{directory}/config.json: {_first_line(error)} (use a model type that the installed "
            "transformers knows)"
        ) from None
    return config


def refuse_long_windows(
    config: PretrainedConfig, directory: Path, max_length: int, *, key: str
) -> None:
    """Raise :class:`ModelDirectoryError` where ``max_length`` leaves the attention window.

    Packed rows model full causal attention only. ``key`` is the setting that holds ``max_length``.
    """
    text = config.get_text_config()
    sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) or 0
    if sliding and max_length > window:
        raise ModelDirectoryError(
            f"{directory}: {key} = {max_length} is beyond the attention window of "
            f"{window} tokens, which packing does not model (set {key} <= {window})"
        )


def load_pretrained(
    auto_class: Any,
    directory: Path,
    config: PretrainedConfig,
    *,
    key: str,
    kind: str,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> Any:
    """The model of class ``auto_class`` in ``directory``, every weight from its files.

    ``kind`` says in words what the directory should hold. Raises :class:`ModelDirectoryError` for
    unreadable files and for weights that are missing, which transformers would make up.
    """
    disable_progress_bar()
    try:
        model, loading = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelDirectoryError(
            f"{directory}: the model cannot be loaded: {_first_line(error)} "
            f"({key} must hold config.json and safetensors of a {kind})"
        ) from None
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelDirectoryError(
            f"{directory}: {len(missing)} weights are missing, first {missing[0]} (copy the model "
            "directory again)"
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
