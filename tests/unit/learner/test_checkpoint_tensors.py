"""The files of a checkpoint: standard safetensors, whose parts any number of ranks cuts anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from learner.checkpoints.checkpoint_tensors import (
    HostCopies,
    TensorEntry,
    describe_tensors,
    file_checksum,
    read_tensors,
    write_tensors,
)
from learner.publication.weight_snapshot import row_parts


def test_a_file_is_safetensors_with_the_same_bits(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    tensors = {
        "float32": torch.randn(7, generator=source),
        "bfloat16": torch.randn(5, generator=source).bfloat16(),
        "empty": torch.zeros(0),
        "step": torch.full((1,), 3.0),
    }
    entry = write_tensors(tmp_path / "file", tensors)
    assert entry.num_bytes == (tmp_path / "file").stat().st_size
    assert entry.checksum == file_checksum(tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 4), num_ranks=st.integers(1, 5))
def test_parts_of_any_number_of_ranks_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, num_ranks: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    whole = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    files = []
    for rank, part in enumerate(row_parts(whole.shape, num_ranks)):
        files.append(f"rank-{rank}")
        write_tensors(folder / files[-1], {"weight": whole.view(-1)[part.start : part.stop]})
    found = torch.full_like(whole, -1.0)
    entries = {"weight": TensorEntry((rows, columns), is_sharded=True)}
    read_tensors(folder, files, entries, {"weight": found})
    assert torch.equal(found, whole)


def test_moments_are_converted_to_the_type_that_the_optimizer_keeps(tmp_path: Path) -> None:
    kept = torch.tensor([1.0, 1.0 + 2**-12])
    write_tensors(tmp_path / "rank-0", {"exp_avg": kept})
    narrow = torch.zeros(2, dtype=torch.bfloat16)
    read_tensors(tmp_path, ["rank-0"], describe_tensors({"exp_avg": kept}), {"exp_avg": narrow})
    assert torch.equal(narrow, kept.bfloat16())


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            {"weight": torch.zeros(2), "critic.weight": torch.zeros(1)},
            "it also holds critic.weight",
        ),
        ({}, "it lacks weight"),
        ({"weight": torch.zeros(3)}, r"weight has shape \(3,\), the model's has \(2,\)"),
    ],
)
def test_another_model_is_named_by_its_first_difference(
    tmp_path: Path, held: dict[str, torch.Tensor], said: str
) -> None:
    write_tensors(tmp_path / "rank-0", held)
    with pytest.raises(ValueError, match=said):
        read_tensors(tmp_path, ["rank-0"], describe_tensors(held), {"weight": torch.ones(2)})


def test_a_copy_is_of_the_moment_and_its_memory_is_used_again() -> None:
    copies, weight = HostCopies(), torch.ones(4)
    first = copies.take({"weight": weight}, rank=0)["weight"]
    weight.fill_(2.0)
    assert first.tolist() == [1.0] * 4
    second = copies.take({"weight": weight}, rank=0)["weight"]
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [2.0] * 4
