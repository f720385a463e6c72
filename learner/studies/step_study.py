"""How much of a bare training step is left after a learner step.

``python -m learner.studies.step_study`` prints one JSON object. The learner packs documents,
computes the objective and its statistics, normalises, clips and steps. The baseline has the same
microbatches laid out beforehand and does nothing but forward, cross-entropy of the same tokens,
backward and AdamW. The two take turns, on copies of one model; time is processor time of one
thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from common.config import Config, LearnerConfig, ModelConfig, RunConfig
from common.types import RolloutId
from learner.batches.batch import Document, Microbatch, build_microbatch
from learner.batches.chunk import Chunk
from learner.batches.layout import ChunkLayout, PlannedRollout, plan_chunk
from learner.models.attention import packed_mask
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel
from learner.step.optim import build_adamw, set_learning_rate
from learner.step.update import Updater

REPEATS = 5
VOCABULARY = 2048
NUM_GROUPS = 2
GROUP_SIZE = 8
PROMPT_TOKENS = 32
COMPLETION_TOKENS = (64, 320)
MICROBATCH_TOKENS = 2048
LEARNING_RATE = 1e-6


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    chunk = make_chunk()
    workloads = {"learner": learner_step(chunk), "bare": bare_step(chunk)}
    found: dict[str, list[float]] = {name: [] for name in workloads}
    for turn in range(REPEATS + 1):
        for name, step in workloads.items():
            started_s = time.process_time()
            step()
            if turn:  # the first warms up
                found[name].append(time.process_time() - started_s)
    documents = chunk.documents.values()
    figures = {
        "seconds": found,
        "num_tokens": sum(document.length for document in documents),
        "num_trained_tokens": sum(document.num_trained for document in documents),
        "num_microbatches": chunk.layout.num_microbatches,
        "num_parameters": sum(weight.numel() for weight in make_model().parameters()),
    }
    json.dump(figures, sys.stdout)


def learner_step(chunk: Chunk) -> Callable[[], None]:
    """One training batch through the updater."""
    policy = PolicyModel(make_model())
    settings = LearnerConfig(group_size=GROUP_SIZE, microbatch_tokens=MICROBATCH_TOKENS)
    config = Config(
        run=RunConfig(directory="unused"), model=ModelConfig(path="unused"), learner=settings
    )
    updater = Updater(policy, make_optimizer(policy), config, Mesh(0, 1, torch.device("cpu"), None))

    def step() -> None:
        batch = updater.start_batch(0)
        updater.accumulate(batch, chunk)
        updater.apply(batch)

    return step


def bare_step(chunk: Chunk) -> Callable[[], None]:
    """Forward, backward and AdamW, and nothing else."""
    causal_lm = make_model()
    optimizer = make_optimizer(PolicyModel(causal_lm))
    (layouts,) = chunk.layout.ranks
    microbatches = [build_microbatch(layout, chunk.documents) for layout in layouts]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for microbatch in microbatches:
            bare_loss(causal_lm, microbatch).backward()
        optimizer.step()

    return step


def bare_loss(causal_lm: Qwen2ForCausalLM, microbatch: Microbatch) -> Tensor:
    """Cross-entropy of the trained tokens, with logits for them alone."""
    hidden = causal_lm.base_model(
        input_ids=microbatch.input_ids,
        position_ids=microbatch.position_ids,
        attention_mask=packed_mask("sdpa", microbatch.borders, *microbatch.input_ids.shape),
        use_cache=False,
    ).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, microbatch.positions)
    head = cast("nn.Linear", causal_lm.get_output_embeddings())
    loss: Tensor = nn.functional.cross_entropy(head(chosen), microbatch.target_ids)
    return loss


def make_model() -> Qwen2ForCausalLM:
    """Two layers of random weights, the same each time."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    return Qwen2ForCausalLM(config).float().eval()


def make_optimizer(policy: PolicyModel) -> torch.optim.Optimizer:
    """The learner's own, at a rate that leaves the model as it is."""
    weights = [weight for _, weight in policy.trained_weights()]
    optimizer = build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.0)
    set_learning_rate(optimizer, LEARNING_RATE)
    return optimizer


def make_chunk() -> Chunk:
    """Groups of random answers of random lengths, as they come from the broker."""
    random = np.random.default_rng(0)
    documents = {
        RolloutId(group_id=group, index=index, attempt=0): _document(random)
        for group in range(NUM_GROUPS)
        for index in range(GROUP_SIZE)
    }
    rollouts = [
        PlannedRollout(
            rollout_id=rollout_id,
            num_prompt_tokens=PROMPT_TOKENS,
            num_completion_tokens=len(document.completion_token_ids),
            advantage=document.advantage,
            lag=document.lag,
        )
        for rollout_id, document in documents.items()
    ]
    return Chunk(
        layout=_plan(rollouts),
        rollouts={item.rollout_id: item for item in rollouts},
        documents=documents,
    )


def _plan(rollouts: Sequence[PlannedRollout]) -> ChunkLayout:
    return plan_chunk(
        range(NUM_GROUPS),
        rollouts,
        num_ranks=1,
        row_tokens=0,
        microbatch_tokens=MICROBATCH_TOKENS,
    )


def _document(random: np.random.Generator) -> Document:
    length = int(random.integers(*COMPLETION_TOKENS))
    return Document(
        prompt_token_ids=random.integers(0, VOCABULARY, PROMPT_TOKENS),
        completion_token_ids=random.integers(0, VOCABULARY, length),
        behavior_logprobs=np.full(length, -np.log(VOCABULARY), dtype=np.float32),
        advantage=float(random.normal()),
    )


if __name__ == "__main__":
    main()
