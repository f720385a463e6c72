"""What verifiers compute, in the test's own process: reference policies from the run directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.arrays import Float32Array, RolloutArrays
from common.config import Config
from common.config_loader import run_paths
from common.types import INITIAL_VERSION, WeightVersion
from learner.batches.batch import Document, pack
from learner.models.model import PolicyModel, evaluate_policy, load_policy
from learner.models.reference import load_weights
from tests.unit.learner.small_run import ALONE


class ReferenceModels:
    """Computes as a verifier does: each version from where the learner wrote it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._models: dict[WeightVersion, PolicyModel] = {}
        self.asked: list[WeightVersion] = []

    def __call__(self, version: WeightVersion, arrays: RolloutArrays) -> Float32Array:
        """Log-probabilities [L] of the completion."""
        self.asked.append(version)
        document = Document(
            prompt_token_ids=arrays.prompt_token_ids,
            completion_token_ids=arrays.completion_token_ids,
            behavior_logprobs=arrays.behavior_logprobs,
        )
        found = evaluate_policy(self.model(version), pack([[document]], document.length), 1.0)
        return np.ascontiguousarray(found.numpy())

    def model(self, version: WeightVersion) -> PolicyModel:
        """The policy of ``version``."""
        if version not in self._models:
            model = load_policy(Path(self._config.model.path), ALONE, max_length=64)
            if version != INITIAL_VERSION:
                load_weights(run_paths(self._config).references, version, model)
            self._models[version] = model
        return self._models[version]

    def forget(self, versions: Iterable[WeightVersion]) -> None:
        """Read these anew when they are asked for."""
        for version in versions:
            self._models.pop(version, None)
