"""Rewards, the models behind them, and the processes that judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.answer_conventions import Convention
from common.thoughts import InsideThought


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
    inside_thought: InsideThought = "auto"
    """Whether completions begin inside the reasoning, for all rewards; ``auto``: where the prompt,
    as the policy reads it, ends in ``<think>``.
    """
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
