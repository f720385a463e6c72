"""Published weights on disk: whole or absent, immutable, the last K."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import CheckpointError, WeightTransferError
from common.torch.digest import describe_tensors
from common.torch.weight_files import (
    check_digests,
    flat_bucket,
    prune_versions,
    published_versions,
    read_manifest,
    read_tensors,
    write_version,
)
from common.types import WeightVersion
from common.weight_layout import Canary, WeightManifest
from tests.builders import version

_CANARY = Canary(token_ids=((1, 2, 3),), logprobs=((-0.5, -1.25),), tolerance=1e-3)


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "model.embed.weight": torch.randn(5, 3, generator=random),
        "model.norm.weight": torch.randn(3, generator=random).to(torch.bfloat16),
        "head.weight": torch.randn(2, 3, generator=random),
    }


def _manifest(tensors: dict[str, torch.Tensor], at: WeightVersion) -> WeightManifest:
    return WeightManifest(version=at, tensors=describe_tensors(tensors), canary=_CANARY)


def _write(root: Path, policy_step: int, seed: int = 0) -> tuple[Path, WeightManifest]:
    tensors = _tensors(seed)
    manifest = _manifest(tensors, version(policy_step))
    flat = [tensor.view(-1) for tensor in tensors.values()]
    return write_version(root, manifest, flat), manifest


def test_a_version_reads_back_bit_by_bit_and_as_plain_safetensors(tmp_path: Path) -> None:
    directory, manifest = _write(tmp_path, 7)
    assert directory == tmp_path / "0.7"
    assert read_manifest(directory) == manifest
    read = {spec.name: tensor for spec, tensor in read_tensors(directory, manifest)}
    plain = load_file(directory / "model.safetensors")
    for name, tensor in _tensors().items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(plain[name], tensor)


def test_a_bucket_reads_back_as_its_flattened_tensors(tmp_path: Path) -> None:
    directory, manifest = _write(tmp_path, 1)
    flat = flat_bucket(directory, [manifest.tensors[0], manifest.tensors[2]])
    expected = [_tensors()["model.embed.weight"].view(-1), _tensors()["head.weight"].view(-1)]
    assert torch.equal(flat, torch.cat(expected))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def one_bucket_then_a_full_disk() -> Iterator[torch.Tensor]:
        yield _tensors()["model.embed.weight"].view(-1)
        raise OSError(28, "No space left on device")

    manifest = _manifest(_tensors(), version(3))
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_version(tmp_path, manifest, one_bucket_then_a_full_disk())
    assert list(tmp_path.iterdir()) == []


def test_too_few_bytes_are_never_published(tmp_path: Path) -> None:
    manifest = _manifest(_tensors(), version(3))
    with pytest.raises(CheckpointError, match="must have"):
        write_version(tmp_path, manifest, [_tensors()["model.embed.weight"].view(-1)])
    assert published_versions(tmp_path) == []


def test_a_version_is_never_used_for_another_content(tmp_path: Path) -> None:
    directory, manifest = _write(tmp_path, 4)
    with pytest.raises(CheckpointError, match="never used twice"):
        _write(tmp_path, 4, seed=1)
    assert read_manifest(directory) == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.4"]


def test_writing_the_same_content_again_is_harmless(tmp_path: Path) -> None:
    directory, _ = _write(tmp_path, 4)
    written_at = (directory / "model.safetensors").stat().st_mtime_ns
    again, _ = _write(tmp_path, 4)
    assert again == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == written_at


def test_published_files_are_read_only(tmp_path: Path) -> None:
    directory, _ = _write(tmp_path, 4)
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o444}


def test_versions_sort_by_incarnation_and_step_not_by_text(tmp_path: Path) -> None:
    for name in ("0.10", "0.9", "1.2", ".unfinished-0.11-5"):
        (tmp_path / name).mkdir()
    assert published_versions(tmp_path) == [version(9), version(10), version(2, incarnation=1)]
    assert published_versions(tmp_path / "absent") == []


def test_pruning_keeps_the_newest_and_the_pinned_and_clears_leftovers(tmp_path: Path) -> None:
    for step in range(5):
        _write(tmp_path, step)
    (tmp_path / ".unfinished-0.9-123").mkdir()
    prune_versions(tmp_path, keep=2, pinned=[version(1)])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0.1", "0.3", "0.4"]


def test_a_flipped_bit_is_named_by_its_tensor(tmp_path: Path) -> None:
    tensors = _tensors()
    manifest = _manifest(tensors, version(1))
    check_digests(tensors, manifest)
    tensors["model.norm.weight"].view(torch.int16)[1] ^= 1
    with pytest.raises(WeightTransferError, match=r"1 of 3 tensors of 0\.1 .*model\.norm\.weight"):
        check_digests(tensors, manifest)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    directory, manifest = _write(tmp_path, 1)
    file = directory / "model.safetensors"
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(WeightTransferError, match="cannot be read"):
        list(read_tensors(directory, manifest))


def test_a_file_of_other_shapes_is_refused(tmp_path: Path) -> None:
    directory, _ = _write(tmp_path, 1)
    other = _tensors()
    other["head.weight"] = torch.zeros(3, 2)
    with pytest.raises(WeightTransferError, match=r"head\.weight must be float32 \[3, 2\]"):
        list(read_tensors(directory, _manifest(other, version(1))))


def test_an_absent_version_is_a_transfer_error(tmp_path: Path) -> None:
    with pytest.raises(WeightTransferError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path / "0.1")
    with pytest.raises(WeightTransferError, match="cannot be read"):
        list(read_tensors(tmp_path / "0.1", _manifest(_tensors(), version(1))))
