"""Every setting of a run: one TOML file, one frozen dataclass a section.

``common.config_loader`` reads and checks files; this module only says what exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.answer_conventions import Convention

DEFAULT_PROMPT_SET = "default"
"""Name of the one set of a run without ``[[prompts.sets]]``."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What this run is called and where it keeps its state."""

    directory: str
    """Run directory: journal, checkpoints, weights, telemetry. Relative to the config file."""
    id: str = "run"
    """Name in logs, metrics and ids: letters, digits, '-', '_' and '.'."""
    seed: int = 0
    """Seeds prompt order, initialisation and sampling."""
    kind: Literal["train", "collect"] = "train"
    """``train`` ends in a learner, ``collect`` in a collector (evaluation, sampling)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that is trained and sampled."""

    path: str
    """Hugging Face model directory (config.json, safetensors, tokenizer.json)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Element type of published weights and of the engine."""
    max_length: int = 2048
    """Longest prompt plus completion, in tokens."""


@dataclass(frozen=True, kw_only=True)
class PromptSetConfig:
    """One of several prompt sets: exactly one of ``file`` and ``generator``."""

    name: str
    """Name in metrics and in the journal, which keeps the cursor of the set under it."""
    weight: float = 1.0
    """Share of the prompts, relative to the other sets that are not used up."""
    file: str = ""
    """JSON Lines file with ``prompt_id``, ``prompt``, ``task`` and the task's own fields."""
    generator: str = ""
    """``chain-addition``, ``countdown`` or ``reasoning-gym:NAME`` with the name of a dataset."""
    options: dict[str, int | float | str | bool | list[int | float | str]] = field(
        default_factory=dict
    )
    """Options of the generator."""
    split: Literal["train", "held-out"] = "train"
    """Which half of a generator's problems."""
    shuffle: bool = True
    """Shuffle a file anew each epoch, by ``run.seed``."""
    epochs: int = 0
    """Passes over a file or a held-out list; 0: a file without end, a held-out list once."""
    limit: int = 0
    """Stop after this many prompts, 0 for no limit; of held-out problems: how many there are."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Where prompts come from: exactly one of ``file``, ``generator`` and ``sets``."""

    file: str = ""
    """JSON Lines file with ``prompt_id``, ``prompt``, ``task`` and the task's own fields."""
    generator: str = ""
    """``chain-addition``, ``countdown`` or ``reasoning-gym:NAME`` with the name of a dataset."""
    options: dict[str, int | float | str | bool | list[int | float | str]] = field(
        default_factory=dict
    )
    """Options of the generator."""
    split: Literal["train", "held-out"] = "train"
    """Which half of a generator's problems."""
    shuffle: bool = True
    """Shuffle a file anew each epoch, by ``run.seed``."""
    epochs: int = 0
    """Passes over a file or a held-out list; 0: a file without end, a held-out list once."""
    limit: int = 0
    """Stop after this many prompts, 0 for no limit; of held-out problems: how many there are."""
    sets: tuple[PromptSetConfig, ...] = ()
    """Several sets with weights, in place of the keys above."""
    retire_pass_rate: float = 0.0
    """A prompt is solved by a group with at least this share of right answers; 0 retires none."""
    retire_after: int = 2
    """Groups in a row that must solve a prompt before later epochs pass it by."""
    template: Literal["plain", "r1-zero", "chat"] = "plain"
    """How a prompt becomes model input: as it is, R1-Zero's paragraph, or the chat template."""

    @property
    def all_sets(self) -> tuple[PromptSetConfig, ...]:
        """The sets; a source without a table of its own is the set ``default``."""
        if self.sets:
            return self.sets
        only = PromptSetConfig(
            name=DEFAULT_PROMPT_SET,
            file=self.file,
            generator=self.generator,
            options=self.options,
            split=self.split,
            shuffle=self.shuffle,
            epochs=self.epochs,
            limit=self.limit,
        )
        return (only,)


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """The broker: durable queue between all roles."""

    endpoint: str = "ipc"
    """``ipc`` for a private local socket, or ``tcp://host:port``, which needs security.keys."""
    allow_plaintext_tcp: bool = False
    """TCP without keys, neither authenticated nor encrypted: it must be asked for by name."""
    heartbeat_s: float = 2.0
    """Clients are heard of this often."""
    dead_after_s: float = 15.0
    """A client silent for so long has lost its leases; model loads hold a process for seconds."""
    max_attempts: int = 3
    """Deliveries of one piece of work that may end in an error before it is dead-lettered."""
    max_group_s: float = 0.0
    """A group unverified so long after its first lease is dead-lettered; 0 sets no limit."""
    max_outstanding_groups: int = 64
    """Groups in flight in a ``collect`` run, where no lag bound limits them."""
    no_progress_s: float = 600.0
    """The broker gives up when all roles are present and nothing has moved for so long."""
    max_absence_s: float = 7200.0
    """Longest absence of a role, for example a requeued learner, before the broker gives up."""
    acks: Literal["durable", "relaxed"] = "durable"
    """An acknowledged record survives a crash of the machine, or (``relaxed``) of the process."""
    journal_segment_bytes: int = 67108864
    """Size of one file of the journal; disk is given back by the file."""
    max_journal_bytes: int = 0
    """Disk that the journal takes; when it is used up, rollouts wait. 0: as much as there is."""
    max_memory_bytes: int = 536870912
    """Memory of the broker process: producers wait and readers take turns before it is passed."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class StoresConfig:
    """Where the arrays of rollouts are kept; the ledger is always with the broker."""

    payloads: Literal["broker", "store", "direct"] = "broker"
    """``broker``; ``store``: processes of their own; ``direct``: in memory, at the actor."""
    count: int = 1
    """Stores that a local run starts where ``payloads`` is ``store``."""
    endpoint: str = "ipc"
    """``ipc``, or ``tcp://host:port``: ``*`` is every address of the machine, 0 a free port."""
    acks: Literal["durable", "relaxed"] = "durable"
    """``durable``: kept arrays survive a crash of the machine; ``relaxed``: of the store."""
    segment_bytes: int = 67108864
    """Size of one file of a store's log; disk is given back by the file."""
    hot_bytes: int = 268435456
    """Arrays that one store also keeps in memory, so that they are sent without being read."""
    max_bytes: int = 68719476736
    """Disk that one store takes; when it is used up, puts go elsewhere or wait."""
    direct_bytes: int = 1073741824
    """Memory for arrays in one actor (``direct``); when it is used up, sampling waits."""
    patience_s: float = 120.0
    """A store that does not answer for so long has lost what it held."""
    sweep_s: float = 2.0
    """How often a payload server asks which groups have ended."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """Generation."""

    count: int = 1
    """Actors that a local run starts."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """``vllm`` is the engine; ``transformers`` the slow, light one for machines without it."""
    max_tokens: int = 1024
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; the learner applies the same."""
    max_num_seqs: int = 256
    """Completions sampled at once by one engine."""
    kv_cache_bytes: int = 268435456
    """KV cache of one engine on CPU."""
    gpu_memory_ratio: float = 0.85
    """Share of a GPU's memory that an engine takes."""
    num_threads: int = 1
    """CPU threads of one actor process."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class RewardWeight:
    """One term of the total reward."""

    name: str
    """``accuracy``, ``format``, ``language``, ... (docs/rewards.md); any name with a ``kind``."""
    weight: float = 1.0
    """Factor of this term; with 0 it is judged and shown, and does not count."""
    kind: str = ""
    """Kind of check that judges it; empty: what the name stands for."""
    module: str = ""
    """A function of your own that judges it: ``rewards/mine.py:score``, or ``package.module:f``."""
    data: Literal["all", "reasoning", "general"] = "all"
    """Tasks that it is for: with a rule (``reasoning``), judged by a model (``general``), all."""
    prompt_sets: tuple[str, ...] = ()
    """Prompt sets that it is for; none named: all."""
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    """Options of the term or of its kind of check."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """The watch for reward hacking."""

    action: Literal["off", "warn", "pause"] = "warn"
    """What an alarm does: nothing, a line in the log, or the verifier takes no more work."""
    window: int = 512
    """Verdicts that are compared with as many earlier ones."""
    proxy: str = ""
    """Term that is compared with the truth; empty: ``accuracy``, or the whole reward without it."""
    truth: str = ""
    """Stricter term that is not rewarded (weight 0) and must not fall; empty: none."""
    min_change: float = 0.1
    """Smallest rise of the reward, and fall of the truth, that count together."""
    max_exploit_ratio: float = 0.05
    """Share of answers in the window that may look like a known exploit."""
    max_repeat_ratio: float = 0.5
    """Mean share of repeated 4-grams in the window's answers."""
    max_length_growth: float = 4.0
    """Mean length may grow by this factor while the reward does not; 0: any."""
    min_reward_std: float = 0.0
    """Spread of rewards below which the window counts as collapsed; 0: never."""


