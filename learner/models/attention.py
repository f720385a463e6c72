"""Attention of packed rows: every document sees itself alone, and no matrix of all pairs exists.

Transformers looks attention functions up by name and hands them the mask as it got it. What ours
get instead of a mask are the borders of the documents, which take no memory: on a CPU each document
is a causal attention of its own, on a GPU FlashAttention takes the borders (Dao, arXiv 2307.08691),
or FlexAttention skips the blocks between documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.errors import ConfigError
from common.torch.attention import block_causal_mask, tree_block_mask

BY_DOCUMENT = "headrace_by_document"
"""Name of :func:`attend_by_document` in transformers."""
FLASH = "headrace_flash"
"""Name of :func:`attend_flash` in transformers."""
FLEX = "flex_attention"
OVER_RANKS = "_over_ranks_"
"""In names of attention, before that of whole rows: they lie in slices (``context_parallel``)."""

_NAMES = {"sdpa": BY_DOCUMENT, "flash": FLASH, "flex": FLEX}
_MAX_HIDDEN_PAIRS = 20_000
"""Pairs of different documents, for each document, that one call with a mask may compute in vain
before a call a document is faster: ``headrace bench attention`` finds where.
"""
_TOLERANCE = 0.02
"""Largest difference to plain attention in the probe; bfloat16 resolves 0.008 at 1."""


class AttentionFunction(Protocol):
    """What transformers calls: [R, H, L, D] queries, keys and values to [R, L, H, D]."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention, and no weights."""
        ...


def choose_attention(setting: str, device: torch.device) -> str:
    """The transformers name for ``learner.attention``, tried out where ``device`` is a GPU.

    ``auto`` takes the first of flash, flex and sdpa that computes what plain attention does. Raises
    :class:`ConfigError` for another setting that does not work here.
    """
    if setting == "auto":
        if device.type != "cuda":
            return BY_DOCUMENT
        return next((name for name in (FLASH, FLEX) if not probe(name, device)), BY_DOCUMENT)
    name = _NAMES[setting]
    if name != BY_DOCUMENT and (problem := probe(name, device)):
        raise ConfigError(
            f'learner.attention = "{setting}" does not work on {device.type}: {problem} (use '
            '"auto", which takes what works)'
        )
    return name


def plain_name(name: str) -> str:
    """Which attention computes the whole rows, where ``name`` is that of slices."""
    return name.rpartition(OVER_RANKS)[2]


def packed_mask(name: str, borders: Tensor, num_rows: int, row_length: int) -> Any:
    """What attention ``name`` wants for documents with ``borders`` [S + 1]; see ``Microbatch``.

    None for plain causal rows. Borders are handed over as int64 [1, 1, 1, S + 1], because
    transformers passes on a mask of four dimensions as it is.
    """
    name = plain_name(name)
    num_documents = len(borders) - 1
    if name == FLASH:
        return borders.view(1, 1, 1, -1)
    if name == FLEX:
        ids = document_ids(borders, num_rows, row_length)
        return tree_block_mask(ids, torch.zeros_like(ids))
    if num_documents == num_rows:
        return None
    if name == BY_DOCUMENT:
        num_hidden = num_rows * row_length**2 - int(borders.diff().square().sum())
        if num_hidden > _MAX_HIDDEN_PAIRS * num_documents:
            return borders.view(1, 1, 1, -1)
    return block_causal_mask(document_ids(borders, num_rows, row_length))


def document_ids(borders: Tensor, num_rows: int, row_length: int) -> Tensor:
    """int64 [R, L]: which document each place is of."""
    places = torch.arange(num_rows * row_length, device=borders.device)
    ids: Tensor = torch.bucketize(places, borders[1:], right=True)
    return ids.view(num_rows, row_length)


def attend_by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention inside each document, one after the other; see :func:`packed_mask`."""
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return _sdpa(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for row, lengths in enumerate(_row_lengths(attention_mask, query.shape[2])):
        parts = (tensor[row : row + 1].split(lengths, dim=2) for tensor in (query, key, value))
        documents = [_sdpa(module, *each, None, **kwargs)[0] for each in zip(*parts, strict=True)]
        rows.append(torch.cat(documents, dim=1))
    return torch.cat(rows), None


def attend_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """torch's own FlashAttention of documents of different lengths, in one call."""
    from torch.nn.attention.varlen import varlen_attn

    num_rows, _, row_length, _ = query.shape
    queries, keys, values = (item.transpose(1, 2).flatten(0, 1) for item in (query, key, value))
    ends = attention_mask.flatten().to(torch.int32)
    # no document is longer than a row; its true length would have to be fetched from the GPU
    output = varlen_attn(
        queries,
        keys,
        values,
        ends,
        ends,
        row_length,
        row_length,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", output).unflatten(0, (num_rows, row_length)), None


def probe(name: str, device: torch.device) -> str:
    """Why attention ``name`` does not work on ``device``, "" if it does: value and gradient."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 128, 64, generator=source).to(device, dtype) for _ in range(3)]
    borders = torch.tensor([0, 40, 128], device=device)
    try:
        found = _value_and_gradient(AttentionInterface()[name], name, inputs, borders)
        expected = _value_and_gradient(attend_by_document, BY_DOCUMENT, inputs, borders)
    except Exception as error:  # every kernel refuses in its own way
        return " ".join(str(error).split())[:200] or type(error).__name__
    gap = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return "" if gap <= _TOLERANCE else f"it is off by {gap:.3g} from plain attention"


def _value_and_gradient(
    function: AttentionFunction, name: str, inputs: list[Tensor], borders: Tensor
) -> list[Tensor]:
    query, key, value = (tensor.detach().requires_grad_() for tensor in inputs)
    mask = packed_mask(name, borders, 1, query.shape[2])
    output, _ = function(nn.Module(), query, key, value, mask, scaling=0.125)
    output.float().square().mean().backward()
    gradients = [tensor.grad for tensor in (query, key, value)]
    return [output.detach().float(), *(item.float() for item in gradients if item is not None)]


def _row_lengths(borders: Tensor, row_length: int) -> list[list[int]]:
    """Lengths of the documents of each row."""
    rows: list[list[int]] = []
    ends = borders.flatten().tolist()
    for start, end in itertools.pairwise(ends):
        if start % row_length == 0:
            rows.append([])
        rows[-1].append(end - start)
    return rows


_sdpa: Callable[..., tuple[Tensor, Tensor | None]] = sdpa_attention_forward

# its loop over documents is Python; compiled layers call it as it is
AttentionInterface.register(BY_DOCUMENT, torch.compiler.disable(attend_by_document))
AttentionInterface.register(FLASH, attend_flash)
