"""Who may look at whom in a packed row: documents, and branches that share the start of one.

A row holds documents side by side. A document may be a tree: its trunk is read once, and each
branch that follows continues from it as though the others were not there, so the prompt of a group
of answers is computed once (Hydragen, arXiv 2402.05099, does the same with the KV cache).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRUNK = 0
"""Branch id of tokens that all branches of their document see."""
PADDING = -1
"""Document id of places without a token."""

_FLEX_CAPABILITY = (8, 0)


def attention_implementation(device: torch.device) -> str:
    """Name for transformers: block-sparse ``flex_attention`` on GPUs that have it, else ``sdpa``.

    Both take any mask; ``sdpa`` computes hidden places too, which ``flex_attention`` skips.
    """
    if device.type != "cuda":
        return "sdpa"
    capable = torch.cuda.get_device_capability(device) >= _FLEX_CAPABILITY
    return "flex_attention" if capable else "sdpa"


def packed_attention_mask(document_ids: Tensor, branch_ids: Tensor, implementation: str) -> Any:
    """The mask that ``implementation`` wants for rows of ids [R, L]; None for plain causal rows."""
    if implementation == "flex_attention":
        return tree_block_mask(document_ids, branch_ids)
    if not bool((document_ids > 0).any() or (branch_ids > TRUNK).any()):
        return None  # one document a row: padding stands after it, where causal rows never look
    return tree_mask(document_ids, branch_ids)


def block_causal_mask(document_ids: Tensor) -> Tensor:
    """bool [R, 1, L, L] from document ids [R, L]: look back, inside the own document only.

    Padding shares one id of its own: a place that may look nowhere would turn into NaN.
    """
    same = document_ids.unsqueeze(-1) == document_ids.unsqueeze(-2)
    return same.tril_().unsqueeze(1)


def tree_mask(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """bool [R, 1, L, L]: look back inside the own document, at its trunk and the own branch.

    ``branch_ids`` [R, L] are :data:`TRUNK` or the number of the branch inside its document.
    """
    looked_at = branch_ids.unsqueeze(-2)
    related = (looked_at == TRUNK) | (looked_at == branch_ids.unsqueeze(-1))
    return block_causal_mask(document_ids) & related.unsqueeze(1)


def tree_block_mask(document_ids: Tensor, branch_ids: Tensor) -> Any:
    """:func:`tree_mask` as a ``BlockMask`` for flex attention, without the dense matrix."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_look(row: Tensor, _head: Tensor, place: Tensor, looked_at: Tensor) -> Tensor:
        branch = branch_ids[row, looked_at]
        related = (branch == TRUNK) | (branch == branch_ids[row, place])
        same = document_ids[row, looked_at] == document_ids[row, place]
        return (place >= looked_at) & same & related

    rows, length = document_ids.shape
    return create_block_mask(
        may_look, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=document_ids.device
    )
