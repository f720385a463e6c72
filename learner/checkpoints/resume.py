"""Start a run, or go on where it ended: newest checkpoint, then the step records after it.

If the replay arrives at the recorded digests, nothing that was published is lost and the run goes
on under the same incarnation. If it does not (another number of ranks, another machine, payloads
gone), the published weights cannot be made again, and the run goes on from the checkpoint under a
new incarnation, which is durable before the first weights of it exist.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.errors import CheckpointError, RefusedError
from common.messages import GetStatus, ResumeLearner, Status, SteppedBatch
from common.types import Count
from learner.batches.group_source import ENDED_GROUPS
from learner.checkpoints.checkpoint import (
    CheckpointState,
    checkpoint_path,
    newest_checkpoint,
    read_state,
)
from learner.checkpoints.checkpoint_writer import remove_incomplete
from learner.checkpoints.lineage import Lineage, read_lineage, write_lineage
from learner.checkpoints.step_record import StepRecord, has_records_beyond, records_after
from learner.metrics.reporting import report_step
from learner.run_state import TrainingRun

_OLDER_JOURNAL = "older_journal"
"""Refusal of a broker whose journal is shorter than the checkpoint knows it to have been."""


class ResumePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What rank 0 found on disk; the same for every rank."""

    lineage: Lineage
    checkpoint_step: Count | None
    records: tuple[StepRecord, ...] = ()
    complete: bool = True
    """False when a record after a gap cannot be reached by replaying."""


def start_or_resume(run: TrainingRun) -> None:
    """Bring ``run`` to the last step that it made durable; a collective."""
    if run.mesh.is_main:
        remove_incomplete(run.process.paths.checkpoints)
    plan = _shared_plan(run)
    run.lineage = plan.lineage
    if plan.checkpoint_step is None:
        _tell_broker(run, plan)
        run.checkpoint()
        return
    _refuse_other_broker(run, plan.checkpoint_step)
    run.restore(plan.checkpoint_step)
    if not (plan.complete and _tell_broker(run, plan) and _replay(run, plan.records)):
        _fork(run, plan.checkpoint_step)
    run.commit_checkpoint()
    if run.mesh.is_main:
        run.process.log.info(
            "resumed",
            checkpoint=plan.checkpoint_step,
            replayed=run.policy_step - plan.checkpoint_step,
            version=str(run.lineage.version(run.policy_step)),
        )


def read_plan(run: TrainingRun) -> ResumePlan:
    """Look at checkpoints, lineage and step records of this run."""
    paths = run.process.paths
    lineage = read_lineage(paths.lineage)
    step = newest_checkpoint(paths.checkpoints)
    if step is None:
        _refuse_lost_checkpoints(run, lineage)
        return ResumePlan(lineage=lineage, checkpoint_step=None)
    records = records_after(paths.step_records, step, lineage.incarnation)
    next_step = step + len(records)
    return ResumePlan(
        lineage=lineage,
        checkpoint_step=step,
        records=tuple(records),
        complete=not has_records_beyond(paths.step_records, next_step, lineage.incarnation),
    )


def _refuse_lost_checkpoints(run: TrainingRun, lineage: Lineage) -> None:
    """Without a checkpoint only a run that never took a step may begin: versions are used once."""
    paths = run.process.paths
    if lineage.forks or has_records_beyond(paths.step_records, 0, lineage.incarnation):
        raise CheckpointError(
            f"{paths.checkpoints}: this run has taken steps but no whole checkpoint is left "
            "(restore one, or set another run.directory to train anew)"
        )


def _shared_plan(run: TrainingRun) -> ResumePlan:
    mine = msgspec.json.encode(read_plan(run)) if run.mesh.is_main else b""
    return msgspec.json.decode(run.mesh.broadcast(mine), type=ResumePlan)


def _refuse_other_broker(run: TrainingRun, checkpoint_step: int) -> None:
    """The broker must have committed every step that the checkpoint has: that came first.

    Raises :class:`CheckpointError` on every rank where its journal is older, or of another run.
    """
    problem = b""
    if run.mesh.is_main:
        path = checkpoint_path(run.process.paths.checkpoints, checkpoint_step)
        status = run.channel.request(GetStatus()).message
        if not isinstance(status, Status):
            raise CheckpointError(f"the broker answered GetStatus with {type(status).__name__}")
        problem = _older_journal(path, read_state(path), status).encode()
    if problem := run.mesh.broadcast(problem):
        raise CheckpointError(problem.decode())


