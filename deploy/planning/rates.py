"""How fast an engine samples and a learner rank trains: bandwidth, FLOPs, and what is got of them.

Decoding reads the weights and the KV cache of all running sequences once a step; prefill and
training are bound by FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config import LearnerConfig
from deploy.planning.architecture import Architecture
from deploy.planning.lengths import AnswerLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine on one GPU; bandwidth and FLOP/s are what it really gets."""

    model: Architecture
    dtype_bytes: int
    bytes_per_s: float
    decode_flops_per_s: float
    prefill_flops_per_s: float
    mean_context: float
    """Tokens in the cache of a running sequence."""
    overhead_s: float
    max_sequences: int
    prompt_tokens: float
    group_size: int
    measured_tokens_per_s: float = 0.0
    """What was measured with ``max_sequences`` running; 0: what the model says."""

    def decode_step_s(self, sequences: float) -> float:
        """Seconds in which each of ``sequences`` gets one token."""
        if not self.measured_tokens_per_s:
            return self._modelled_step_s(sequences)
        correction = self.max_sequences / self.measured_tokens_per_s
        return (
            self._modelled_step_s(sequences)
            * correction
            / self._modelled_step_s(self.max_sequences)
        )

    def prefill_s(self) -> float:
        """Seconds for the prompt of one answer; a group computes its prompt once."""
        flops = 2 * (self.model.active_body + self._pairs(self.prompt_tokens)) * self.prompt_tokens
        return flops / self.prefill_flops_per_s / self.group_size

    def answer_s(self, sequences: float, mean_tokens: float) -> float:
        """Mean time of one answer while ``sequences`` run, which share the engine's prefills."""
        return mean_tokens * self.decode_step_s(sequences) + sequences * self.prefill_s()

    def tokens_per_s(self, sequences: float, mean_tokens: float) -> float:
        """Sampled tokens a second with ``sequences`` running: prefills are not counted."""
        return sequences * mean_tokens / self.answer_s(sequences, mean_tokens)

    def _modelled_step_s(self, sequences: float) -> float:
        weights = self.model.touched_parameters(sequences) * self.dtype_bytes
        cache = sequences * self.mean_context * self.model.kv_elements * self.dtype_bytes
        multiplied = self.model.active_body + self.model.head_parameters
        flops = 2 * sequences * (multiplied + 2 * self._pairs(self.mean_context))
        reading_s = (weights + cache) / self.bytes_per_s
        return max(reading_s, flops / self.decode_flops_per_s) + self.overhead_s

    def _pairs(self, context: float) -> float:
        """Multiplications of attention for one token, causal: half of ``context`` on average."""
        return self.model.num_layers * self.model.query_width * context


def train_flops_per_step(
    model: Architecture,
    learner: LearnerConfig,
    lengths: AnswerLengths,
    prompt_tokens: float,
    rollouts: int,
) -> float:
    """FLOPs of a training batch: 6 a weight and token, and 6 L w n^2 for n tokens in L layers.

    As the learner counts its own utilisation (PaLM, arXiv 2204.02311, appendix B, causal half).
    The head computes answers only; E[n^2] = E[(p + L)^2]. A second pass over the batch counts, and
    so does a reference policy on the learner: 2 a weight and token.
    """
    mean = lengths.mean
    squares = prompt_tokens**2 + 2 * prompt_tokens * mean + lengths.mean_square
    body = model.active_body * (prompt_tokens + mean) + model.head_parameters * mean
    pairs = model.num_layers * model.query_width * squares
    per_rollout = 6 * (body + pairs) * learner.epochs_per_batch
    if learner.loss.kl_coefficient > 0 and learner.reference == "learner":
        per_rollout += 2 * (body + pairs)
    return rollouts * per_rollout


def recompute_ratio(learner: LearnerConfig) -> float:
    """FLOPs with what checkpointing computes again, over those without: a third at most."""
    if learner.activation_checkpointing != "full":
        return 1.0
    return 1 + 1 / (3 * learner.activation_checkpoint_every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """A learner; FLOP/s and bandwidth of one rank are what it really gets."""

    flops_per_step: float
    """With what is computed again."""
    tokens_per_step: float
    """Prompts and answers, over all passes."""
    flops_per_s: float
    num_parameters: int
    moved_bytes: float
    """Read and written by the optimizer, over all ranks."""
    bytes_per_s: float
    microbatch_tokens: int
    context_parallel: int
    """Ranks that share a microbatch."""
    node_gpus: int
    nvlink_bytes_per_s: float
    network_bytes_per_s: float
    measured_tokens_per_s: float = 0.0
    """What one rank was measured to train; 0: what the model says."""

    def step_s(self, num_ranks: int) -> float:
        """Seconds of a step on ``num_ranks``: computing or communicating, then the optimizer."""
        compute_s = self.flops_per_step / (self.flops_per_s * num_ranks)
        if self.measured_tokens_per_s:
            compute_s = self.tokens_per_step / (self.measured_tokens_per_s * num_ranks)
        else:
            compute_s = max(compute_s, self.communicate_s(num_ranks))
        return compute_s + self.moved_bytes / (self.bytes_per_s * num_ranks)

    def communicate_s(self, num_ranks: int) -> float:
        """Seconds that FSDP's collectives take: they overlap with computing.

        Each microbatch gathers bfloat16 weights twice and reduces float32 gradients once, 8 bytes
        a parameter, of which (r - 1) / r travel.
        """
        num_groups = num_ranks / self.context_parallel
        microbatches = self.tokens_per_step / (num_groups * self.microbatch_tokens)
        link = self.nvlink_bytes_per_s
        if num_ranks > self.node_gpus:
            link = min(link, self.network_bytes_per_s * self.node_gpus)
        travelling = 8 * self.num_parameters * (num_ranks - 1) / num_ranks
        return max(1.0, microbatches) * travelling / link