@dataclass(frozen=True, kw_only=True)
class VerifierModelConfig:
    """One model that judges answers: weights on disk, or a judge behind an endpoint."""

    kind: Literal["helpful", "safety", "process", "judge"]
    """Name of the reward. ``helpful`` reads the final summary, ``safety`` and ``process`` all."""
    path: str = ""
    """Hugging Face directory of a sequence or token classifier; not for ``judge``."""
    device: str = "auto"
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Element type of the weights; ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    max_tokens: int = 8192
    """Longest prompt and answer that the model reads; a longer answer is worth ``minimum``.
    For a judge, whose tokens are not known, four characters of the summary are one.
    """
    template: Literal["plain", "chat"] = "chat"
    """``chat``: the model's own chat template; ``plain``: the answer right after the prompt."""
    output: Literal["sigmoid", "raw"] = "sigmoid"
    """``sigmoid``: values from 0 to 1; ``raw``: the model's logit."""
    minimum: float = 0.0
    """Least value, and that of an answer with nothing to score."""
    inside_thought: bool = False
    """The prompt template opens the reasoning: an answer that never closes it has no summary."""
    positive_label: int = -1
    """Which of several outputs means good, counted from 0, or from the end below 0."""
    steps: Literal["blank-line", "newline", "numbered"] = "blank-line"
    """What stands between two steps (``process``)."""
    step_token: str = ""
    """Token put after every step, whose output is its score; without one, its last token's."""
    aggregation: Literal["min", "product"] = "min"
    """Values of the steps -> value of the answer."""
    url: str = ""
    """Base of an OpenAI-compatible endpoint, such as ``http://127.0.0.1:8000/v1`` (``judge``)."""
    model: str = ""
    """Name of the model at the endpoint (``judge``)."""
    verdict: Literal["correct", "score"] = "correct"
    """``correct``: right or wrong by the gold answer; ``score``: 0 to 10, given as 0 to 1."""
    api_key_variable: str = ""
    """Environment variable that holds the endpoint's key; "" sends none."""
    timeout_s: float = 60.0
    """Longest wait for one answer of the judge."""
    attempts: int = 3
    """Tries for an answer when the endpoint fails or does not follow the grammar."""
    concurrency: int = 16
    """Requests to the judge at once."""
    directory: str = ""
    """Where the judge keeps its cache and the log of all it was asked (``judge``)."""


