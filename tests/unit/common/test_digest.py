"""The tensor digest is position dependent, mergeable, and notices every accident of a transfer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.torch.digest import describe_tensors, digest_text, merge_digests, tensor_digest

_MASK = 2**64 - 1
_INTEGER_OF_BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _reference_digest(words: list[int]) -> int:
    """The definition in unbounded Python integers: sum of fmix64(word + position * golden)."""
    total = 0
    for position, word in enumerate(words):
        mixed = (word + position * 0x9E3779B97F4A7C15) & _MASK
        mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _MASK
        mixed = (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
        total += mixed ^ mixed >> 33
    return total & _MASK


def _noise(num_elements: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_elements, generator=torch.Generator().manual_seed(seed))


def _flip_bit(tensor: torch.Tensor, element: int, bit: int) -> torch.Tensor:
    flipped = tensor.clone()
    words = flipped.view(-1).view(_INTEGER_OF_BYTES[tensor.element_size()])
    signed_bit = 1 << bit if bit < 8 * tensor.element_size() - 1 else -(1 << bit)
    words[element] ^= signed_bit
    return flipped


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40))
def test_the_digest_is_the_sum_of_mixed_words_of_its_definition(words: list[int]) -> None:
    assert tensor_digest(torch.tensor(words, dtype=torch.int32)) == _reference_digest(words)


def test_golden_values_never_change_because_stored_manifests_rely_on_them() -> None:
    assert tensor_digest(torch.tensor([1, 2, 3], dtype=torch.int32)) == 0x52EA51358DEA1BCE
    assert tensor_digest(torch.zeros(3)) == 0x6FAB6C3409BE6CC1
    assert tensor_digest(torch.zeros(0)) == 0


@settings(deadline=None)
@given(length=st.integers(0, 80_000), cut=st.integers(0, 80_000), seed=st.integers(0, 100))
def test_digests_of_two_shards_add_up_to_the_digest_of_the_whole(
    length: int, cut: int, seed: int
) -> None:
    whole = _noise(length, seed)
    first, second = whole[:cut], whole[cut:]
    shards = [tensor_digest(first), tensor_digest(second, offset_elements=len(first))]
    assert merge_digests(shards) == tensor_digest(whole)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    ],
)
def test_every_single_flipped_bit_changes_the_digest(dtype: torch.dtype) -> None:
    tensor = _noise(7).mul(50).to(dtype)
    digest = tensor_digest(tensor)
    for element in range(7):
        for bit in range(8 * tensor.element_size()):
            assert tensor_digest(_flip_bit(tensor, element, bit)) != digest, (element, bit)


@settings(deadline=None)
@given(element=st.integers(0, 69_999), bit=st.integers(0, 31))
def test_a_flipped_bit_anywhere_in_a_long_tensor_changes_the_digest(element: int, bit: int) -> None:
    tensor = _noise(70_000)
    assert tensor_digest(_flip_bit(tensor, element, bit)) != tensor_digest(tensor)


@settings(deadline=None)
@given(first=st.integers(0, 69_999), second=st.integers(0, 69_999))
def test_two_swapped_elements_change_the_digest(first: int, second: int) -> None:
    tensor = torch.arange(70_000, dtype=torch.int32)
    swapped = tensor.clone()
    swapped[[first, second]] = tensor[[second, first]]
    assert (tensor_digest(swapped) == tensor_digest(tensor)) == (first == second)


def test_swapped_rows_swapped_halves_and_zeroed_tensors_change_the_digest() -> None:
    matrix = _noise(600).view(20, 30)
    rows = matrix.clone()
    rows[[3, 4]] = matrix[[4, 3]]
    halves = torch.cat([matrix[10:], matrix[:10]])
    digests = {tensor_digest(t) for t in (matrix, rows, halves, torch.zeros(20, 30), matrix.T)}
    assert len(digests) == 5


def test_a_strided_view_has_the_digest_of_its_values_in_row_major_order() -> None:
    matrix = _noise(60).view(6, 10)
    assert tensor_digest(matrix[:, 2:5]) == tensor_digest(matrix[:, 2:5].clone())
    assert tensor_digest(matrix.T) == tensor_digest(matrix.T.contiguous())


def test_negative_zero_and_nan_payloads_are_told_apart_by_their_bits() -> None:
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
    quiet_nan = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert tensor_digest(quiet_nan) != tensor_digest(other_nan)


def test_complex_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="complex64"):
        tensor_digest(torch.zeros(2, dtype=torch.complex64))


def test_a_manifest_entry_carries_name_dtype_shape_and_hexadecimal_digest() -> None:
    weight = torch.zeros(3, 1, dtype=torch.bfloat16)
    (spec,) = describe_tensors({"model.norm.weight": weight})
    assert (spec.name, spec.dtype, spec.shape) == ("model.norm.weight", "bfloat16", (3, 1))
    assert spec.digest == digest_text(0x6FAB6C3409BE6CC1) == "6fab6c3409be6cc1"
