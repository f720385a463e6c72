"""Where the experts of a mixture lie inside a vLLM model, and in which order.

vLLM keeps the experts of a layer in two parameters: ``w13_weight`` [E, 2I, H], gate above up, and
``w2_weight`` [E, H, I]. Its portable CPU kernel wants the rows of an expert in blocks of 16, each
block transposed, and packs them after the first load. A loader that writes rows into packed storage
computes nonsense, and a proof that read the storage as it lies would agree with it. So loads happen
between unpacking and vLLM's own packing, while the proof inverts the packing by a formula of its
own: a kernel that packs otherwise shows as a digest mismatch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

_BLOCK_ROWS = 16
_HOLDER = ".routed_experts"


def expert_parts(
    module: Any, name: str, parameter: torch.Tensor
) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Files' name and rows of each matrix that the fused ``parameter`` called ``name`` holds.

    Nothing where the kernel keeps it in an order that is not known here, so that the model is
    refused.
    """
    path, _, leaf = name.rpartition(".")
    order = _row_order(module)
    if order is None:
        return
    layer = path.removesuffix(_HOLDER)
    for expert, matrix in enumerate(parameter):
        for part, rows in _matrices(module, leaf, matrix):
            yield f"{layer}.{expert}.{part}.weight", functools.partial(order, rows)


def is_fused_experts(module: Any, leaf: str) -> bool:
    """Whether parameter ``leaf`` of ``module`` holds the experts of a layer."""
    return leaf in ("w13_weight", "w2_weight") and hasattr(module, "ckpt_gate_proj_name")


@contextlib.contextmanager
def rows_in_order(model: torch.nn.Module) -> Iterator[None]:
    """Within it experts lie as loaders write them; packed again on the way out, whatever happens.

    Storage keeps its address. One parameter at a time is copied.
    """
    packed = list(_packed_parameters(model))
    for parameter in packed:
        parameter.copy_(unpacked(parameter))
    try:
        yield
    finally:
        for parameter in packed:
            parameter.copy_(_pack(parameter))


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """The matrices [..., N, K] that the CPU kernel keeps as ``packed``: a copy."""
    *leading, num_rows, num_columns = packed.shape
    blocks = packed.reshape(*leading, num_rows // _BLOCK_ROWS, num_columns, _BLOCK_ROWS)
    return blocks.transpose(-1, -2).reshape(packed.shape)


def _matrices(module: Any, leaf: str, matrix: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The linear layers of one expert under the last names that files give them."""
    if leaf == "w2_weight":
        yield module.ckpt_down_proj_name, matrix
        return
    gate, up = matrix.chunk(2)
    yield module.ckpt_gate_proj_name, gate
    yield module.ckpt_up_proj_name, up


def _row_order(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """How the rows of an expert come out of storage, None where that is not known."""
    method = module.quant_method
    backend = getattr(getattr(method, "unquantized_backend", None), "name", None)
    if backend == "TRITON":
        return _as_it_lies
    return unpacked if backend == "CPU" and _is_packed(method) else None


def _is_packed(method: Any) -> bool:
    """Whether the portable kernel computes; those for AMX, Arm and Power pack otherwise."""
    experts = method.moe_kernel.fused_experts
    return getattr(experts, "isa", None) == "vec" and not experts._use_zentorch


def _as_it_lies(rows: torch.Tensor) -> torch.Tensor:
    return rows


def _packed_parameters(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if is_fused_experts(module, leaf) and _row_order(module) is unpacked:
                yield parameter.detach()


def _pack(rows: torch.Tensor) -> torch.Tensor:
    from vllm import _custom_ops

    packed: torch.Tensor = _custom_ops.cpu_prepack_moe_weight(rows, "vec")
    return packed
