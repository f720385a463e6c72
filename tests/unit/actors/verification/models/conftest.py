"""One thread a test process, and tiny models made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.actors.verification.models.tiny_scorers import save_policy, save_scorer


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> None:
    """As ``verifier.model_threads`` does in a run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="package")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scalar classifier."""
    directory = tmp_path_factory.mktemp("reward")
    save_scorer(directory)
    return directory


@pytest.fixture(scope="package")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model."""
    directory = tmp_path_factory.mktemp("policy")
    save_policy(directory)
    return directory
