"""Packed rows attend as their documents would alone, however that is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface

from common.config import LearnerConfig
from common.errors import ConfigError
from learner.batches.batch import pack
from learner.models.attention import (
    BY_DOCUMENT,
    FLASH,
    FLEX,
    attend_by_document,
    choose_attention,
    document_ids,
    packed_mask,
    probe,
)
from learner.models.model import load_policy, run_policy
from tests.unit.learner.small_run import ALONE, small_model
from tests.unit.learner.test_model import random_documents

CPU = torch.device("cpu")


class Attention(nn.Module):
    """What attention functions ask of a layer."""

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def _plain(query: Tensor, key: Tensor, value: Tensor, groups: int, ids: Tensor) -> Tensor:
    """Softmax over the earlier places of the own document, from the definition: [R, L, H, D]."""
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    places = torch.arange(ids.shape[1])
    seen = (ids[:, :, None] == ids[:, None, :]) & (places[:, None] >= places[None, :])
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    output: Tensor = (weights @ value).transpose(1, 2)
    return output


@st.composite
def _rows(draw: st.DrawFn) -> list[list[int]]:
    """Lengths of the documents of rows of one length."""
    length = draw(st.integers(1, 40))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, length), max_size=4)) - {length})
        rows.append([b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)])
    return rows


@settings(max_examples=40, deadline=None)
@given(rows=_rows(), groups=st.sampled_from([1, 2]))
def test_documents_one_after_the_other_attend_as_with_a_mask(
    rows: list[list[int]], groups: int
) -> None:
    length = sum(rows[0])
    borders = torch.tensor([0, *torch.tensor([n for row in rows for n in row]).cumsum(0)])
    ids = document_ids(borders, len(rows), length)
    source = torch.Generator().manual_seed(length)
    shapes = [(len(rows), heads, length, 8) for heads in (4, 4 // groups, 4 // groups)]
    query, key, value = (torch.randn(shape, generator=source) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    mask = borders.view(1, 1, 1, -1)
    found, _ = attend_by_document(Attention(groups), query, key, value, mask, scaling=8**-0.5)
    expected = _plain(query, key, value, groups, ids)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(found.shape, generator=source)
    ours = torch.autograd.grad(found, inputs, upstream)
    for one, other in zip(ours, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_borders_name_the_document_of_each_place() -> None:
    borders = torch.tensor([0, 2, 5, 10])
    assert document_ids(borders, 2, 5).tolist() == [[0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]


def test_long_rows_of_documents_need_no_matrix_of_pairs() -> None:
    """64 documents of 128 tokens in one row: a mask would take 64 MiB."""
    borders = torch.arange(0, 8193, 128)
    assert packed_mask(BY_DOCUMENT, borders, 1, 8192).numel() == len(borders)
    assert packed_mask("sdpa", borders[:9], 1, 1024).shape == (1, 1, 1024, 1024)


def test_short_rows_are_masked_and_plain_rows_are_not() -> None:
    assert packed_mask(BY_DOCUMENT, torch.tensor([0, 4, 8]), 2, 4) is None
    mask = packed_mask(BY_DOCUMENT, torch.tensor([0, 2, 4]), 1, 4)
    assert mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_policy_computes_the_same_with_and_without_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    settings = LearnerConfig(attention=attention)  # type: ignore[arg-type]
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64, settings=settings)
    documents = random_documents()
    packed = pack([documents[:4], documents[4:]], 64)
    found = []
    for limit in (-1, 10**9):
        monkeypatch.setattr("learner.models.attention._MAX_HIDDEN_PAIRS", limit)
        policy.zero_grad()
        logprobs, _ = run_policy(policy, packed, 0.7)
        logprobs.square().sum().backward()
        found.append([logprobs.detach(), *(item.grad for item in policy.parameters())])
    for one, other in zip(*found, strict=True):
        assert isinstance(one, Tensor)
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have them")
@pytest.mark.parametrize("setting", ["flash", "flex"])
def test_attention_that_does_not_work_here_is_refused_with_a_cure(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf'"{setting}" does not work on cpu: .*use "auto"'):
        choose_attention(setting, CPU)
    assert choose_attention("auto", CPU) == BY_DOCUMENT


def test_attention_that_computes_something_else_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As FlashAttention with its borders lost: everything sees what is before it."""

    def no_borders(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _: Tensor, **kwargs: float
    ) -> tuple[Tensor, Tensor | None]:
        return attend_by_document(module, query, key, value, None, **kwargs)

    assert probe(BY_DOCUMENT, CPU) == ""
    interface = AttentionInterface._global_mapping
    monkeypatch.setitem(interface, FLASH, no_borders)
    assert "off by" in probe(FLASH, CPU)
    monkeypatch.setitem(interface, FLASH, attend_by_document)
    assert probe(FLASH, CPU) == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [FLASH, FLEX])
def test_gpu_kernels_compute_what_plain_attention_does(name: str) -> None:
    assert probe(name, torch.device("cuda")) == ""
