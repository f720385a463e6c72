"""Device memory of a learner rank and of an engine, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import LearnerConfig
from common.weight_layout import DTYPE_BYTES
from deploy.planning.architecture import Architecture

_COMPUTED = 2
"""Bytes of a number that the learner computes in on a GPU: bfloat16."""
_HEAD_TILES = 2 * 512 * 2**20
"""The tiles of logits that the head keeps, and one with its gradient (docs/learner.md)."""
_LAYERS_GATHERED = 2
"""FSDP gathers the next layer while one computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes on the device of one learner rank at the peak of a step."""

    weights: float
    gradients: float
    moments: float
    reference: float
    gathered: float
    """Whole layers in bfloat16 for a moment, the root all the time, and one reduction."""
    activations: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        states = self.weights + self.gradients + self.moments + self.reference
        return states + self.gathered + self.activations + self.head


def rank_memory(
    model: Architecture, learner: LearnerConfig, num_ranks: int, longest: int
) -> RankMemory:
    """Memory of one of ``num_ranks`` FSDP ranks; ``longest`` is ``model.max_length``.

    Weights, gradients and two moments are 16 bytes a parameter in float32, shared by the ranks
    (ZeRO, arXiv 1910.02054, section 3.1, with float32 gradients). A microbatch has
    ``microbatch_tokens`` places, or those of one longest sequence, cut by ``context_parallel``.
    """
    places = max(learner.microbatch_tokens, longest) / learner.context_parallel
    trained = trained_parameters(model, learner)
    on_device = 0 if learner.offload_optimizer else 1
    shard = on_device / num_ranks
    moment_bytes = 2 * DTYPE_BYTES[learner.optimizer_dtype]
    return RankMemory(
        weights=4 * (model.num_parameters + _adapters(model, learner)) * shard,
        gradients=4 * trained * shard,
        moments=moment_bytes * trained * shard,
        reference=4 * model.num_parameters / num_ranks if _has_reference_copy(learner) else 0,
        gathered=_gathered(model, learner),
        activations=float(places * activation_bytes_per_token(model, learner)),
        head=_HEAD_TILES + places * model.hidden * 2 * 4,
    )


def least_ranks(
    model: Architecture,
    learner: LearnerConfig,
    longest: int,
    room: float,
    max_ranks: int,
) -> int | None:
    """The fewest ranks whose memory fits ``room`` bytes; None if ``max_ranks`` are too few."""
    step = learner.context_parallel  # it divides the ranks
    fitting = (
        ranks
        for ranks in range(step, max_ranks + 1, step)
        if rank_memory(model, learner, ranks, longest).total <= room
    )
    return next(fitting, None)


def trained_parameters(model: Architecture, learner: LearnerConfig) -> int:
    """Parameters with gradient and moments: all, or the adapters alone."""
    return _adapters(model, learner) if learner.lora.rank else model.num_parameters


def activation_bytes_per_token(model: Architecture, learner: LearnerConfig) -> float:
    """Bytes that a place of a row keeps for the backward pass, over all layers.

    Counted on the tensors that Hugging Face layers save: a norm keeps its input in float32, its
    result before and after its weight; attention keeps query, key and value, rotated and not, and
    its result; an MLP four times its width. Attention itself keeps no matrix of pairs.
    """
    norms = 2 * model.hidden * (4 + 2 * _COMPUTED)
    attention = _COMPUTED * 3 * (model.query_width + model.key_width)
    whole = norms + attention + 4 * _COMPUTED * model.mlp_width
    layer_input = _COMPUTED * model.hidden
    kept = {"none": whole, "selective": _products(model) + layer_input, "full": layer_input}
    if learner.offload_activations:
        kept["full"] = 0
    checkpointed = model.num_layers // learner.activation_checkpoint_every
    mode = learner.activation_checkpointing
    if mode == "none":
        return model.num_layers * whole
    left = model.num_layers - checkpointed
    return checkpointed * kept[mode] + left * whole + whole  # one layer is computed again


def _products(model: Architecture) -> int:
    """Results of the matrix products and of attention of a layer, bytes a token."""
    attention = 2 * model.query_width + 2 * model.key_width + model.hidden
    return _COMPUTED * (attention + 2 * model.mlp_width + model.hidden)


def _gathered(model: Architecture, learner: LearnerConfig) -> float:
    """Whole weights in bfloat16 beside the shards, and a gradient on its way to float32."""
    weights = model.root_parameters + _LAYERS_GATHERED * model.layer_parameters
    reduced = 0
    if not learner.lora.rank:
        reduced = max(model.root_parameters, model.layer_parameters)
    return _COMPUTED * weights + (_COMPUTED + 4) * reduced


def _adapters(model: Architecture, learner: LearnerConfig) -> int:
    """Parameters of ``learner.lora``: rank x (in + out) of each linear layer that has one."""
    width = model.mlp_width if not model.num_experts else 0
    sides = {
        "q_proj": model.hidden + model.query_width,
        "k_proj": model.hidden + model.key_width,
        "v_proj": model.hidden + model.key_width,
        "o_proj": model.hidden + model.query_width,
    }
    if width:  # adapters leave experts alone
        sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), model.hidden + width)
    chosen = learner.lora.targets or tuple(sides)
    total = sum(sides.get(name, 0) for name in chosen)
    return learner.lora.rank * model.num_layers * total


def _has_reference_copy(learner: LearnerConfig) -> bool:
    """A second copy of the weights for the KL term; switched-off adapters need none."""
    if learner.loss.kl_coefficient <= 0 or learner.reference != "learner":
        return False
    return not learner.lora.rank or learner.reference_reset_every > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes on the device of one engine, which has one GPU."""

    weights: float
    kv_room: float
    """For the KV cache, after weights and what the engine itself takes; below 0: too little."""
    kv_bytes_per_token: int
    prompt_tokens: float
    mean_decoded: float

    @property
    def mean_context(self) -> float:
        """Tokens in the cache of a running sequence, averaged over time."""
        return self.prompt_tokens + self.mean_decoded

    @property
    def sequences(self) -> int:
        """Sequences of mean context that fit at once."""
        return int(max(0.0, self.kv_room) // (self.kv_bytes_per_token * self.mean_context))

    def longest_sequences(self, longest: int) -> int:
        """Sequences of ``longest`` tokens that fit at once."""
        return int(max(0.0, self.kv_room) // (self.kv_bytes_per_token * longest))


def engine_memory(
    model: Architecture,
    *,
    dtype: str,
    device_bytes: float,
    engine_bytes: float,
    prompt_tokens: float,
    mean_decoded: float,
) -> EngineMemory:
    """``device_bytes`` is the share of the GPU that the engine takes (``gpu_memory_ratio``)."""
    weights = model.num_parameters * DTYPE_BYTES[dtype]
    return EngineMemory(
        weights=weights,
        kv_room=device_bytes - weights - engine_bytes,
        kv_bytes_per_token=model.kv_elements * DTYPE_BYTES[dtype],
        prompt_tokens=prompt_tokens,
        mean_decoded=mean_decoded,
    )
