"""The training loop (hops: broker -> learner -> actor weights).

Waits for verified groups (unblocked by verifiers), for the weight plane when publication falls
behind, and for nothing else.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import FatalError
from common.lifecycle import Process
from common.messages import EndRun
from common.types import EvictReason
from learner.broker_client import BrokerClient
from learner.export import export_model
from learner.group_source import Ending
from learner.mesh import Mesh
from learner.publishing import Publisher
from learner.reporting import report_step
from learner.resume import start_or_resume
from learner.run_state import TrainingRun, build_run
from learner.step_metrics import NUM_READABLE, ReadableRollout, readable_rollouts
from learner.update import StepOutcome, TrainingBatch

MAX_NONFINITE_STEPS = 3
"""So many batches in a row without a finite loss and gradient mean that the policy is broken."""


def train(process: Process, channel: BrokerClient, mesh: Mesh, publisher: Publisher) -> Ending:
    """Train from where the run stands to ``learner.num_steps``; every rank calls it.

    Returns why training ended. After the last step, or when the prompts are used up, the model is
    exported and the run is over; when stopped, a later start goes on. Raises :class:`FatalError`
    when the run cannot go on.
    """
    run = build_run(process, channel, mesh, publisher)
    start_or_resume(run)
    run.source.references.tell()
    run.publish()
    process.ready(version=str(run.lineage.version(run.policy_step)))
    ending = Ending.COMPLETED
    while run.policy_step < run.config.learner.num_steps:
        taken = take_step(run)
        if taken is not None:
            ending = taken
            break
    finish(run, ending)
    return ending


def take_step(run: TrainingRun) -> Ending | None:
    """One training step, or why there is none."""
    for _ in range(MAX_NONFINITE_STEPS):
        gathered = gather_batch(run)
        if isinstance(gathered, Ending):
            return gathered
        batch, shown = gathered
        with run.stopwatch.stage("step"):
            outcome = run.apply(batch)
        if outcome.finite:
            complete_step(run, batch, outcome, shown)
            return None
        reject_batch(run, batch, outcome)
    raise FatalError(
        f"loss or gradient was not finite in {MAX_NONFINITE_STEPS} batches in a row at policy_step "
        f"{run.policy_step} (lower learner.learning_rate and resume from the last checkpoint)"
    )


def gather_batch(
    run: TrainingRun,
) -> tuple[TrainingBatch, list[ReadableRollout]] | Ending:
    """Pull groups and accumulate their gradients as they come, until the batch is full."""
    batch = run.updater.start_batch(run.policy_step)
    shown: list[ReadableRollout] = []
    while len(batch.group_ids) < run.config.learner.groups_per_step:
        with run.stopwatch.stage("wait"):
            chunk = run.source.next_chunk(run.lineage, run.policy_step, held=batch.group_ids)
        if isinstance(chunk, Ending):
            return chunk
        with run.stopwatch.stage("compute"):
            run.updater.accumulate(batch, chunk)
        limit = NUM_READABLE - len(shown)
        shown += readable_rollouts(chunk.groups, chunk.documents, limit=limit)
    return batch, shown


def complete_step(
    run: TrainingRun, batch: TrainingBatch, outcome: StepOutcome, shown: list[ReadableRollout]
) -> None:
    """Record, commit, publish, report, and checkpoint when it is time.

    The report comes before the checkpoint: a step that was cut off before its report is then
    replayed at the next start, and reported there.
    """
    with run.stopwatch.stage("commit"):
        run.record_and_commit(batch)
        run.renew_reference()
        run.source.references.tell()
    run.publish()
    report_step(run, batch, outcome, shown)
    if run.policy_step % run.config.learner.checkpoint_every == 0:
        run.checkpoint()


def reject_batch(run: TrainingRun, batch: TrainingBatch, outcome: StepOutcome) -> None:
    """Drop the groups of a batch that is not finite; others take their place in the same step."""
    run.source.evict(batch.group_ids, EvictReason.NONFINITE)
    if run.mesh.is_main:
        run.process.metrics.inc("headrace_steps_skipped_total")
        run.process.log.warning(
            "batch is not finite",
            policy_step=batch.policy_step,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
        )


def finish(run: TrainingRun, ending: Ending) -> None:
    """Checkpoint; if the run is over also export the policy and seal the broker's journal."""
    run.checkpoint()
    if ending is not Ending.STOPPED:
        export_model(
            run.policy,
            run.mesh,
            source=Path(run.config.model.path),
            output=run.process.paths.export,
            dtype=run.config.model.dtype,
        )
        if run.mesh.is_main:
            run.channel.request(EndRun())
