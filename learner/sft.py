"""Supervised fine-tuning on the learner's own machinery: cold start, distillation.

Cross-entropy of the completion tokens given the prompt; prompts carry no loss. The same packing,
policy, sharding and optimizer as in reinforcement learning, so that what is right for one is right
for the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
import torch

from common.config import Config
from common.config_loader import run_paths
from common.errors import ConfigError, FatalError
from common.files import append_line
from common.lifecycle import die_with_parent
from common.logs import configure_logs
from common.text_tokenizer import TextTokenizer
from common.types import RolloutId
from learner.batches.batch import Document
from learner.batches.chunk import Chunk, microbatches_of
from learner.batches.layout import PlannedRollout, plan_chunk
from learner.models.mesh import Mesh, learner_mesh
from learner.models.model import PolicyModel, load_policy, run_policy
from learner.publication.export import export_model
from learner.sft_corpus import encode_corpus, example_order, read_corpus
from learner.step.optim import (
    build_adamw,
    clip_gradients,
    normalize_gradients,
    set_learning_rate,
)
from learner.step.schedule import learning_rate

_REPORT_S = 2.0
_BETAS = (0.9, 0.999)


def run_sft(config: Config) -> None:
    """Train ``model.path`` on ``sft.corpus`` and write ``sft.output``; every rank calls it."""
    _check(config)
    die_with_parent()
    log = configure_logs(config.run.id, "sft", "sft")
    torch.set_num_threads(config.learner.num_threads)
    model_dir, corpus = Path(config.model.path), Path(config.sft.corpus)
    documents = encode_corpus(
        corpus,
        read_corpus(corpus),
        TextTokenizer.load(model_dir),
        template=config.prompts.template,
        model_dir=model_dir,
        max_length=config.model.max_length,
    )
    with learner_mesh(config.learner.context_parallel) as mesh:
        policy = load_policy(
            model_dir,
            mesh,
            max_length=config.model.max_length,
            settings=config.learner,
            seed=config.run.seed,
        )
        fine_tune(policy, documents, config, mesh, SftReporter(config, mesh, log))
        output = Path(config.sft.output)
        export_model(policy, mesh, source=model_dir, output=output, dtype=config.model.dtype)


def fine_tune(
    policy: PolicyModel,
    documents: Sequence[Document],
    config: Config,
    mesh: Mesh,
    reporter: SftReporter | None = None,
) -> list[float]:
    """Train ``policy`` in place; returns the mean loss in nats a token of every step.

    Which examples stand in which step depends on ``run.seed`` alone. Raises :class:`FatalError`
    when the loss is no longer finite.
    """
    sft = config.sft
    optimizer = _optimizer(policy, config)
    order = example_order(
        len(documents), batch_size=sft.batch_size, num_steps=sft.num_steps, seed=config.run.seed
    )
    losses: list[float] = []
    for step, indices in enumerate(order):
        batch = [documents[index] for index in indices]
        num_tokens = sum(len(document.completion_token_ids) for document in batch)
        rate = learning_rate(sft, step)
        set_learning_rate(optimizer, rate)
        losses.append(_train_step(policy, optimizer, batch, num_tokens, config, mesh))
        _check_finite(losses[-1], step, sft.learning_rate)
        if reporter is not None:
            reporter.report(step, losses[-1], rate, num_tokens)
    return losses


def _optimizer(policy: PolicyModel, config: Config) -> torch.optim.Optimizer:
    return build_adamw(
        [weight for _, weight in policy.trained_weights()],
        betas=_BETAS,
        weight_decay=config.sft.weight_decay,
        decay_on=config.learner.weight_decay_on,
        moments=config.learner.optimizer_dtype,
    )


def _check_finite(loss: float, step: int, learning_rate: float) -> None:
    if not np.isfinite(loss):
        raise FatalError(
            f"the loss of sft step {step} is not finite (lower sft.learning_rate, now "
            f"{learning_rate})"
        )


def _train_step(
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Document],
    num_tokens: int,
    config: Config,
    mesh: Mesh,
) -> float:
    """One optimizer step; returns the mean loss in nats a token."""
    weights = [weight for _, weight in policy.trained_weights()]
    optimizer.zero_grad(set_to_none=True)
    loss = _accumulate(policy, batch, config, mesh) / num_tokens
    normalize_gradients(weights, num_tokens)
    clip_gradients(weights, config.sft.max_grad_norm)
    optimizer.step()
    return loss


def _accumulate(
    policy: PolicyModel, batch: Sequence[Document], config: Config, mesh: Mesh
) -> float:
    """Add the gradient sums of ``batch``; returns the summed loss over all ranks."""
    documents = {
        RolloutId(group_id=place, index=0, attempt=0): document
        for place, document in enumerate(batch)
    }
    planned = {rollout_id: _planned(rollout_id, item) for rollout_id, item in documents.items()}
    layout = plan_chunk(
        range(len(batch)),
        list(planned.values()),
        num_ranks=mesh.num_data_ranks,
        row_tokens=config.learner.row_tokens,
        microbatch_tokens=config.learner.microbatch_tokens,
        attention_ratio=policy.attention_ratio,
        hidden_attention_ratio=policy.hidden_attention_ratio,
    )
    chunk = Chunk(layout=layout, rollouts=planned, documents=documents)
    total = torch.zeros((), dtype=torch.float64)
    for _, packed in microbatches_of(chunk, mesh):
        logprobs, _ = run_policy(policy, packed, 1.0)
        loss = -(logprobs * packed.weights).sum()
        loss.backward()
        total += loss.detach().double().cpu()
    return float(mesh.sum_over_data(total))


def _planned(rollout_id: RolloutId, document: Document) -> PlannedRollout:
    return PlannedRollout(
        rollout_id=rollout_id,
        num_prompt_tokens=len(document.prompt_token_ids),
        num_completion_tokens=len(document.completion_token_ids),
        advantage=0.0,
        lag=0,
    )


def _check(config: Config) -> None:
    for key in ("corpus", "output"):
        if not getattr(config.sft, key):
            example = '"corpus.jsonl"' if key == "corpus" else '"model"'
            raise ConfigError(f"sft.{key} must be set (for example {key} = {example})")


class SftReporter:
    """Writes ``sft.jsonl`` and, every two seconds, a log line; rank 0 only."""

    def __init__(self, config: Config, mesh: Mesh, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._num_steps = config.sft.num_steps
        self._file = run_paths(config).telemetry / "sft.jsonl" if mesh.is_main else None
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.unlink(missing_ok=True)  # a training that starts anew starts its curve anew
        self._last_step_s = self._last_line_s = time.monotonic()

    def report(self, step: int, loss: float, learning_rate: float, num_tokens: int) -> None:
        """Say how ``step`` went."""
        if self._file is None:
            return
        now_s = time.monotonic()
        row = {
            "time": time.time(),
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "tokens_per_second": num_tokens / max(now_s - self._last_step_s, 1e-9),
        }
        self._last_step_s = now_s
        append_line(self._file, json.dumps(row, allow_nan=False))
        if now_s - self._last_line_s >= _REPORT_S or step == self._num_steps - 1:
            self._last_line_s = now_s
            self._log.info(
                "sft", **{key: row[key] for key in ("step", "loss", "tokens_per_second")}
            )
