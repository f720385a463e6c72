"""The stages of the demo and which of them are done: each is one ``headrace`` command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from common.errors import FatalError
from common.files import write_atomically
from deploy import demo_config
from deploy.demo_config import DemoPaths
from deploy.role_commands import headrace_argv


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the demo: a command that can be run again after an interruption."""

    name: str
    title: str
    argv: tuple[str, ...]
    run_directory: Path | None = None
    """Where its telemetry appears, if it is a run."""


class StageResult(msgspec.Struct, frozen=True):
    """What one stage took so far, over all its attempts."""

    seconds: float = 0.0
    peak_rss_bytes: int = 0
    is_done: bool = False


@dataclass(slots=True)
class StageLedger:
    """The stages of one demo directory, written through at each change."""

    paths: DemoPaths
    seed: int
    num_steps: int
    results: dict[str, StageResult] = field(default_factory=dict)

    @classmethod
    def open(cls, paths: DemoPaths, seed: int, num_steps: int) -> StageLedger:
        """Read ``stages.json``; raises :class:`FatalError` when it is of another demo."""
        ledger = cls(paths, seed, num_steps)
        try:
            record = msgspec.json.decode(paths.stages.read_bytes(), type=_LedgerFile)
        except FileNotFoundError:
            return ledger
        except (OSError, msgspec.DecodeError) as error:
            raise FatalError(f"{paths.stages}: cannot be read: {error} (use --force)") from None
        if (record.seed, record.num_steps) != (seed, num_steps):
            raise FatalError(
                f"{paths.root} holds a demo with seed {record.seed} and {record.num_steps} steps, "
                f"not seed {seed} and {num_steps} steps (give the same values, another --out, "
                "or --force to start anew)"
            )
        ledger.results = dict(record.stages)
        return ledger

    def is_done(self, name: str) -> bool:
        """True when stage ``name`` needs not run again."""
        return name in self.results and self.results[name].is_done

    def add(self, name: str, attempt: StageResult) -> None:
        """Add one attempt at stage ``name``, durably."""
        before = self.results.get(name, StageResult())
        self.results[name] = StageResult(
            seconds=before.seconds + attempt.seconds,
            peak_rss_bytes=max(before.peak_rss_bytes, attempt.peak_rss_bytes),
            is_done=attempt.is_done,
        )
        self.save()

    def save(self) -> None:
        """Write ``stages.json``."""
        record = _LedgerFile(self.seed, self.num_steps, self.results)
        write_atomically(self.paths.stages, msgspec.json.format(msgspec.json.encode(record)))


class _LedgerFile(msgspec.Struct, frozen=True):
    seed: int
    num_steps: int
    stages: dict[str, StageResult]


def demo_stages(paths: DemoPaths, seed: int, num_steps: int) -> Sequence[Stage]:
    """All stages in order; configuration files are expected in ``paths.root``."""
    return (
        Stage("corpus", "write the cold-start corpus", _corpus_argv(paths, seed)),
        Stage("model", "make a model of 0.43M parameters", _model_argv(paths, seed)),
        Stage(
            "sft",
            "cold start: supervised fine-tuning",
            headrace_argv("sft", str(paths.root / "sft.toml")),
            paths.sft_run,
        ),
        _evaluation(paths, "before", paths.sft_model, demo_config.SAMPLES_BEFORE),
        Stage(
            "train",
            f"asynchronous GRPO, {num_steps} steps",
            headrace_argv("run", str(paths.root / "train.toml"), "--resume"),
            paths.train_run,
        ),
        _evaluation(paths, "after", paths.trained_model, demo_config.SAMPLES_AFTER),
    )


def _corpus_argv(paths: DemoPaths, seed: int) -> tuple[str, ...]:
    return headrace_argv(
        *("task", demo_config.GENERATOR, "--kind", "corpus", "--split", "train"),
        *("--count", str(demo_config.CORPUS_SIZE), "--seed", str(seed)),
        *("--out", str(paths.corpus)),
    )


def _model_argv(paths: DemoPaths, seed: int) -> tuple[str, ...]:
    return headrace_argv(
        *("tiny-model", "--corpus", str(paths.corpus)),
        *("--out", str(paths.base_model), "--seed", str(seed)),
    )


def _evaluation(paths: DemoPaths, when: str, model: Path, samples: int) -> Stage:
    prompts = demo_config.EVAL_PROMPTS
    return Stage(
        f"eval-{when}",
        f"pass@1 {when} training, {prompts} held-out problems x {samples}",
        headrace_argv(
            *("eval", str(paths.root / "train.toml"), "--model", str(model)),
            *("--num-prompts", str(prompts), "--samples", str(samples)),
            *("--out", str(paths.evaluation(when)), "--resume"),
        ),
        paths.evaluation(when),
    )
