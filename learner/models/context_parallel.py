"""One answer over several ranks: each computes a slice of every row, and attention sees all of it.

DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509, section 3.1). Everything but attention works on
tokens one by one, so a rank computes a slice of L / C of the L places of a row. Around attention an
all-to-all turns "a slice of the places, all heads" into "all places, a slice of the heads", and
back: attention of packed rows stays what it is without. Log-probabilities, entropies and values are
given to all ranks of the group, so that objectives see whole answers; each rank hands back only the
gradient of its own, and what all ranks add to a weight is the gradient of the whole.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PretrainedConfig

from common.errors import ConfigError, ModelDirectoryError
from learner.batches.batch import FREE_ROUTING
from learner.models.attention import OVER_RANKS, AttentionFunction
from learner.models.mesh import ContextGroup

_ATTENTIONS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, as model configurations call them, that mix tokens in attention alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPlaces:
    """What one rank computes of a microbatch of R rows of L places and T trained tokens."""

    input_ids: Tensor
    """int64 [R, l] with l = L / C."""
    position_ids: Tensor
    """int64 [R, l]."""
    borders: Tensor
    """int64 [S + 1], into the flattened whole rows: attention sees them."""
    row_length: int
    """L, a multiple of C."""
    positions: Tensor
    """int64 [t], into the flattened own places: before each trained token that is this rank's."""
    tokens: Tensor
    """int64 [t]: which of the T trained tokens these are."""
    num_tokens: int
    """T."""
    context: ContextGroup | None

    def own(self, values: Tensor) -> Tensor:
        """[t] of ``values`` [T]."""
        return values if self.context is None else values.index_select(0, self.tokens)

    def own_experts(self, experts: Tensor | None) -> Tensor | None:
        """[R * l, ...] of the record of experts [R * L, ...] of a mixture; padding is free."""
        if self.context is None or experts is None:
            return experts
        rows = experts.unflatten(0, (len(self.input_ids), -1))
        missing = self.row_length - rows.shape[1]
        free = rows.new_full((len(rows), missing, *rows.shape[2:]), FREE_ROUTING)
        filled = torch.cat((rows, free), dim=1)
        return filled.chunk(self.context.size, dim=1)[self.context.rank].flatten(0, 1)

    def whole(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """float [T] of each of ``parts`` [t], the same on all ranks of the group; a collective."""
        if self.context is None:
            return parts
        found = _FromAllRanks.apply(  # type: ignore[no-untyped-call]  # torch's own
            self.context.process_group, self.tokens, self.num_tokens, *parts
        )
        return cast("tuple[Tensor, ...]", found)


def own_places(
    context: ContextGroup | None,
    input_ids: Tensor,
    position_ids: Tensor,
    borders: Tensor,
    positions: Tensor,
) -> OwnPlaces:
    """The share of this rank in rows [R, L], all of them without ``context``; see ``Microbatch``.

    Rows are filled up with padding to a length that the group divides.
    """
    length, num_tokens = input_ids.shape[1], len(positions)
    tokens = torch.arange(num_tokens, device=positions.device)
    if context is not None:
        missing = -length % context.size
        width = (length + missing) // context.size
        filled = (nn.functional.pad(item, (0, missing)) for item in (input_ids, position_ids))
        input_ids, position_ids = (item.chunk(context.size, dim=1)[context.rank] for item in filled)
        borders = borders + borders // length * missing
        row, place = positions // length, positions % length
        tokens = torch.nonzero(place // width == context.rank).flatten()
        positions = (row * width + place % width)[tokens]
        length += missing
    return OwnPlaces(
        input_ids=input_ids,
        position_ids=position_ids,
        borders=borders,
        row_length=length,
        positions=positions,
        tokens=tokens,
        num_tokens=num_tokens,
        context=context,
    )


def attention_over_ranks(name: str, context: ContextGroup | None) -> str:
    """The transformers name of attention ``name`` for rows that lie in slices over ``context``."""
    if context is None:
        return name
    attend = partial(attend_over_ranks, context, AttentionInterface()[name])
    own_name = f"headrace_{context.size}{OVER_RANKS}{name}"
    # collectives between compiled parts of a layer are called as they are
    AttentionInterface.register(own_name, torch.compiler.disable(attend))
    return own_name


def attend_over_ranks(
    context: ContextGroup,
    attend: AttentionFunction,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of whole rows from slices [R, H, l, D] of them, to slices [R, l, H, D].

    Key-value heads that the group does not divide are repeated until it does: to the least common
    multiple, which divides the query heads as well. Autograd adds up what comes back to each copy.
    """
    copies = context.size // math.gcd(key.shape[1], context.size)
    if copies > 1:
        key, value = (item.repeat_interleave(copies, dim=1) for item in (key, value))
        module = copy.copy(module)
        module.num_key_value_groups = query.shape[1] // key.shape[1]  # type: ignore[assignment]
    query, key, value = (places_from_ranks(item, context) for item in (query, key, value))
    output, _ = attend(module, query, key, value, attention_mask, **kwargs)
    return heads_from_ranks(output, context), None


def places_from_ranks(heads: Tensor, context: ContextGroup) -> Tensor:
    """Own places of all heads [R, H, l, D] to all places of own heads [R, H / C, L, D]."""
    parts = _exchanged(heads.unflatten(1, (context.size, -1)).movedim(1, 0), context)
    return parts.movedim(0, 2).flatten(2, 3)


def heads_from_ranks(places: Tensor, context: ContextGroup) -> Tensor:
    """All places of own heads [R, L, H / C, D] to own places of all heads [R, l, H, D]."""
    parts = _exchanged(places.unflatten(1, (context.size, -1)).movedim(1, 0), context)
    return parts.movedim(0, 2).flatten(2, 3)


def refuse_other_layers(
    config: PretrainedConfig, directory: Path, context: ContextGroup | None
) -> None:
    """Models that cannot be computed in slices: by their heads, or by layers without attention.

    Raises :class:`ConfigError` and :class:`ModelDirectoryError`.
    """
    if context is None:
        return
    text = config.get_text_config()
    num_heads = int(getattr(text, "num_attention_heads", None) or 0)
    if num_heads % context.size or not num_heads:
        divisors = [str(size) for size in range(1, num_heads + 1) if num_heads % size == 0]
        raise ConfigError(
            f"learner.context_parallel must divide the attention heads of the model, got "
            f"{context.size} for the {num_heads} heads of {directory} (use "
            f"{' or '.join(divisors) or '1'})"
        )
    if others := sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTIONS):
        raise ModelDirectoryError(
            f"{directory}: layers of type {others[0]} mix tokens outside attention and cannot be "
            "computed in slices (use learner.context_parallel = 1)"
        )


def _exchanged(parts: Tensor, context: ContextGroup) -> Tensor:
    """[C, ...]: part j of rank i becomes part i of rank j."""
    received = _AllToAll.apply(parts, context.process_group)  # type: ignore[no-untyped-call]
    return cast("Tensor", received)


class _AllToAll(torch.autograd.Function):
    """Its own inverse, and so its own gradient."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, ctx.group), None


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = parts.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class _FromAllRanks(torch.autograd.Function):
    """Every rank's tokens on every rank; the gradient of a token goes to the rank that has it.

    All ranks compute the same loss, so nothing is added up on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup, tokens: Tensor, num_tokens: int, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(tokens)
        ctx.set_materialize_grads(False)  # an entropy that no objective asks for costs nothing
        whole = parts[0].new_zeros(len(parts), num_tokens)
        whole[:, tokens] = torch.stack(parts)
        dist.all_reduce(whole, group=group)  # beside a token stand zeros: the sum is exact
        return tuple(row.clone() for row in whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        own = (None if item is None else item.index_select(0, tokens) for item in gradients)
        return None, None, None, *own