def _older_journal(path: Path, state: CheckpointState, status: Status) -> str:
    """How the broker's journal does not belong to the checkpoint, or ""."""
    cure = (
        "look at the journal with headrace journal check and restore the newest copy of this run, "
        "or set another run.directory to train anew"
    )
    if state.run_id != status.run_id:
        return (
            f"{path}: it is of run {state.run_id}, the broker's journal of {status.run_id} ({cure})"
        )
    if status.policy_step < state.policy_step:
        return (
            f"{path}: it holds {state.policy_step} steps, but the broker's journal only "
            f"{status.policy_step}: groups that were trained would be sampled again ({cure})"
        )
    return ""


def _tell_broker(run: TrainingRun, plan: ResumePlan) -> bool:
    """Say where the learner stands; False when groups that it would replay have ended."""
    stepped = tuple(
        SteppedBatch(policy_step=record.policy_step, group_ids=record.group_ids)
        for record in plan.records
    )
    return _resume_at_broker(run, plan.lineage, plan.checkpoint_step or 0, stepped)


def _resume_at_broker(
    run: TrainingRun,
    lineage: Lineage,
    checkpoint_step: int,
    stepped: tuple[SteppedBatch, ...] = (),
    *,
    forked: bool = False,
) -> bool:
    """False when groups of ``stepped`` have ended; a collective.

    Raises :class:`CheckpointError` on every rank where the broker's journal is shorter than the
    checkpoint knows it to have been.
    """
    message = ResumeLearner(
        incarnation=lineage.incarnation,
        policy_step=checkpoint_step,
        stepped=stepped,
        forked=forked,
        num_journal_events=run.commits.num_journal_events,
    )
    code, reason = run.mesh.broadcast(_refusal(run, message)).decode().split(":", 1)
    if code == _OLDER_JOURNAL:
        path = checkpoint_path(run.process.paths.checkpoints, checkpoint_step)
        raise CheckpointError(f"{path}: {reason}")
    return not code


def _refusal(run: TrainingRun, message: ResumeLearner) -> bytes:
    """``code:reason`` of a refusal that the learner can act upon, ``:`` without one; of rank 0."""
    if run.mesh.is_main:
        try:
            run.commits.tell(message)
        except RefusedError as error:
            if error.code not in ENDED_GROUPS | {_OLDER_JOURNAL}:
                raise
            return f"{error.code}:{error.reason}".encode()
    return b":"


def _replay(run: TrainingRun, records: tuple[StepRecord, ...]) -> bool:
    """Take the recorded steps again; False as soon as one cannot be reproduced."""
    return all(_replay_step(run, record) for record in records)


def _replay_step(run: TrainingRun, record: StepRecord) -> bool:
    if record.world_size != run.mesh.world_size:
        return False
    if record.context_parallel != run.mesh.context_size:
        return False
    if record.reference_version not in (None, run.reference_version):
        return False
    batch = run.updater.start_batch(record.policy_step)
    for chunk in run.source.replay_chunks(run.lineage, record.policy_step, record.chunks):
        if chunk is None:
            return False
        run.updater.accumulate(batch, chunk)
    outcome = run.apply(batch)
    if not outcome.finite or run.digest() != record.weight_digest:
        return False
    run.policy_step = record.policy_step + 1
    run.renew_reference()
    report_step(run, batch, outcome)
    return True


def _fork(run: TrainingRun, checkpoint_step: int) -> None:
    """Open a new incarnation at the checkpoint: durable first, then told, then used."""
    lineage = run.lineage.forked(checkpoint_step)
    if run.mesh.is_main:
        write_lineage(run.process.paths.lineage, lineage)
    run.mesh.broadcast()
    run.lineage = lineage
    run.restore(checkpoint_step)
    if run.mesh.is_main:
        run.process.log.warning(
            "published weights could not be reproduced", incarnation=lineage.incarnation
        )
    _resume_at_broker(run, lineage, checkpoint_step, forked=True)
