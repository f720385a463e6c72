"""The result of an evaluation as the collector leaves it, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.errors import FatalError

METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.jsonl"


class EvaluationMetrics(msgspec.Struct, frozen=True):
    """What ``metrics.json`` of a ``collect`` run says; the interval is over prompts."""

    num_prompts: int
    samples_per_prompt: int
    pass_at_1: float
    pass_at_1_interval_95: tuple[float, float]
    maj_at: dict[str, float]
    """Accuracy of the majority vote of the first k answers, by k."""
    mean_length: float
    format_mean: float | None = None
    truncated_ratio: float | None = None

    @property
    def majority(self) -> float:
        """Accuracy of the vote of all answers."""
        return self.maj_at[str(self.samples_per_prompt)]


class SampleRecord(msgspec.Struct, frozen=True):
    """One answer in ``samples.jsonl``."""

    prompt_id: str
    index: int
    prompt: str
    completion: str
    reward: float
    accuracy: float
    num_tokens: int


def read_metrics(folder: Path) -> EvaluationMetrics:
    """The metrics in ``folder``; raises :class:`FatalError` when they are missing or malformed."""
    file = folder / METRICS_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=EvaluationMetrics)
    except FileNotFoundError:
        raise FatalError(f"{file}: no such file (the evaluation did not finish)") from None
    except (OSError, msgspec.DecodeError) as error:
        raise FatalError(f"{file}: cannot be read: {error}") from None


def metrics_table(metrics: EvaluationMetrics) -> str:
    """The figures as aligned lines of text."""
    low, high = metrics.pass_at_1_interval_95
    samples = metrics.samples_per_prompt
    rows = [
        ("problems", f"{metrics.num_prompts:,} x {samples} answers"),
        ("pass@1", f"{metrics.pass_at_1:.3f}  (95 % interval {low:.3f} to {high:.3f})"),
        (f"maj@{samples}", f"{metrics.majority:.3f}"),
        ("mean length", f"{metrics.mean_length:.1f} tokens"),
    ]
    if metrics.format_mean is not None:
        rows.append(("well-formed", f"{metrics.format_mean:.1%}"))
    if metrics.truncated_ratio is not None:
        rows.append(("cut off", f"{metrics.truncated_ratio:.1%}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
