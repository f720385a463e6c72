"""The reference policy: when it becomes the policy, where it is kept, who computes with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.arrays import Float32Array, RolloutArrays
from common.config import Config
from common.config_loader import run_paths
from common.errors import CheckpointError, FatalError
from common.messages import AnyMessage, FetchReferences, References, SetReference
from common.torch.weight_files import published_versions
from common.types import INITIAL_VERSION, ReferenceHeader, WeightVersion
from learner.batches.chunk import Chunk
from learner.checkpoints.step_record import read_step_record, record_path
from learner.models.model import PolicyModel, load_policy
from learner.models.reference import load_weights
from learner.run_state import TrainingRun
from learner.train import take_step
from tests.builders import version
from tests.unit.learner.fake_broker import FakeBroker
from tests.unit.learner.reference_models import ReferenceModels
from tests.unit.learner.small_run import (
    ALONE,
    small_broker,
    small_config,
    small_model,
    small_run,
    weights_of,
    with_loss,
)


def _config(root: Path, **learner: Any) -> Config:
    config = small_config(root, **({"reference_reset_every": 2, "checkpoint_every": 100} | learner))
    return with_loss(config, kl_coefficient=0.5)


def _verifier_config(root: Path, **learner: Any) -> Config:
    return _config(root, reference="verifier", **learner)


def _broker(config: Config, **settings: Any) -> FakeBroker:
    return small_broker(reference=ReferenceModels(config), **settings)


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def _reference_weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    assert run.reference is not None
    assert isinstance(run.reference.model, PolicyModel)
    return weights_of(run.reference.model)


def test_every_n_steps_the_policy_becomes_the_reference_and_stays_it(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        versions, equal_to = [], []
        policies = [weights_of(run.policy)]
        for _ in range(5):
            take_step(run)
            policies.append(weights_of(run.policy))
            versions.append(run.reference_version)
            mine = _reference_weights(run)
            equal_to.append([k for k, weights in enumerate(policies) if _same(weights, mine)])
    assert versions == [version(0), version(2), version(2), version(4), version(4)]
    assert equal_to == [[0], [2], [2], [4], [4]]


def test_without_a_reset_the_initial_model_stays_the_reference(tmp_path: Path) -> None:
    with small_run(_config(tmp_path, reference_reset_every=0)) as run:
        initial = weights_of(run.policy)
        for _ in range(3):
            take_step(run)
        assert _same(_reference_weights(run), initial)
        assert not run.process.paths.references.exists()


def test_the_reference_is_where_the_kl_gradient_vanishes(tmp_path: Path) -> None:
    """With uniform rewards there is nothing but the KL term: a reset is its fixed point."""
    broker = small_broker(reward=lambda *_: 1.0)
    with small_run(_config(tmp_path, learning_rate=1e-2), broker) as run:
        with torch.no_grad():
            for _, weight in run.policy.trained_weights():
                weight.mul_(1.05)
        norms = []
        for _ in range(3):
            batch = run.updater.start_batch(run.policy_step)
            while len(batch.group_ids) < 2:
                chunk = run.source.next_chunk(run.lineage, run.policy_step, held=batch.group_ids)
                assert isinstance(chunk, Chunk)
                run.updater.accumulate(batch, chunk)
            norms.append(run.apply(batch).grad_norm)
            run.record_and_commit(batch)
            run.renew_reference()
    assert norms[0] > 1e-3
    assert norms[1] > 1e-3
    assert norms[2] < 1e-7


def test_a_step_record_says_with_which_reference_the_step_was_computed(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        for _ in range(4):
            take_step(run)
        steps = run.process.paths.step_records
    records = [read_step_record(record_path(steps, step, 0)) for step in range(4)]
    assert [record.reference_version for record in records] == [version(k) for k in (0, 0, 2, 2)]


def test_without_a_kl_term_there_is_no_reference(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        take_step(run)
        assert run.reference is None
        record = read_step_record(record_path(run.process.paths.step_records, 0, 0))
    assert record.reference_version is None


def test_a_checkpoint_brings_back_the_reference_that_it_was_written_with(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        for _ in range(3):
            take_step(run)
        run.checkpoint()
        mine = _reference_weights(run)
    with small_run(_config(tmp_path)) as fresh:
        fresh.restore(3)
        assert fresh.reference_version == version(2)
        assert _same(_reference_weights(fresh), mine)


def test_a_checkpoint_from_before_the_reset_brings_back_the_initial_model(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        initial = weights_of(run.policy)
        run.checkpoint()
        for _ in range(2):
            take_step(run)
        run.restore(0)
        assert run.reference_version == INITIAL_VERSION
        assert _same(_reference_weights(run), initial)


def test_references_go_when_no_checkpoint_needs_them(tmp_path: Path) -> None:
    config = _config(tmp_path, checkpoint_every=1, keep_checkpoints=2, num_steps=8)
    found = []
    with small_run(config) as run:
        for _ in range(6):
            take_step(run)
            run.settle_checkpoint()
            root = run.process.paths.references
            found.append([str(item) for item in published_versions(root)])
    assert found == [[], ["0.2"], ["0.2"], ["0.2", "0.4"], ["0.4"], ["0.4", "0.6"]]


def test_a_damaged_reference_is_one_clear_error(tmp_path: Path) -> None:
    with small_run(_config(tmp_path)) as run:
        for _ in range(2):
            take_step(run)
        run.checkpoint()
    file = tmp_path / "run/references/0.2/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with (
        small_run(_config(tmp_path)) as fresh,
        pytest.raises(CheckpointError, match=r"references/0\.2: .* is damaged \(restore"),
    ):
        fresh.restore(2)


def test_a_lost_reference_is_one_clear_error(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    model = load_policy(tmp_path / "model", ALONE, max_length=64)
    with pytest.raises(CheckpointError, match=r"0\.7: the reference policy cannot be loaded"):
        load_weights(tmp_path / "references", version(7), model)


# --- log-probabilities from verifiers -------------------------------------------------------------


def _trained(config: Config, broker: FakeBroker, num_steps: int) -> dict[str, torch.Tensor]:
    with small_run(config, broker) as run:
        run.source.references.tell()
        for _ in range(num_steps):
            take_step(run)
        return weights_of(run.policy)


def _masks(group_id: int, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (0, 2), (group_id % 2,) if index else ()


@pytest.mark.parametrize("row_tokens", [0, 64])
def test_both_sides_train_the_same_weights_across_a_reset(tmp_path: Path, row_tokens: int) -> None:
    alone = _config(tmp_path / "alone", row_tokens=row_tokens)
    small_model(tmp_path / "alone/model")
    expected = _trained(alone, small_broker(masks=_masks), 4)
    config = _verifier_config(tmp_path / "verifier", row_tokens=row_tokens)
    small_model(tmp_path / "verifier/model")
    reference = ReferenceModels(config)
    found = _trained(config, small_broker(masks=_masks, reference=reference), 4)
    assert set(reference.asked) == {version(0), version(2)}
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_the_kl_term_is_not_idle_in_that_comparison(tmp_path: Path) -> None:
    with_kl = _trained(_config(tmp_path), small_broker(), 2)
    without = _trained(with_loss(_config(tmp_path), kl_coefficient=0.0), small_broker(), 2)
    gaps = [(with_kl[name] - without[name]).abs().max().item() for name in without]
    assert max(gaps) > 1e-4


def test_a_learner_whose_verifiers_compute_loads_no_reference_model(tmp_path: Path) -> None:
    config = _verifier_config(tmp_path)
    with small_run(config, _broker(config)) as run:
        assert run.reference is not None
        assert run.reference.model is None
        run.source.references.tell()
        for _ in range(2):
            take_step(run)
        assert published_versions(run.process.paths.references) == [version(2)]


def test_the_broker_is_told_of_each_reference_once_before_groups_are_pulled(
    tmp_path: Path,
) -> None:
    config = _verifier_config(tmp_path)
    broker = _broker(config)
    told, accept = [], broker.on_SetReference

    def remember(message: SetReference) -> AnyMessage:
        told.append((broker.policy_step, message.version))
        return accept(message)

    broker.__dict__["on_SetReference"] = remember
    _trained(config, broker, 5)
    assert told == [(0, version(0)), (2, version(2)), (4, version(4))]
    assert broker.log.index("SetReference") < broker.log.index("PullGroups")


def test_groups_with_another_reference_are_never_trained_on(tmp_path: Path) -> None:
    config = _verifier_config(tmp_path)
    broker = _broker(config)
    with small_run(config, broker) as run:
        run.source.references.tell()
        broker.reference_version = version(7)
        with pytest.raises(FatalError, match=r"reference 0\.0, got 0\.7 \(start broker"):
            take_step(run)


def test_log_probabilities_of_another_reference_than_the_group_says_are_never_trained_on(
    tmp_path: Path,
) -> None:
    config = _verifier_config(tmp_path)
    broker = _broker(config)
    with small_run(config, broker) as run:
        run.source.references.tell()
        fetch = broker.on_FetchReferences

        def other(message: FetchReferences) -> tuple[AnyMessage, list[memoryview]]:
            reply, frames = fetch(message)
            assert isinstance(reply, References)
            headers = tuple(
                ReferenceHeader(reference_version=version(3), num_tokens=header.num_tokens)
                for header in reply.references
            )
            return References(references=headers), frames

        broker.__dict__["on_FetchReferences"] = other
        with pytest.raises(FatalError, match=r"does not hold log-probabilities of the reference"):
            take_step(run)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 0.5])
def test_a_group_with_impossible_reference_log_probabilities_is_quarantined(
    tmp_path: Path, value: float
) -> None:
    config = _verifier_config(tmp_path)
    small_model(tmp_path / "model")
    models, calls = ReferenceModels(config), 0

    def reference(at: WeightVersion, arrays: RolloutArrays) -> Float32Array:
        nonlocal calls
        calls += 1
        logprobs = models(at, arrays)
        if calls == 1:
            logprobs[-1] = value
        return logprobs

    broker = small_broker(reference=reference)
    with small_run(config, broker) as run:
        run.source.references.tell()
        take_step(run)
        row = json.loads((tmp_path / "run/telemetry/steps.jsonl").read_text())
    assert list(broker.evicted.values()) == ["quarantined"]
    assert len(broker.stepped[0]) == 2
    assert np.isfinite(row["loss"])


def test_a_run_goes_on_when_the_reference_moves_from_verifiers_to_the_learner(
    tmp_path: Path,
) -> None:
    config = _verifier_config(tmp_path)
    with small_run(config, _broker(config)) as run:
        run.source.references.tell()
        for _ in range(3):
            take_step(run)
        run.checkpoint()
    learner = dataclasses.replace(config.learner, reference="learner")
    with small_run(dataclasses.replace(config, learner=learner)) as run:
        run.restore(3)
        assert run.reference_version == version(2)
        expected = weights_of(ReferenceModels(config).model(version(2)))
        assert _same(_reference_weights(run), expected)
    assert run_paths(config).references.is_dir()
