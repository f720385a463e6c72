"""Rows split over ranks: every place is computed once, and knows where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config

from common.errors import ConfigError, ModelDirectoryError
from common.types import RolloutId
from learner.batches.batch import FREE_ROUTING, Document, Microbatch, pack
from learner.batches.chunk import Chunk, microbatches_of
from learner.batches.layout import ChunkLayout, MicrobatchLayout
from learner.checkpoints.step_record import StepRecord
from learner.models.attention import BY_DOCUMENT, document_ids, packed_mask
from learner.models.context_parallel import attention_over_ranks, own_places, refuse_other_layers
from learner.models.mesh import ContextGroup, Mesh, learner_mesh

CPU = torch.device("cpu")


def _group(rank: int, size: int) -> ContextGroup:
    """A place in a group that is asked for nothing."""
    return ContextGroup(rank, size, cast("dist.ProcessGroup", None))


def _document(num_prompt: int, num_completion: int, seed: int) -> Document:
    random = np.random.default_rng((num_prompt, num_completion, seed))
    return Document(
        prompt_token_ids=random.integers(1, 1000, num_prompt),
        completion_token_ids=random.integers(1, 1000, num_completion),
        behavior_logprobs=np.zeros(num_completion, dtype=np.float32),
    )


@st.composite
def _microbatches(draw: st.DrawFn) -> Microbatch:
    lengths = st.tuples(st.integers(1, 6), st.integers(1, 12))
    rows = draw(st.lists(st.lists(lengths, min_size=1, max_size=3), min_size=1, max_size=3))
    documents = [[_document(*item, place) for place, item in enumerate(row)] for row in rows]
    longest = max(sum(item.length for item in row) for row in documents)
    return pack(documents, longest + draw(st.integers(0, 3)))


@settings(max_examples=40, deadline=None)
@given(packed=_microbatches(), size=st.integers(2, 5))
def test_slices_side_by_side_are_the_rows_and_each_token_has_one_rank(
    packed: Microbatch, size: int
) -> None:
    inputs = (packed.input_ids, packed.position_ids, packed.borders, packed.positions)
    parts = [own_places(_group(rank, size), *inputs) for rank in range(size)]
    length = packed.input_ids.shape[1]
    for name, rows in (("input_ids", packed.input_ids), ("position_ids", packed.position_ids)):
        joined = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert joined.shape[1] == parts[0].row_length < length + size
        assert torch.equal(joined[:, :length], rows)
    experts = torch.arange(len(packed.input_ids) * length).view(-1, 1, 1).expand(-1, 2, 3)
    found = [item for part in parts if (item := part.own_experts(experts)) is not None]
    joined = torch.cat([item.unflatten(0, (len(packed.input_ids), -1)) for item in found], dim=1)
    assert torch.equal(joined[:, :length].flatten(0, 1), experts)
    assert (joined[:, length:] == FREE_ROUTING).all()
    assert sorted(torch.cat([part.tokens for part in parts]).tolist()) == list(
        range(len(packed.target_ids))
    )
    for part in parts:
        before = packed.input_ids.flatten()[packed.positions][part.tokens]
        assert torch.equal(part.input_ids.flatten()[part.positions], before)
        assert torch.equal(part.own(packed.target_ids), packed.target_ids[part.tokens])


@settings(max_examples=40, deadline=None)
@given(packed=_microbatches(), size=st.integers(2, 5))
def test_attention_sees_the_documents_of_whole_rows(packed: Microbatch, size: int) -> None:
    inputs = (packed.input_ids, packed.position_ids, packed.borders, packed.positions)
    part = own_places(_group(size - 1, size), *inputs)
    num_rows, length = packed.input_ids.shape
    found = document_ids(part.borders, num_rows, part.row_length)
    assert torch.equal(found[:, :length], document_ids(packed.borders, num_rows, length))
    assert torch.equal(
        found[:, length:], found[:, length - 1 :][:, :1].expand_as(found[:, length:])
    )


def test_attention_over_ranks_gets_the_mask_of_whole_rows() -> None:
    name = attention_over_ranks(BY_DOCUMENT, _group(0, 3))
    borders = torch.tensor([0, 2, 4])
    assert name != BY_DOCUMENT == attention_over_ranks(BY_DOCUMENT, None)
    assert torch.equal(packed_mask(name, borders, 1, 4), packed_mask(BY_DOCUMENT, borders, 1, 4))
    assert attention_over_ranks(BY_DOCUMENT, _group(0, 2)) != name


def test_neighbours_compute_the_same_microbatches_and_groups_different_ones() -> None:
    documents = {RolloutId(group_id=0, index=n, attempt=0): _document(2, 3, n) for n in range(2)}
    layouts = [MicrobatchLayout(row_length=5, rows=((rollout_id,),)) for rollout_id in documents]
    layout = ChunkLayout(group_ids=(0,), ranks=tuple((item,) for item in layouts))
    chunk = Chunk(layout=layout, rollouts={}, documents=documents)
    meshes = [Mesh(rank, 4, CPU, None, context=_group(rank % 2, 2)) for rank in range(4)]
    assert [mesh.num_data_ranks for mesh in meshes] == [2] * 4
    shares = [[layout for layout, _ in microbatches_of(chunk, mesh)] for mesh in meshes]
    assert shares == [[layouts[0]], [layouts[0]], [layouts[1]], [layouts[1]]]


def test_a_step_record_says_how_many_ranks_computed_each_share() -> None:
    layout = ChunkLayout(group_ids=(0,), ranks=((), ()))
    record = StepRecord(
        incarnation=0,
        policy_step=0,
        group_ids=(0,),
        chunks=(layout, layout),
        world_size=8,
        weight_digest="",
    )
    assert record.context_parallel == 4


@pytest.mark.parametrize(
    ("num_heads", "size", "cure"), [(4, 3, "use 1 or 2 or 4"), (6, 4, "use 1 or 2 or 3 or 6")]
)
def test_heads_that_the_ranks_do_not_divide_are_refused(
    num_heads: int, size: int, cure: str
) -> None:
    config = Qwen2Config(num_attention_heads=num_heads)
    message = rf"must divide the attention heads .* got {size} for the {num_heads} heads .*{cure}"
    with pytest.raises(ConfigError, match=message):
        refuse_other_layers(config, Path("model"), _group(0, size))
    refuse_other_layers(config, Path("model"), _group(0, 2))
    refuse_other_layers(config, Path("model"), None)


def test_layers_that_mix_tokens_outside_attention_are_refused() -> None:
    config = Qwen2Config(num_attention_heads=4)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelDirectoryError, match=r"linear_attention .*context_parallel = 1"):
        refuse_other_layers(config, Path("model"), _group(0, 2))


def test_ranks_that_cannot_form_groups_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ConfigError, match=r"got 2 for 3 \(start a multiple of 2 ranks, or use 1"),
        learner_mesh(2),
    ):
        pass
