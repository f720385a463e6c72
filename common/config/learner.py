"""The objective and the training that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.config.guards import AlarmsConfig, GuardsConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The policy objective; ``docs/objectives.md`` says which paper is which combination."""

    surrogate: Literal["clip", "cispo", "reinforce"] = "clip"
    """``clip``: PPO's (GRPO, DAPO, GSPO); ``cispo``: a clipped weight; ``reinforce``: no ratio."""
    ratio_level: Literal["token", "sequence", "sequence-mean"] = "token"
    """Importance ratio of a token, of the whole answer, or its geometric mean (GSPO)."""
    clip_low: float = 0.2
    """Lower clip distance of the importance ratio."""
    clip_high: float = 0.2
    """Upper clip distance of the importance ratio."""
    dual_clip: float = 0.0
    """Bound c on the ratio where the advantage is negative, above 1 + clip_high; 0 sets none."""
    proximal: Literal["policy", "interpolated", "behavior"] = "policy"
    """What the clip is anchored at: start of the update, its estimate from the lag, the sampler."""
    correction: Literal["none", "truncate", "mask", "sequence-truncate", "sequence-mask"] = (
        "truncate"
    )
    """Weight by proximal / behavior: truncated (TIS), masked (IcePop), by token or by answer."""
    importance_cap: float = 2.0
    """Upper bound on that weight; ``mask`` drops what is above."""
    importance_floor: float = 0.0
    """``mask`` drops what is below (IcePop: 0.5)."""
    max_divergence: float = 0.0
    """Answers of negative advantage whose mean log(behavior / policy) is above it: no gradient."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy; 0 keeps no reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators; GRPO takes k3 in the loss, PPO k1 in the reward."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL goes: a term of the loss, or off the advantage, summed to the answer's end."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """``token``: sum / tokens (DAPO); ``sequence``: GRPO's mean of means; ``constant``: Dr.GRPO."""
    baseline: Literal["group-mean", "leave-one-out", "batch-mean", "critic"] = "group-mean"
    """What is taken off the reward: GRPO's, RLOO's, REINFORCE++'s, PPO's value model."""
    supervision: Literal["outcome", "process"] = "outcome"
    """What is rewarded: the answer, or each of its steps (DeepSeekMath, 4.1.3)."""
    advantage_over: Literal["group", "batch"] = "group"
    """Over what the advantage is normalised; ``batch`` computes nothing before a batch is full."""
    advantage_std: Literal["population", "sample", "none"] = "sample"
    """Divisor of the advantage; ``none`` is Dr.GRPO and RLOO."""
    advantage_epsilon: float = 1e-6
    """Added to the divisor."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full training."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights. There is no dropout."""
    alpha: float = 32.0
    """The adapters' product counts ``alpha / rank``."""
    targets: tuple[str, ...] = ()
    """Last names of the linear layers that get one (``"q_proj"``); none: all but the head."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The value model of PPO; with ``learner.loss.baseline = "critic"`` only."""

    path: str = ""
    """Model directory it begins as: a reward model, or a language model; empty: ``model.path``."""
    learning_rate: float = 1e-5
    """Peak learning rate of its AdamW; schedule, betas and weight decay are the policy's."""
    max_grad_norm: float = 1.0
    """Gradient clipping by global norm; 0 turns it off."""
    warmup_steps: int = 0
    """Training batches at the start that train the critic alone and leave the policy as it is."""
    discount: float = 1.0
    """gamma."""
    gae_lambda: float = 1.0
    """lambda of the advantages; 1 is the return less the value."""
    value_lambda: float = 1.0
    """lambda of the returns that the critic learns (VC-PPO decouples the two)."""
    length_adaptive: float = 0.0
    """VAPO's alpha: lambda of the advantages = 1 - 1 / (alpha x tokens); 0 takes gae_lambda."""
    value_clip: float = 0.2
    """How far a value may move in a batch before its loss has no gradient; 0 sets no bound."""
    whiten: bool = False
    """Normalise the advantages of all tokens of a batch, by advantage_std and advantage_epsilon."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Training."""

    preset: Literal[
        "",
        "r1-zero",
        "r1-stage-1",
        "r1-stage-2",
        "r1-zero-qwen-32b",
        "deepseek-math",
        "dapo",
        "dr-grpo",
        "gspo",
        "cispo",
        "icepop",
        "rloo",
        "reinforce++",
        "reinforce++-baseline",
        "ppo",
    ] = ""
    """Published settings by name (docs/objectives.md); keys that the file sets win over them."""
    num_ranks: int = 1
    """Ranks that torchrun starts on this machine."""
    context_parallel: int = 1
    """Ranks that each row, and so a long answer, is split over; 1: every rank has its own rows."""
    num_steps: int = 100
    """Training batches of the run."""
    groups_per_step: int = 32
    """Rollout groups in a training batch."""
    group_size: int = 8
    """Completions sampled for one prompt."""
    max_policy_lag: int = 2
    """Hard bound: no token sampled more than so many steps ago contributes gradient."""
    staleness: Literal["wait", "mask_tokens", "drop_group"] = "wait"
    """How the bound is kept: ``wait`` for late groups, mask over-age tokens or drop late groups."""
    dynamic_sampling: bool = False
    """Drop groups whose rewards are all equal and sample others in their place (DAPO)."""
    max_dropped_batches: int = 10
    """Batches of groups dropped in a row, none kept, that stop the run; 0 sets no limit."""
    learning_rate: float = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up, down to its final value at ``num_steps``."""
    final_learning_rate_ratio: float = 0.1
    """Last learning rate of ``linear`` and ``cosine``, as a share of the peak."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moments."""
    weight_decay: float = 0.0
    """AdamW decoupled weight decay."""
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """``matrices`` leaves norms and biases out of the weight decay."""
    optimizer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Element type of AdamW's moments; ``bfloat16`` halves them and is rounded stochastically."""
    max_grad_norm: float = 1.0
    """Gradient clipping by global norm; 0 turns it off."""
    attention: Literal["auto", "sdpa", "flex", "flash"] = "auto"
    """How packed rows attend: document by document, FlexAttention or FlashAttention (GPU)."""
    router_replay: bool = False
    """Mixtures of experts train each token through the experts that vLLM sampled it with (R3)."""
    head_dtype: Literal["model", "float32"] = "model"
    """What the last layer multiplies in; ``float32`` rounds no logit of a bfloat16 model."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed twice to save memory: the cheap ones, or whole layers."""
    activation_checkpoint_every: int = 1
    """Every n-th layer does so; 1: all layers."""
    offload_activations: bool = False
    """What ``full`` keeps of a layer waits in host memory for the backward pass."""
    offload_optimizer: bool = False
    """Sharded weights, gradients and moments stay in host memory; the step is taken there."""
    compile: bool = False
    """Decoder layers go through torch.compile, which needs a C++ compiler."""
    row_tokens: int = 0
    """Length of a packed row; 0 takes what makes a token cheapest."""
    microbatch_tokens: int = 8192
    """Token budget of one forward-backward."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Whole checkpoints kept on disk, at least 2."""
    max_failed_checkpoints: int = 3
    """Checkpoints in a row that cannot be written and stop the run; fewer raise an alarm."""
    stop_grace_s: float = 25.0
    """Seconds from SIGTERM in which the learner checkpoints and ends; then it ends without."""
    rank_timeout_s: float = 8.0
    """Seconds without a sign of life after which a rank counts as dead and the others end."""
    rank_join_timeout_s: float = 120.0
    """Seconds in which all ranks must have met; then those that came end, to be started again."""
    rank_stall_timeout_s: float = 300.0
    """Seconds in which no rank's training thread used a processor; then all end as deadlocked."""
    num_threads: int = 1
    """CPU threads of one rank."""
    reference: Literal["learner", "verifier"] = "learner"
    """Who computes the log-probabilities of the reference policy; a verifier, beside grading."""
    reference_reset_every: int = 0
    """Steps after which the policy becomes the reference (R1: 400); 0 keeps the initial model."""
    updates_per_batch: int = 1
    """Optimizer steps that one pass over a batch is split into at random (R1-Zero: 16)."""
    epochs_per_batch: int = 1
    """Passes over a batch."""
    loss: LossConfig = LossConfig()
    """The policy objective."""
    critic: CriticConfig = CriticConfig()
    """The value model of PPO."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters in place of full training."""
    recorded_steps: int = 100
    """Newest steps whose rollouts stay on disk for ``headrace learner --replay``; 0 keeps none."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the numbers of a step go besides /metrics and the run directory."""
    peak_tflops: float = 0.0
    """What one device can do, for model FLOPs utilisation; 0 looks the device up by its name."""
    guards: GuardsConfig = GuardsConfig()
    """What keeps a bad step off the weights."""
    alarms: AlarmsConfig = AlarmsConfig()
    """What a person should know of."""
    metrics_port: int = 0
    """Port of /metrics of rank 0 on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning on prompt and completion pairs."""

    corpus: str = ""
    """JSON Lines file with ``prompt`` and ``completion``."""
    output: str = ""
    """Model directory to write."""
    num_steps: int = 400
    """Optimizer steps."""
    batch_size: int = 64
    """Examples a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate goes on after the warm-up, down to its final value at ``num_steps``."""
    final_learning_rate_ratio: float = 0.1
    """Last learning rate of ``linear`` and ``cosine``, as a share of the peak."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping by global norm; 0 turns it off."""
