"""Telemetry of one committed step, whether it was just taken or replayed after a restart."""

from __future__ import annotations

from collections.abc import Sequence

from learner.run_state import TrainingRun
from learner.screening import Screen
from learner.step_metrics import ReadableRollout, describe_groups
from learner.update import StepOutcome, TrainingBatch


def report_step(
    run: TrainingRun,
    batch: TrainingBatch,
    outcome: StepOutcome,
    shown: Sequence[ReadableRollout] = (),
) -> None:
    """Write the step's line unless it has one already; a collective call, rank 0 writes."""
    seconds = run.stopwatch.take()
    incarnation = run.lineage.incarnation
    if run.telemetry is None or run.telemetry.has_step(incarnation, batch.policy_step):
        return
    screen = Screen(run.config, run.lineage, batch.policy_step)
    groups = describe_groups(batch.groups, screen)
    run.telemetry.record_step(
        policy_step=batch.policy_step,
        incarnation=incarnation,
        groups=groups,
        outcome=outcome,
        seconds=seconds,
    )
    run.telemetry.record_rollouts(batch.policy_step, shown)
    run.process.metrics.set("headrace_policy_step", batch.policy_step + 1)
    run.process.log.info(
        "step",
        policy_step=batch.policy_step,
        reward=groups["reward_mean"],
        length=groups["response_length_mean"],
        lag_max=groups["lag_max"],
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
    )
