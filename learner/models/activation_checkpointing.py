"""Activation checkpointing: keep less of the forward pass, and compute it again in the backward.

``full`` keeps only the input of a decoder layer (Chen et al., arXiv 1604.06174); ``selective`` also
keeps what matrix products and attention gave, so that only cheap operations are computed twice
(Korthikanti et al., arXiv 2205.05198). Both arrive at the same bits as keeping everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
_KEPT_OPERATIONS = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""Operations whose results ``selective`` keeps: they take most of the time of a layer."""


def checkpoint_layers(layers: Sequence[nn.Module], mode: str, *, every: int = 1) -> None:
    """Make every ``every``-th of ``layers`` compute its activations again, in place.

    ``mode`` is ``none``, ``selective`` or ``full``. The forward method is wrapped, not the module:
    weights keep their names, and what FSDP hooks on to a layer stays around it. To be called before
    sharding.
    """
    if mode == "none":
        return
    for layer in layers[every - 1 :: every]:
        again = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # training draws no random numbers: there is no dropout
        )
        if mode == "selective":
            again.keywords["context_fn"] = partial(
                create_selective_checkpoint_contexts, _KEPT_OPERATIONS
            )
        layer.forward = again
