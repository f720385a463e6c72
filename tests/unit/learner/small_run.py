"""A learner of a few thousand parameters on a :class:`FakeBroker`, in the test's own process."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config import ActorConfig, Config, LearnerConfig, ModelConfig, PromptsConfig, RunConfig
from common.lifecycle import Process
from common.types import WeightVersion
from common.weight_layout import Canary
from learner.checkpoints.digests import policy_digest
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel
from learner.models.tiny_model import TinyModelShape, build_tiny_model
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from tests.unit.learner.fake_broker import FakeBroker, random_rollout

ALONE = Mesh(0, 1, torch.device("cpu"), None)
SHAPE = TinyModelShape(
    hidden_size=32, num_layers=2, num_heads=1, num_kv_heads=1, intermediate_size=48
)
TEXT = "0123456789+="
VOCAB_SIZE = 19
GROUP_SIZE = 4


@dataclass
class RecordingPublisher:
    """Keeps what was published; ``on_publish`` may kill the learner."""

    published: dict[WeightVersion, str] = field(default_factory=dict)
    canaries: list[Canary] = field(default_factory=list)
    on_publish: Callable[[WeightVersion], None] | None = None

    def publish(self, version: WeightVersion, policy: PolicyModel, canary: Canary) -> None:
        """Remember the digest; a version may come again only with the same weights."""
        if self.on_publish is not None:
            self.on_publish(version)
        digest = policy_digest(policy, ALONE)
        assert self.published.setdefault(version, digest) == digest, "a version was used twice"
        self.canaries.append(canary)

    def wait_for_room(self) -> None:
        """There always is."""

    def close(self) -> None:
        """Nothing to end."""


def small_model(directory: Path, seed: int = 0) -> Path:
    """A model directory for ``TEXT``."""
    return build_tiny_model(directory, [TEXT], SHAPE, seed=seed)


def small_config(root: Path, **learner: Any) -> Config:
    """Two groups a step; ``learner`` overrides settings of that section."""
    settings: dict[str, Any] = {
        "num_steps": 4,
        "groups_per_step": 2,
        "group_size": GROUP_SIZE,
        "learning_rate": 1e-2,
        "microbatch_tokens": 64,
        "checkpoint_every": 2,
        "max_policy_lag": 2,
    }
    return Config(
        run=RunConfig(directory=str(root / "run")),
        model=ModelConfig(path=str(root / "model"), max_length=64),
        prompts=PromptsConfig(generator="chain-addition"),
        actor=ActorConfig(max_tokens=16),
        learner=LearnerConfig(**(settings | learner)),
    )


def with_loss(config: Config, **loss: Any) -> Config:
    """``config`` with other settings of the objective."""
    changed = dataclasses.replace(config.learner.loss, **loss)
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, loss=changed))


def small_broker(**settings: Any) -> FakeBroker:
    """Endless groups of random rollouts."""
    return FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, **settings)


@contextmanager
def small_process(config: Config) -> Iterator[Process]:
    """The learner's process object, closed at the end."""
    process = Process("learner", "learner", config, metrics_port=0)
    try:
        yield process
    finally:
        process.close()
        for thread in threading.enumerate():  # it would die with a process of its own
            if thread.name == "checkpoint":
                thread.join()


@contextmanager
def small_run(config: Config, broker: FakeBroker | None = None) -> Iterator[TrainingRun]:
    """A built run that has taken no step; the model is made if it is missing."""
    if not Path(config.model.path).exists():
        small_model(Path(config.model.path))
    with small_process(config) as process:
        yield build_run(process, broker or small_broker(), ALONE, RecordingPublisher())


def weights_of(policy: PolicyModel) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: weight.detach().clone() for name, weight in policy.trained_weights()}
