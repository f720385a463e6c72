"""Gauges of the prompt sets; the configuration bounds how many there are."""

from __future__ import annotations

from broker.prompts.state import PromptsState
from common.metrics import Metrics


def export_prompts(metrics: Metrics, state: PromptsState) -> None:
    """Write what is known of each set, and what the last training batch cost."""
    for name, item in state.sets.items():
        metrics.set("headrace_prompts_drawn", item.num_drawn, prompt_set=name)
        metrics.set("headrace_prompts_retired", item.num_retired, prompt_set=name)
        metrics.set("headrace_answers_judged", item.num_judged, prompt_set=name)
        metrics.set("headrace_answers_passed", item.num_passed, prompt_set=name)
        if item.pass_ratio is not None:
            metrics.set("headrace_pass_ratio", item.pass_ratio, prompt_set=name)
    metrics.set("headrace_prompts_per_batch", state.judged_per_batch)
