"""PPO killed at any moment: critic, both optimizers and every update of a batch come back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.config import Config, CriticConfig
from common.types import WeightVersion
from learner.batches.group_source import Ending
from learner.checkpoints.step_record import read_step_record, record_path
from learner.train import train
from tests.unit.learner.fake_broker import FakeBroker, Killed
from tests.unit.learner.small_run import (
    ALONE,
    RecordingPublisher,
    small_broker,
    small_config,
    small_model,
    small_process,
    small_run,
    with_loss,
)

pytestmark = pytest.mark.slow

NUM_STEPS = 5


def _config(root: Path) -> Config:
    critic = CriticConfig(learning_rate=1e-2, whiten=True, gae_lambda=0.9, warmup_steps=1)
    config = small_config(
        root,
        num_steps=NUM_STEPS,
        checkpoint_every=2,
        updates_per_batch=2,
        epochs_per_batch=2,
        critic=critic,
    )
    return with_loss(config, baseline="critic", kl_coefficient=0.05, kl_in="reward")


def _run(config: Config, broker: FakeBroker, publisher: RecordingPublisher) -> None:
    with small_process(config) as process:
        assert train(process, broker, ALONE, publisher) is Ending.COMPLETED


def _digests(root: Path) -> list[str]:
    """Of policy and critic after each step."""
    steps = root / "run/learner/steps"
    return [
        read_step_record(record_path(steps, step, 0)).weight_digest for step in range(NUM_STEPS)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    small_model(root / "model")
    _run(_config(root), small_broker(chunk_sizes=(1, 2)), RecordingPublisher())
    return root


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_ppo_run_takes_the_same_updates_again(
    killed_at: int, undisturbed: Path, tmp_path: Path
) -> None:
    def kill(version: WeightVersion) -> None:
        if version.policy_step == killed_at:
            raise Killed

    shutil.copytree(undisturbed / "model", tmp_path / "model")
    broker = small_broker(chunk_sizes=(1, 2))
    publisher = RecordingPublisher(on_publish=kill)
    with pytest.raises(Killed):
        _run(_config(tmp_path), broker, publisher)
    publisher.on_publish = None
    _run(_config(tmp_path), broker, publisher)
    assert broker.incarnation == 0, "the replay came to other weights"
    assert _digests(tmp_path) == _digests(undisturbed)
    assert len(set(_digests(undisturbed))) == NUM_STEPS


def test_a_checkpoint_counts_the_updates_of_each_optimizer(undisturbed: Path) -> None:
    with small_run(_config(undisturbed)) as run:
        run.restore(NUM_STEPS)
        assert run.digest() == _digests(undisturbed)[-1]
        critic = run.updater.critic
        assert critic is not None
        updates = 2 * 2
        optimizers = {
            run.optimizer: (NUM_STEPS - 1) * updates,
            critic.optimizer: NUM_STEPS * updates,
        }
        for optimizer, expected in optimizers.items():
            assert {float(state["step"]) for state in optimizer.state.values()} == {float(expected)}
            assert any(state["exp_avg"].abs().sum() > 0 for state in optimizer.state.values())
