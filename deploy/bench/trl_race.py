"""What both sides of ``headrace bench trl`` are given: model, prompts, settings."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import (
    ActorConfig,
    Config,
    LearnerConfig,
    LossConfig,
    ModelConfig,
    PromptsConfig,
    RewardWeight,
    RunConfig,
    SftConfig,
    VerifierConfig,
)
from common.config_loader import to_toml
from common.errors import FatalError
from deploy.role_commands import headrace_argv

_GENERATOR = "chain-addition"
_SFT_STEPS = 800
_PROMPT_TOKENS = 32
_CORPUS_SIZE = 8000
_PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Race:
    """What both sides are given."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    num_steps: int = 16
    groups_per_step: int = 32
    group_size: int = 8
    num_terms: tuple[int, ...] = (3, 4, 6, 8, 12)
    """Of the problems, as many of one kind as of another."""
    max_tokens: int = 128
    learning_rate: float = 1e-4
    max_policy_lag: int = 1
    """Of headrace; TRL samples and trains in turns, which is lag 0."""
    trl_threads: tuple[int, ...] = (1, 2)
    """Of TRL's one process: what is fastest in a few steps is taken. headrace's have one each."""


def prepare(folder: Path, race: Race) -> None:
    """Cold-started model and prompts, unless the folder holds them."""
    if (folder / "model").exists():
        return
    corpus, base = folder / "corpus.jsonl", folder / "base"
    _write_problems(folder, race, corpus, "corpus", count=_CORPUS_SIZE, seed=0)
    for seed in race.seeds:
        count = race.num_steps * race.groups_per_step
        _write_problems(
            folder, race, prompts_file(folder, seed), "prompts", count=count, seed=1 + seed
        )
    run_headrace(folder, "tiny-model", "--corpus", str(corpus), "--out", str(base))
    sft = Config(
        run=RunConfig(directory=str(folder / "sft"), id="bench-trl-sft"),
        model=ModelConfig(path=str(base), max_length=race.max_tokens + _PROMPT_TOKENS),
        prompts=PromptsConfig(generator=_GENERATOR),
        actor=ActorConfig(max_tokens=race.max_tokens),
        sft=SftConfig(
            corpus=str(corpus),
            output=str(folder / "model"),
            num_steps=_SFT_STEPS,
            batch_size=32,
            learning_rate=2e-3,
        ),
    )
    (folder / "sft.toml").write_text(to_toml(sft), encoding="utf-8")
    run_headrace(folder, "sft", str(folder / "sft.toml"))


def _write_problems(
    folder: Path, race: Race, target: Path, kind: str, *, count: int, seed: int
) -> None:
    """At least ``count`` prompts, or pairs of a corpus, of all sizes in random order."""
    lines: list[str] = []
    for num_terms in race.num_terms:
        part = folder / "part.jsonl"
        size = ("--count", str(-(-count // len(race.num_terms))), "--seed", str(seed))
        which = ("--kind", kind, "--option", f"num_terms={num_terms}")
        run_headrace(folder, "task", _GENERATOR, *which, *size, "--out", str(part))
        lines += part.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(seed).shuffle(lines)
    target.write_text("".join(lines), encoding="utf-8")


def headrace_config(folder: Path, race: Race, seed: int) -> Config:
    """The run file of one lap; the objective is the one that TRL calls ``dapo``."""
    return Config(
        run=RunConfig(
            directory=str(folder / f"headrace-{seed}"), id=f"bench-trl-{seed}", seed=seed
        ),
        model=ModelConfig(path=str(folder / "model"), max_length=race.max_tokens + _PROMPT_TOKENS),
        prompts=PromptsConfig(file=str(prompts_file(folder, seed)), shuffle=False),
        actor=ActorConfig(max_tokens=race.max_tokens, kv_cache_bytes=64 << 20),
        verifier=VerifierConfig(rewards=(RewardWeight(name="accuracy"),)),
        learner=LearnerConfig(
            num_steps=race.num_steps,
            groups_per_step=race.groups_per_step,
            group_size=race.group_size,
            max_policy_lag=race.max_policy_lag,
            learning_rate=race.learning_rate,
            microbatch_tokens=2048,
            checkpoint_every=race.num_steps,
            loss=LossConfig(proximal="behavior", correction="none", advantage_epsilon=1e-4),
        ),
    )


def prompts_file(folder: Path, seed: int) -> Path:
    return folder / f"prompts-{seed}.jsonl"


def run_headrace(folder: Path, *arguments: str) -> None:
    output_of(folder, headrace_argv(*arguments), num_threads=1)


def output_of(folder: Path, argv: Sequence[str], *, num_threads: int) -> str:
    """Standard output of a command; raises :class:`FatalError` with its last words."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
        cwd=folder,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": str(num_threads)},
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.strip().splitlines()[-3:]).removeprefix("headrace: ")
        raise FatalError(f"{' '.join(itertools.islice(argv, 2, 5))} failed: {said}")
    return done.stdout
