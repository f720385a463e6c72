"""What the benchmarks of attention and of checkpoints measure is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.checkpoints.checkpoint import complete_checkpoints
from learner.studies import attention_study, checkpoint_study


@pytest.mark.parametrize(("length", "documents_per_row"), [(16, 4), (64, 2)])
def test_both_ways_of_attention_compute_the_same_value_and_gradients(
    length: int, documents_per_row: int
) -> None:
    row_length = length * documents_per_row
    borders = torch.arange(0, 3 * row_length + 1, length)
    masks = attention_study.ways(borders, 3, row_length)
    inputs = attention_study.make_inputs(3, row_length)
    found = {
        name: attention_study.value_and_gradients(inputs, mask) for name, mask in masks.items()
    }
    assert masks["mask"].dtype == torch.bool
    assert masks["by_document"].dtype == torch.int64
    for one, other in zip(found["mask"], found["by_document"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert one.abs().max() > 0


def test_a_cell_tells_which_way_the_learner_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_study, "NUM_TOKENS", 1024)
    monkeypatch.setattr(attention_study, "REPEATS", 1)
    short, long = attention_study.cell(16, 2), attention_study.cell(256, 4)
    assert (short["chosen"], short["pairs_per_document"]) == ("mask", 512)
    assert (long["chosen"], long["pairs_per_document"]) == ("by_document", 262_144)
    assert long["hidden_pairs_per_document"] == 3 * 256 * 256


def test_an_asynchronous_checkpoint_is_the_files_of_a_synchronous_one(tmp_path: Path) -> None:
    trainees = checkpoint_study.make_trainees(hidden_size=64, num_layers=1)
    figures = checkpoint_study.study(tmp_path, trainees, repeats=1)
    assert complete_checkpoints(tmp_path) == [2, 3], "one of each way, both whole"
    one, other = (next((tmp_path / f"{step:08d}").glob("rank-*")) for step in (2, 3))
    assert one.read_bytes() == other.read_bytes()
    assert figures["num_bytes"] == one.stat().st_size > 12 * 250_000
    assert not (tmp_path / "plain").exists()
    taken = [figures[name] for name in checkpoint_study.Turns.__slots__]
    assert all(isinstance(turns, list) and len(turns) == 1 for turns in taken), taken
    stalled, written, *_ = (turns[0] for turns in taken if isinstance(turns, list))
    assert 0 < stalled <= written


def test_as_many_bytes_are_written_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(Path, "unlink", lambda path: sizes.append(path.stat().st_size))
    checkpoint_study.plain_write(tmp_path / "plain", (8 << 20) + 5)
    assert sizes == [(8 << 20) + 5]
