"""Fixed sequences with the learner's log-probabilities: what a loaded engine must reproduce."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.weight_layout import Canary
from learner.batches.batch import Document, pack
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel, evaluate_policy

NUM_SEQUENCES = 4
SEQUENCE_LENGTH = 24
_SEED = 20250917  # any fixed value: every version of a run is proven on the same sequences


def canary_token_ids(vocab_size: int) -> npt.NDArray[np.int64]:
    """[4, 24] ids drawn uniformly from the vocabulary, the same for every process and version."""
    return np.random.default_rng(_SEED).integers(
        0, vocab_size, size=(NUM_SEQUENCES, SEQUENCE_LENGTH)
    )


def compute_canary(policy: PolicyModel, mesh: Mesh, *, tolerance: float) -> Canary:
    """Log-probabilities in nats, temperature 1, under the weights as they are; a collective."""
    token_ids = canary_token_ids(policy.vocab_size)
    no_logprobs = np.zeros(SEQUENCE_LENGTH - 1, dtype=np.float32)
    rows = [
        [
            Document(
                prompt_token_ids=row[:1],
                completion_token_ids=row[1:],
                behavior_logprobs=no_logprobs,
            )
        ]
        for row in token_ids
    ]
    logprobs = evaluate_policy(policy, pack(rows, SEQUENCE_LENGTH).to(mesh.device), 1.0)
    return Canary(
        token_ids=tuple(tuple(row) for row in token_ids.tolist()),
        logprobs=tuple(tuple(row) for row in logprobs.view(NUM_SEQUENCES, -1).tolist()),
        tolerance=tolerance,
    )
