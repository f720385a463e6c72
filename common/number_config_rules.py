"""Smallest and largest values of single keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.config import Config

_AT_LEAST: tuple[tuple[str, float, str], ...] = (
    ("run.seed", 0, "use 0"),
    ("learner.max_policy_lag", 0, "use 0 for synchronous training"),
    ("learner.groups_per_step", 1, "use 32 to start with"),
    ("learner.num_steps", 1, "use 100 to start with"),
    ("learner.num_ranks", 1, "use 1 on one CPU or GPU"),
    ("learner.context_parallel", 1, "use 1 to compute each row on one rank"),
    ("learner.microbatch_tokens", 1, "use 8192 to start with"),
    ("learner.activation_checkpoint_every", 1, "use 1 for all layers"),
    ("learner.lora.rank", 0, "use 0 to train all weights, 16 to start with"),
    ("learner.row_tokens", 0, "use 0 for the longest sequence"),
    ("learner.checkpoint_every", 1, "use 10 to start with"),
    ("learner.keep_checkpoints", 2, "use 2, so that a damaged one costs only a replay"),
    ("learner.max_failed_checkpoints", 1, "use 1 to stop at the first"),
    ("learner.stop_grace_s", 1, "use 25 under Kubernetes, whose limit is 30"),
    ("learner.rank_timeout_s", 2, "use 8"),
    ("learner.rank_join_timeout_s", 2, "use 120"),
    ("learner.rank_stall_timeout_s", 2, "use 300, and more than a checkpoint takes to write"),
    ("learner.num_threads", 1, "use 1 where roles share cores"),
    ("learner.reference_reset_every", 0, "use 0 to keep the initial model, 400 as R1"),
    ("learner.group_size", 1, "use 8 to start with"),
    ("learner.updates_per_batch", 1, "use 1 for one optimizer step a batch"),
    ("learner.epochs_per_batch", 1, "use 1 to see each batch once"),
    ("learner.critic.max_grad_norm", 0, "use 0 to turn clipping off"),
    ("learner.critic.warmup_steps", 0, "use 0 to train the policy from the start"),
    ("learner.critic.length_adaptive", 0, "use 0 for learner.critic.gae_lambda"),
    ("learner.critic.value_clip", 0, "use 0 for no bound"),
    ("learner.loss.kl_coefficient", 0, "use 0 to keep no reference"),
    ("learner.max_grad_norm", 0, "use 0 to turn clipping off"),
    ("actor.count", 1, "a run needs an actor"),
    ("actor.max_tokens", 1, "use 1024 to start with"),
    ("actor.max_num_seqs", 1, "use 256 to start with"),
    ("verifier.count", 1, "a run needs a verifier"),
    ("verifier.num_workers", 1, "use the number of spare cores"),
    ("verifier.model_batch_tokens", 1, "use 16384"),
    ("verifier.model_queue_tokens", 1, "use 262144"),
    ("verifier.model_threads", 1, "use 1 where roles share cores"),
    ("broker.max_attempts", 1, "use 3"),
    ("broker.max_outstanding_groups", 1, "use 64"),
    ("broker.max_group_s", 0, "use 0 for no limit"),
    ("broker.journal_segment_bytes", 65536, "use 67108864"),
    ("broker.max_memory_bytes", 201326592, "use 536870912"),
    ("stores.count", 1, "use 1 to start with"),
    ("stores.segment_bytes", 1048576, "use 67108864"),
    ("stores.hot_bytes", 0, "use 0 to keep nothing in memory"),
    ("stores.max_bytes", 1048576, "use 68719476736"),
    ("weights.keep_versions", 1, "keep at least the newest"),
    ("weights.bucket_bytes", 1024, "use 67108864"),
    ("collect.samples_per_prompt", 1, "use 4"),
    ("collect.num_prompts", 1, "use 512"),
    ("sft.num_steps", 1, "use 400"),
    ("sft.batch_size", 1, "use 64"),
    ("learner.max_dropped_batches", 0, "use 0 for no limit"),
    ("model.max_length", 2, "use 2048"),
)
_ABOVE_ZERO: tuple[str, ...] = (
    "learner.learning_rate",
    "learner.critic.learning_rate",
    "learner.lora.alpha",
    "learner.loss.clip_low",
    "learner.loss.clip_high",
    "actor.temperature",
    "verifier.wall_limit_s",
    "verifier.model_batch_limit_s",
    "verifier.model_load_limit_s",
    "broker.heartbeat_s",
    "broker.no_progress_s",
    "broker.max_absence_s",
    "stores.patience_s",
    "stores.sweep_s",
    "weights.deadline_s",
    "weights.canary_tolerance",
    "sft.learning_rate",
)


def number_rules(config: Config) -> Iterator[str]:
    """Each rule that a number breaks."""
    for key, low, cure in _AT_LEAST:
        value = _get_dotted(config, key)
        if not value >= low:
            yield f"{key} must be >= {low}, got {value} ({cure})"
    for key in _ABOVE_ZERO:
        value = _get_dotted(config, key)
        if not 0 < value < float("inf"):
            yield f"{key} must be a finite number above 0, got {value} (delete the line)"
    for role in ("broker", "stores", "actor", "verifier", "learner"):
        port = _get_dotted(config, f"{role}.metrics_port")
        if not 0 <= port <= 65535:
            yield f"{role}.metrics_port must be 0 to 65535, got {port} (0 takes a free port)"


def _get_dotted(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
