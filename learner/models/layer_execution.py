"""How each decoder layer is computed: compiled, computed again in the backward pass, offloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu

from common.config import LearnerConfig
from common.errors import ConfigError
from learner.models.activation_checkpointing import checkpoint_layers

_COMPILERS = ("c++", "g++", "clang++")


def prepare_layers(layers: Sequence[nn.Module], settings: LearnerConfig) -> None:
    """Wrap the forward methods of ``layers`` as ``settings`` say, in place; before sharding.

    Methods are wrapped, not modules: weights keep their names, and what FSDP hooks on to a layer
    stays around it. A layer is compiled inside what computes it again, so that it is compiled once.
    """
    if settings.compile:
        _compile_layers(layers)
    mode, every = settings.activation_checkpointing, settings.activation_checkpoint_every
    checkpoint_layers(layers, mode, every=every)
    if settings.offload_activations:
        _offload_layers(layers[every - 1 :: every])


def _compile_layers(layers: Sequence[nn.Module]) -> None:
    """One compilation for all layers and all sizes of microbatches; no text of ours is compiled.

    Raises :class:`ConfigError` where inductor would find no C++ compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
        raise ConfigError(
            "learner.compile = true needs a C++ compiler, and none of "
            f"{', '.join(_COMPILERS)} is on PATH (install g++, or set learner.compile = false)"
        )
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def _offload_layers(layers: Sequence[nn.Module]) -> None:
    """Keep what a layer saves, which is its input, in host memory until the backward pass."""
    for layer in layers:
        layer.forward = _saving_on_host(layer.forward)


def _saving_on_host(forward: Callable[..., Any]) -> Callable[..., Any]:
    def offloaded(*args: Any, **kwargs: Any) -> Any:
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return forward(*args, **kwargs)

    return offloaded
