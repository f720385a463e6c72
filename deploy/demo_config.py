"""Every hyper-parameter of the demo in one place, each with its reason, and the files they become.

The task is chain addition (``7+2+9+4+1+8=``) for a Qwen2-style model of 0.43M parameters. The
cold-start corpus mixes answers given at once with answers worked out digit by digit, so that
reinforcement learning can find out by itself that working it out is what gets the sum right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import (
    ActorConfig,
    CollectConfig,
    Config,
    LearnerConfig,
    ModelConfig,
    PromptsConfig,
    RewardWeight,
    RunConfig,
    SftConfig,
    VerifierConfig,
)

GENERATOR = "chain-addition"

CORPUS_SIZE = 8000
"""Enough that the model learns the two habits, not the sums by heart."""

MAX_TOKENS = 96
"""A fully written chain of six terms takes about 50 tokens; the rest is room to discover it."""
MAX_LENGTH = 128
"""Prompt (13 tokens) plus completion, with room to spare."""

SFT_STEPS = 800
"""Until the written-out habit is right nine times in ten: with half the steps it is right only two
times in three, and reinforcement learning on so few samples does not repair that."""
SFT_BATCH_SIZE = 32
SFT_LEARNING_RATE = 2e-3

NUM_STEPS = 25
"""The curves have flattened by then."""
GROUPS_PER_STEP = 32
GROUP_SIZE = 8
MAX_POLICY_LAG = 2
"""Enough that sampling and training never wait for each other on two cores."""
LEARNING_RATE = 1.5e-4
"""Below what learns fastest, so that the curve can be seen."""
WARMUP_STEPS = 5
MICROBATCH_TOKENS = 2048
"""What fits the caches of one core; the default suits a GPU."""
FORMAT_WEIGHT = 0.2
"""The cold start knows the form already: accuracy is what there is to learn."""
EVAL_PROMPTS = 512
SAMPLES_BEFORE = 4
SAMPLES_AFTER = 16
"""maj@16 needs 16 answers a problem."""

KV_CACHE_BYTES = 64 << 20
"""64 MiB hold four times what 256 completions of MAX_LENGTH need."""
CHECKPOINT_EVERY = 5


@dataclass(frozen=True, slots=True)
class DemoPaths:
    """Where the demo keeps what."""

    root: Path

    @property
    def corpus(self) -> Path:
        """Cold-start prompt and completion pairs."""
        return self.root / "corpus.jsonl"

    @property
    def base_model(self) -> Path:
        """The model with random weights."""
        return self.root / "base"

    @property
    def sft_model(self) -> Path:
        """The model after the cold start, where reinforcement learning begins."""
        return self.root / "sft-model"

    @property
    def sft_run(self) -> Path:
        """Run directory of the cold start."""
        return self.root / "sft"

    @property
    def train_run(self) -> Path:
        """Run directory of the training."""
        return self.root / "train"

    @property
    def trained_model(self) -> Path:
        """The final policy: the export of the training run."""
        return self.train_run / "model"

    def evaluation(self, when: str) -> Path:
        """Run directory of the evaluation ``before`` or ``after`` training."""
        return self.root / f"eval-{when}"

    @property
    def stages(self) -> Path:
        """Which stages are done."""
        return self.root / "stages.json"

    @property
    def summary(self) -> Path:
        """The figures of the finished demo."""
        return self.root / "summary.json"


def sft_config(paths: DemoPaths, seed: int) -> Config:
    """The cold start."""
    return Config(
        run=RunConfig(directory=str(paths.sft_run), id="demo-sft", seed=seed),
        model=ModelConfig(path=str(paths.base_model), max_length=MAX_LENGTH),
        prompts=PromptsConfig(generator=GENERATOR),
        actor=ActorConfig(max_tokens=MAX_TOKENS),
        sft=SftConfig(
            corpus=str(paths.corpus),
            output=str(paths.sft_model),
            num_steps=SFT_STEPS,
            batch_size=SFT_BATCH_SIZE,
            learning_rate=SFT_LEARNING_RATE,
        ),
    )


def train_config(paths: DemoPaths, seed: int, num_steps: int) -> Config:
    """Asynchronous GRPO from the cold-started model."""
    return Config(
        run=RunConfig(directory=str(paths.train_run), id="demo", seed=seed),
        model=ModelConfig(path=str(paths.sft_model), max_length=MAX_LENGTH),
        prompts=PromptsConfig(generator=GENERATOR, split="train"),
        actor=ActorConfig(max_tokens=MAX_TOKENS, kv_cache_bytes=KV_CACHE_BYTES),
        verifier=VerifierConfig(
            rewards=(
                RewardWeight(name="accuracy"),
                RewardWeight(name="format", weight=FORMAT_WEIGHT),
            )
        ),
        learner=LearnerConfig(
            num_steps=num_steps,
            groups_per_step=GROUPS_PER_STEP,
            group_size=GROUP_SIZE,
            max_policy_lag=MAX_POLICY_LAG,
            learning_rate=LEARNING_RATE,
            warmup_steps=WARMUP_STEPS,
            microbatch_tokens=MICROBATCH_TOKENS,
            checkpoint_every=CHECKPOINT_EVERY,
        ),
        collect=CollectConfig(num_prompts=EVAL_PROMPTS, samples_per_prompt=SAMPLES_BEFORE),
    )
