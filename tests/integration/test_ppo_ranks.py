"""Two ranks train policy and critic as one does, update after update."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.integration.ppo_ranks import NUM_STEPS, ppo_config, run_ranks
from tests.unit.learner.small_run import small_model, small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of the same batches on one and on two ranks."""
    found = {world_size: tmp_path_factory.mktemp(f"ranks-{world_size}") for world_size in (1, 2)}
    small_model(found[1] / "model")
    shutil.copytree(found[1] / "model", found[2] / "model")
    for world_size, root in found.items():
        run_ranks(root, world_size)
    return found


def _report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "report.json").read_text())
    return report


def test_two_ranks_have_the_statistics_of_one(roots: dict[int, Path]) -> None:
    one, two = (_report(roots[world_size])["steps"] for world_size in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["num_updates"] == theirs["num_updates"] == 4
        assert ours["sums"] == pytest.approx(theirs["sums"], rel=1e-4, abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-5)
    assert one[0]["grad_norm"] == 0.0
    assert one[1]["grad_norm"] > 0.0
    assert one[1]["sums"]["clipped"] > 0, "the clip is never live"


def test_two_ranks_move_policy_and_critic_as_one_does(roots: dict[int, Path]) -> None:
    start = load_file(roots[1] / "start.safetensors")
    one, two = (load_file(roots[size] / "final.safetensors") for size in (1, 2))
    for trainee in ("policy.", "critic."):
        names = [name for name in start if name.startswith(trainee)]
        way = _distance(one, start, names)
        assert way > 0.01
        assert _distance(two, one, names) < 1e-3 * way


def _distance(ours: dict[str, Tensor], theirs: dict[str, Tensor], names: list[str]) -> float:
    distances = torch.stack([(ours[name] - theirs[name]).norm() for name in names])
    return float(distances.norm())


def test_a_checkpoint_of_two_ranks_is_restored_by_one(
    roots: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(roots[2], tmp_path / "root")
    expected = load_file(roots[2] / "final.safetensors")
    with small_run(ppo_config(tmp_path / "root")) as run:
        run.restore(NUM_STEPS)
        assert run.digest() == _report(roots[2])["digest"]
        for trainee, (model, optimizer) in run.trainees.items():
            for name, weight in model.trained_weights():
                assert torch.equal(weight, expected[f"{trainee}.{name}"]), name
            steps = {float(state["step"]) for state in optimizer.state.values()}
            assert steps == {4.0 if trainee == "policy" else 8.0}
