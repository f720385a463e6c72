"""Telemetry and alarms of one committed step, whether it was just taken or replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.errors import FatalError
from learner.batches.screening import Screen
from learner.checkpoints.step_record import StepStatistics
from learner.health.replica_check import compare_replicas
from learner.metrics.efficiency import describe_efficiency, model_cost, peak_flops, peak_memory
from learner.metrics.step_metrics import describe_groups, describe_tokens
from learner.metrics.telemetry import ReadableRollout
from learner.metrics.token_statistics import TokenStatistics
from learner.run_state import TrainingRun
from learner.step.training_batch import StepOutcome, TrainingBatch


def report_step(
    run: TrainingRun,
    batch: TrainingBatch,
    outcome: StepOutcome,
    shown: Sequence[ReadableRollout] = (),
) -> TokenStatistics:
    """Write the step's line unless it has one already; a collective call, rank 0 writes.

    Returns the statistics of all ranks, on every rank.
    """
    seconds = run.stopwatch.take()
    tokens = TokenStatistics.merged(run.mesh.gather_over_data(batch.statistics.encode()))
    memory = peak_memory(run.mesh)
    incarnation = run.lineage.incarnation
    if run.telemetry is None or run.telemetry.has_step(incarnation, batch.policy_step):
        return tokens
    groups = describe_groups(batch.groups, Screen(run.config, run.lineage, batch.policy_step))
    run.telemetry.record_step(
        policy_step=batch.policy_step,
        incarnation=incarnation,
        groups=groups,
        outcome=outcome,
        seconds=seconds,
        more=describe_tokens(tokens, batch.denominator)
        | _efficiency(run, batch, seconds)
        | {"rss_peak_bytes": memory.rss, "device_peak_bytes": memory.device or None},
    )
    run.telemetry.record_rollouts(batch.policy_step, shown)
    _log_step(run, batch, outcome, groups)
    return tokens


def _log_step(
    run: TrainingRun, batch: TrainingBatch, outcome: StepOutcome, groups: Mapping[str, object]
) -> None:
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


def watch_step(
    run: TrainingRun, batch: TrainingBatch, taken: StepStatistics, tokens: TokenStatistics
) -> None:
    """Raise the alarms of a step that was taken and compare the ranks; a collective.

    Raises :class:`FatalError` where an alarm is to stop the run, and where ranks differ.
    """
    alarms = run.watch.judge(taken, tokens)
    for name, alarm in run.watch.changes(alarms):
        if not run.mesh.is_main:
            continue
        run.process.metrics.set("headrace_learner_alarm", int(alarm is not None), alarm=name)
        if alarm is None:
            run.process.log.info("alarm over", alarm=name, policy_step=batch.policy_step)
        else:
            run.process.log.warning(
                "ALARM", alarm=name, policy_step=batch.policy_step, reason=alarm.message()
            )
    if alarms and run.config.learner.alarms.action == "stop":
        raise FatalError(
            f'learner.alarms.action is "stop" and at policy_step {batch.policy_step} '
            f"{alarms[0].message()}"
        )
    every = run.config.learner.guards.digest_every
    if every and run.policy_step % every == 0:
        compare_replicas(run.policy, run.optimizer, run.mesh, batch.policy_step)


def _efficiency(
    run: TrainingRun, batch: TrainingBatch, seconds: dict[str, float]
) -> dict[str, float]:
    rollouts = [item for chunk in batch.chunks for item in chunk.kept_rollouts.values()]
    return describe_efficiency(
        num_tokens=sum(rollout.num_trained_tokens for rollout in rollouts),
        flops=model_cost(run.policy).flops(rollouts),
        seconds=seconds,
        peak=peak_flops(run.mesh.device, run.config.learner.peak_tflops),
        num_devices=run.mesh.world_size,
    )
