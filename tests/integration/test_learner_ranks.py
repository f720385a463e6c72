"""Two ranks compute what one rank computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner.checkpoints.digests import policy_digest
from learner.models.model import load_policy
from learner.models.reference import load_weights
from tests.builders import version
from tests.integration.checkpoint_ranks import CHAIN, run_chain
from tests.integration.learner_ranks import CHUNK_SIZES, NUM_GROUPS, gather, run_ranks
from tests.unit.learner.small_run import (
    ALONE,
    small_broker,
    small_config,
    small_model,
    small_run,
    with_loss,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of the same step on one and on two ranks."""
    found: dict[int, Path] = {}
    for world_size in (1, 2):
        root = tmp_path_factory.mktemp(f"ranks-{world_size}")
        if found:
            shutil.copytree(found[1] / "model", root / "model")
        else:
            small_model(root / "model")
        run_ranks(root, world_size)
        found[world_size] = root
    return found


def _report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "report.json").read_text())
    return report


def test_two_ranks_have_the_gradients_of_one(roots: dict[int, Path]) -> None:
    one = load_file(roots[1] / "gradients.safetensors")
    two = load_file(roots[2] / "gradients.safetensors")
    assert one.keys() == two.keys()
    for name, expected in one.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(two[name], expected, rtol=1e-6, atol=1e-6 * scale)


def test_two_ranks_have_the_loss_norm_and_statistics_of_one(roots: dict[int, Path]) -> None:
    one, two = _report(roots[1]), _report(roots[2])
    assert two["denominator"] == one["denominator"]
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["sums"] == pytest.approx(one["sums"], rel=1e-5)
    assert two["gap"] == pytest.approx(one["gap"], rel=1e-5)


def test_two_ranks_take_the_step_of_one_whatever_the_objective_sums_over(
    roots: dict[int, Path], tmp_path: Path
) -> None:
    """Ratios of whole answers, an entropy bonus, and advantages that wait for the whole batch."""
    loss: dict[str, Any] = {
        "ratio_level": "sequence-mean",
        "aggregation": "sequence",
        "entropy_coefficient": 0.1,
        "baseline": "batch-mean",
        "advantage_over": "batch",
    }
    shutil.copytree(roots[1] / "model", tmp_path / "model")
    run_ranks(tmp_path, 2, **loss)
    two = _report(tmp_path)
    config = with_loss(small_config(tmp_path, groups_per_step=NUM_GROUPS), **loss)
    with small_run(config, small_broker(chunk_sizes=CHUNK_SIZES)) as run:
        one = run.apply(gather(run))
    assert two["grad_norm"] == pytest.approx(one.grad_norm, rel=1e-5)
    assert two["loss"] == pytest.approx(one.loss, rel=1e-5)
    assert two["sums"] == pytest.approx(one.sums, rel=1e-5)
    assert one.grad_norm != pytest.approx(_report(roots[1])["grad_norm"], rel=1e-3)


def test_the_canary_is_computed_under_the_weights_after_the_step(roots: dict[int, Path]) -> None:
    for one, two in zip(_report(roots[1])["canary"], _report(roots[2])["canary"], strict=True):
        assert two == pytest.approx(one, abs=1e-3)


def test_a_checkpoint_of_two_ranks_is_restored_by_one(
    roots: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(roots[2], tmp_path / "root")
    expected = load_file(roots[2] / "weights.safetensors")
    with small_run(small_config(tmp_path / "root")) as run:
        run.restore(1)
        assert run.digest() == _report(roots[2])["digest"]
        for name, weight in run.policy.trained_weights():
            assert torch.equal(weight, expected[name]), name
            assert run.optimizer.state[weight]["step"].item() == 1
            assert run.optimizer.state[weight]["exp_avg"].abs().sum().item() > 0


def test_a_reference_that_two_ranks_wrote_is_read_by_two_and_by_one(roots: dict[int, Path]) -> None:
    for root in roots.values():
        assert _report(root)["reference_digest"] == _report(root)["digest"]
    alone = load_policy(roots[2] / "model", ALONE, max_length=64)
    load_weights(roots[2] / "run/references", version(1), alone)
    assert policy_digest(alone, ALONE) == _report(roots[2])["digest"]


def test_a_run_goes_on_with_two_four_and_again_one_rank_to_the_last_bit(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    run_chain(tmp_path)
    for place in range(1, len(CHAIN)):
        saved = load_file(tmp_path / f"saved-{place - 1}.safetensors")
        restored = load_file(tmp_path / f"restored-{place}.safetensors")
        assert restored.keys() == saved.keys()
        for name, tensor in saved.items():
            assert torch.equal(restored[name], tensor), f"{CHAIN[place]} ranks, {name}"
    moments = [name for name in saved if ".exp_avg_sq." in name]
    assert all(saved[name].abs().sum() > 0 for name in moments if "bias" not in name)
    assert {saved[name].item() for name in saved if ".step." in name} == {3.0}
