"""The training loop (hops: broker -> learner -> actor weights).

Waits for verified groups (unblocked by verifiers), for the weight plane when publication falls
behind, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from common.errors import FatalError
from common.lifecycle import Process
from common.messages import EndRun
from common.trackers import tracker_problems
from common.types import EvictReason
from learner.batches.chunk import Chunk
from learner.batches.group_source import Ending
from learner.broker_client import BrokerClient
from learner.checkpoints.resume import start_or_resume
from learner.checkpoints.step_record import StepStatistics
from learner.health.culprits import find_culprits, without_groups
from learner.health.findings import MAX_NAMED
from learner.health.watch import WatchMemory, read_memory
from learner.metrics.reporting import report_step, watch_step
from learner.metrics.telemetry import NUM_READABLE, ReadableRollout, readable_rollouts
from learner.models.mesh import Mesh
from learner.publication.export import export_model
from learner.publication.publishing import Publisher
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.step.training_batch import StepOutcome, TrainingBatch


def train(process: Process, channel: BrokerClient, mesh: Mesh, publisher: Publisher) -> Ending:
    """Train from where the run stands to ``learner.num_steps``; every rank calls it.

    Returns why training ended. After the last step, or when the prompts are used up, the model is
    exported and the run is over; when stopped, a later start goes on. Raises :class:`FatalError`
    when the run cannot go on.
    """
    for problem in tracker_problems(process.config) if mesh.is_main else ():
        raise problem
    run = build_run(process, channel, mesh, publisher)
    try:
        return _train(run)
    finally:
        if run.telemetry is not None:
            run.telemetry.close()


def _train(run: TrainingRun) -> Ending:
    start_or_resume(run)
    recall_steps(run)
    run.source.references.tell()
    run.publish()
    run.process.ready(version=str(run.lineage.version(run.policy_step)))
    ending = Ending.COMPLETED
    while run.policy_step < run.config.learner.num_steps:
        taken = take_step(run)
        if taken is not None:
            ending = taken
            break
    finish(run, ending)
    return ending


def recall_steps(run: TrainingRun) -> None:
    """Have guards and alarms go on from the step records, the same on every rank; a collective."""
    mine = b""
    if run.mesh.is_main:
        window = run.config.learner.guards.spike_window
        directory = run.process.paths.step_records
        memory = read_memory(directory, run.lineage, run.policy_step, window)
        mine = msgspec.json.encode(memory)
    run.watch.recall(msgspec.json.decode(run.mesh.broadcast(mine), type=WatchMemory))


def take_step(run: TrainingRun) -> Ending | None:
    """One training step, or why there is none."""
    kept: list[Chunk] = []
    limit = run.config.learner.guards.max_skipped
    for _ in range(limit):
        gathered = gather_batch(run, kept)
        if isinstance(gathered, Ending):
            return gathered
        batch, shown = gathered
        with run.stopwatch.stage("step"):
            outcome = run.apply(batch, run.watch.spikes.refuse)
        if outcome.is_taken:
            complete_step(run, batch, outcome, shown)
            return None
        kept = reject_batch(run, batch, outcome)
    raise FatalError(
        f"no step could be taken with {limit} batches in a row at policy_step {run.policy_step}: "
        f"{outcome.refusal or 'loss or gradient was not finite'} (lower learner.learning_rate and "
        "resume from the last checkpoint)"
    )


def gather_batch(
    run: TrainingRun, kept: Sequence[Chunk] = ()
) -> tuple[TrainingBatch, list[ReadableRollout]] | Ending:
    """Pull groups and accumulate their gradients as they come, until the batch is full.

    ``kept`` has been pulled before, and the broker still counts it as handed over.
    """
    batch = run.updater.start_batch(run.policy_step)
    shown: list[ReadableRollout] = []
    waiting = list(kept)
    while len(batch.group_ids) < run.config.learner.groups_per_step:
        if waiting:
            chunk: Chunk | Ending = waiting.pop(0)
        else:
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
    statistics = StepStatistics(
        loss=outcome.loss, grad_norm=outcome.grad_norm, entropy=outcome.mean("entropy")
    )
    with run.stopwatch.stage("commit"):
        run.record_and_commit(batch, statistics)
        run.renew_reference()
        run.source.references.tell()
    run.publish()
    tokens = report_step(run, batch, outcome, shown)
    watch_step(run, batch, statistics, tokens)
    if run.policy_step % run.config.learner.checkpoint_every == 0:
        run.begin_checkpoint()


def reject_batch(run: TrainingRun, batch: TrainingBatch, outcome: StepOutcome) -> list[Chunk]:
    """Drop what must not be trained; others take its place in the same step.

    Of a batch that is not finite the groups go that are not finite by themselves; the rest is
    returned, to be computed again. All go where none is to blame alone, and with a spike.
    """
    dropped, reason = list(batch.group_ids), EvictReason.QUARANTINED
    messages: list[str] = [outcome.refusal]
    if not outcome.finite:
        reason = EvictReason.NONFINITE
        findings = find_culprits(run.updater, run.mesh, batch)
        culprits = {finding.group_id for finding in findings}
        dropped = [group_id for group_id in dropped if group_id in culprits] or dropped
        messages = [finding.message() for finding in findings]
    run.source.evict(dropped, reason)
    if run.mesh.is_main:
        run.process.metrics.inc("headrace_steps_skipped_total")
        run.process.log.warning(
            "batch is not finite" if not outcome.finite else "batch is a spike",
            policy_step=batch.policy_step,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
            evicted=dropped,
            kept=len(batch.group_ids) - len(dropped),
            findings=messages[:MAX_NAMED],
        )
    return without_groups(batch.chunks, dropped)


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