@dataclass(frozen=True, kw_only=True)
class VerifierConfig:
    """Verification."""

    count: int = 1
    """Verifiers that a local run starts."""
    num_workers: int = 1
    """Killable child processes of one verifier."""
    wall_limit_s: float = 10.0
    """Wall-clock limit of one verification, enforced from outside the child."""
    memory_limit_bytes: int = 2147483648
    """Address space of one child, and of each process of a program of kind code."""
    unsafe_no_sandbox: bool = False
    """Run programs of kind code without isolation where no sandbox holds; every summary says so."""
    preset: Literal["", "r1-zero", "r1-stage-1", "r1-stage-2"] = ""
    """R1's reward of a stage by name, in place of ``rewards``."""
    extract: tuple[Convention, ...] = ()
    """Math: ``answer-tag``, ``boxed``, ``final-answer``, ``last-number``; empty: the first 3."""
    language: str = "en"
    """BCP 47 tag that the term ``language`` asks for where its options do not say."""
    rewards: tuple[RewardWeight, ...] = (
        RewardWeight(name="accuracy"),
        RewardWeight(name="format"),
    )
    """Terms of the total reward."""
    monitor: MonitorConfig = MonitorConfig()
    """The watch for reward hacking."""
    models: tuple[VerifierModelConfig, ...] = ()
    """Models that judge answers, each for the reward of its kind."""
    model_batch_tokens: int = 16384
    """Tokens of one forward of a scoring model; a longer sequence is computed alone."""
    model_queue_tokens: int = 262144
    """Tokens that wait for a scoring model; what comes after them waits outside."""
    model_batch_limit_s: float = 120.0
    """A forward that takes longer is lost, with its process, and its answers are judged again."""
    model_load_limit_s: float = 600.0
    """Longest start of a scoring process and load of one model."""
    model_threads: int = 1
    """CPU threads of a scoring process."""
    reference_device: str = "auto"
    """Where the reference policy is computed under ``learner.reference = "verifier"``."""
    reference_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Its element type; ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


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
    baseline: Literal["group-mean", "leave-one-out", "batch-mean"] = "group-mean"
    """What is taken off the reward: GRPO's, RLOO's, REINFORCE++'s."""
    advantage_over: Literal["group", "batch"] = "group"
    """Over what the advantage is normalised; ``batch`` computes nothing before a batch is full."""
    advantage_std: Literal["population", "sample", "none"] = "sample"
    """Divisor of the advantage; ``none`` is Dr.GRPO and RLOO."""
    advantage_epsilon: float = 1e-6
    """Added to the divisor."""


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
    ] = ""
    """Published settings by name (docs/objectives.md); keys that the file sets win over them."""
    num_ranks: int = 1
    """Data-parallel ranks that torchrun starts on this machine."""
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
    head_dtype: Literal["model", "float32"] = "model"
    """What the last layer multiplies in; ``float32`` rounds no logit of a bfloat16 model."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed twice to save memory: the cheap ones, or whole layers."""
    activation_checkpoint_every: int = 1
    """Every n-th layer does so; 1: all layers."""
    row_tokens: int = 0
    """Length of a packed row; 0 takes the longest sequence of the microbatch."""
    microbatch_tokens: int = 8192
    """Token budget of one forward-backward."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept on disk."""
    num_threads: int = 1
    """CPU threads of one rank."""
    reference: Literal["learner", "verifier"] = "learner"
    """Who computes the log-probabilities of the reference policy; a verifier, beside grading."""
    reference_reset_every: int = 0
    """Steps after which the policy becomes the reference (R1: 400); 0 keeps the initial model."""
    loss: LossConfig = LossConfig()
    """The policy objective."""
    metrics_port: int = 0
    """Port of /metrics of rank 0 on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The weight plane from learner to actors."""

    transfer: Literal["group", "pull"] = "group"
    """``group``: process group of learner and actors, with pull as the fallback; ``pull`` only."""
    backend: Literal["gloo", "nccl"] = "gloo"
    """``gloo``: through host memory; ``nccl``: where learner and actors have a GPU of their own."""
    bucket_bytes: int = 67108864
    """Bytes of one broadcast."""
    deadline_s: float = 30.0
    """Longest wait for any peer of a transfer."""
    keep_versions: int = 4
    """Published versions kept under weights/."""
    canary_tolerance: float = 1e-3
    """Largest difference in nats between learner and engine on the canary sequences."""
    interface: str = "127.0.0.1"
    """Address that the learner's rendezvous store listens on."""


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


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A run whose consumer writes metrics or data instead of training."""

    output: str = ""
    """Directory for results."""
    num_prompts: int = 512
    """Prompts to answer."""
    samples_per_prompt: int = 4
    """Completions for each prompt."""


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """Who may take part."""

    keys: str = ""
    """Directory of CURVE keys made by ``headrace keys``; without one, only local sockets."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    run: RunConfig
    model: ModelConfig
    prompts: PromptsConfig = PromptsConfig()
    broker: BrokerConfig = BrokerConfig()
    security: SecurityConfig = SecurityConfig()
    stores: StoresConfig = StoresConfig()
    actor: ActorConfig = ActorConfig()
    verifier: VerifierConfig = VerifierConfig()
    learner: LearnerConfig = LearnerConfig()
    weights: WeightsConfig = WeightsConfig()
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()

    @property
    def group_size(self) -> int:
        """Completions per prompt: the learner's or the collector's."""
        if self.run.kind == "collect":
            return self.collect.samples_per_prompt
        return self.learner.group_size

    @property
    def max_outstanding_groups(self) -> int:
        """(max_policy_lag + 1) x groups_per_step: more could not meet their deadlines."""
        if self.run.kind == "collect":
            return self.broker.max_outstanding_groups
        return (self.learner.max_policy_lag + 1) * self.learner.groups_per_step

    @property
    def max_rollout_bytes(self) -> int:
        """Arrays of the longest rollout: an id for each token, a log-probability where sampled."""
        return 4 * (self.model.max_length + self.actor.max_tokens)

    @property
    def has_verifier_reference(self) -> bool:
        """Whether verifiers compute log-probabilities of a reference policy."""
        has_kl = self.run.kind == "train" and self.learner.loss.kl_coefficient > 0
        return has_kl and self.learner.reference == "verifier"

    @property
    def rollouts_per_step(self) -> int:
        """groups_per_step x group_size."""
        return self.learner.groups_per_step * self.learner.group_size


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run keeps what: every path below the run directory has its one name here."""

    root: Path

    @property
    def journal(self) -> Path:
        """Directory of the broker's journal."""
        return self.root / "broker" / "journal"

    @property
    def stores(self) -> Path:
        """Logs of the stores, one directory a store."""
        return self.root / "stores"

    @property
    def endpoint_file(self) -> Path:
        """Where the broker can be reached; read again at each reconnect."""
        return self.root / "broker" / "endpoint"

    @property
    def checkpoints(self) -> Path:
        """Learner checkpoints, one directory a step."""
        return self.root / "learner" / "checkpoints"

    @property
    def step_records(self) -> Path:
        """Durable step records, one file a step."""
        return self.root / "learner" / "steps"

    @property
    def lineage(self) -> Path:
        """Incarnations of the weights and where they forked."""
        return self.root / "learner" / "lineage.json"

    @property
    def weights(self) -> Path:
        """Published weights, one directory a version."""
        return self.root / "weights"

    @property
    def references(self) -> Path:
        """Float32 weights that became the reference policy, one directory a version."""
        return self.root / "references"

    @property
    def export(self) -> Path:
        """Hugging Face export of the final policy."""
        return self.root / "model"

    @property
    def telemetry(self) -> Path:
        """JSON Lines of steps, sample rollouts and metric scrapes."""
        return self.root / "telemetry"

    @property
    def samples(self) -> Path:
        """What a collector has finished so far; as old as the journal that it answers to."""
        return self.root / "collector" / "samples.jsonl"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.root / "logs"

    @property
    def ready(self) -> Path:
        """One JSON file for each live process: pid, metrics port, state."""
        return self.root / "processes"
