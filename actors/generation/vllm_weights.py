"""Where Hugging Face tensors live inside a vLLM model, and how they are loaded there.

Loading goes through the model's own ``load_weights``; the map that proves the load is derived here
from the module tree. The two are independent, so a mistake in either shows as a digest mismatch.

The load writes straight into live parameters instead of vLLM's layerwise reload: unquantised
weights need no post-processing, storage keeps its address (CUDA graphs stay valid), and a load
that is cut off leaves a complete, if mixed, model which the next load repairs. The layerwise path
leaves meta tensors behind, and finishing it after half the tensors raises nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from actors.generation.vllm_experts import expert_parts, is_fused_experts, rows_in_order
from actors.generation.weight_proof import (
    LoadedWeights,
    ReadTensors,
    check_names,
    prove_loaded,
    staged_tensors,
)
from common.errors import WeightLoadError
from common.weight_layout import WeightManifest


def engine_weights(model: torch.nn.Module) -> LoadedWeights:
    """Every parameter of a vLLM ``model`` under its Hugging Face name.

    Fused projections are cut along their output dimension into the parts that
    ``packed_modules_mapping`` names, fused experts into theirs; the padding rows of a vocabulary
    table are left out.
    """
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    tied: dict[str, str] = {}
    name_of_storage: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared_with = name_of_storage.setdefault(parameter.data_ptr(), name)
        if shared_with != name and parameter.numel() > 0:
            tied[name] = shared_with
        else:
            tensors.update(_parts(model, name, parameter.detach()))
    tied.update(_tied_by_config(model, tensors))
    return LoadedWeights(ReadTensors(tensors), tied)


def load_and_prove(
    model: torch.nn.Module,
    vllm_config: Any,
    staged: Mapping[str, torch.Tensor],
    manifest: WeightManifest,
) -> None:
    """Write ``staged`` into the live parameters of ``model`` and digest what is there afterwards.

    Any failure raises ``WeightLoadError``; the parameters may then be a mixture.
    """
    from vllm.config import set_current_vllm_config

    check_names(engine_weights(model), manifest)
    load_weights: Any = model.load_weights
    try:
        with (
            torch.inference_mode(),
            set_current_vllm_config(vllm_config),
            rows_in_order(model),
        ):
            load_weights(staged_tensors(staged, manifest))
    except WeightLoadError:
        raise
    except Exception as error:
        raise WeightLoadError(f"loading weights {manifest.version} failed: {error!r}") from error
    prove_loaded(engine_weights(model), manifest)


def _parts(
    model: torch.nn.Module, name: str, parameter: torch.Tensor
) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    module_path, _, leaf = name.rpartition(".")
    parent, _, module_name = module_path.rpartition(".")
    module: Any = model.get_submodule(module_path)
    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    if is_fused_experts(module, leaf):
        yield from expert_parts(module, name, parameter)
    elif module_name in packed and parameter.numel() > 0:
        views = torch.split_with_sizes(parameter, module.output_partition_sizes)
        for part, view in zip(packed[module_name], views, strict=True):
            yield f"{parent}.{part}.{leaf}", functools.partial(_itself, view)
    elif (num_rows := getattr(module, "org_vocab_size", None)) is not None and leaf == "weight":
        yield name, functools.partial(_itself, parameter[:num_rows])
    else:
        yield name, functools.partial(_itself, parameter)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _tied_by_config(model: torch.nn.Module, tensors: Collection[str]) -> dict[str, str]:
    """The head that a tied model keeps as a copy, where it does not share storage."""
    config = getattr(model, "config", None)
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if getattr(config, "tie_word_embeddings", False) and table in tensors:
        return {head: table}
    return {}
