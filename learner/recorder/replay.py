"""``headrace learner --replay STEP``: compute a step of a run again, exactly, and look into it.

The nearest checkpoint at or before the step is loaded and the steps from there are taken again from
their records and recordings; each must arrive at the digest of its record. Nothing of the run is
touched: the learner works in a directory of its own, in which the run's checkpoints, records and
references are links, and asks no broker. So a run can be looked into while it goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from common.codec import Buffer, Decoded
from common.config import Config, RunPaths
from common.config_loader import run_paths
from common.errors import EXIT_OK, CheckpointError, FatalError
from common.lifecycle import Process, StopFlag, exit_code_for_errors
from common.logs import configure_logs
from common.messages import Request
from common.metrics import Metrics
from common.types import VerifiedGroup, WeightVersion
from common.weight_layout import Canary
from learner.batches.chunk import Chunk
from learner.checkpoints.checkpoint import checkpoint_path, complete_checkpoints, read_state
from learner.checkpoints.lineage import Lineage, read_lineage
from learner.checkpoints.step_record import StepRecord, read_step_record, record_path
from learner.models.mesh import Mesh, learner_mesh
from learner.models.model import PolicyModel
from learner.recorder.flight_recorder import read_recording, recording_path
from learner.recorder.replay_report import Replayed, write_replay
from learner.recorder.token_rows import TokenRecorder, TokenRow
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.step.preparation import has_several_updates


def run_replay(config: Config, policy_step: int, out: Path) -> int:
    """Replay ``policy_step`` on this rank and write what it found under ``out``; the exit code."""
    context_parallel = config.learner.context_parallel
    with exit_code_for_errors() as outcome, learner_mesh(context_parallel) as mesh:
        replayed = replay(config, mesh, policy_step)
        if mesh.is_main:
            write_replay(config, replayed, out)
    return outcome.code or EXIT_OK


def replay(config: Config, mesh: Mesh, policy_step: int) -> Replayed:
    """What every token of the batch computed at ``policy_step`` contributed; a collective.

    Rows and groups are on rank 0. Raises :class:`CheckpointError` when the step cannot be computed
    again, with the steps that can, and :class:`FatalError` when it does not come out as recorded.
    """
    paths = run_paths(config)
    lineage = read_lineage(paths.lineage)
    start = _agreed_start(paths, lineage, mesh, policy_step)
    with mirrored(paths) as mirror:
        run = build_run(_Onlooker(config, mirror), _NoBroker(), mesh, _NoPublisher())
        run.lineage = lineage
        run.restore(start)
        for step in range(start, policy_step):
            _take_again(run, paths, step)
        return _look_into(run, paths, policy_step, start)


def replayable_steps(paths: RunPaths, lineage: Lineage) -> list[int]:
    """Steps that a checkpoint leads to over recordings of every rank without a gap."""
    found: set[int] = set()
    for checkpoint in _own_checkpoints(paths, lineage):
        step = checkpoint
        while _is_recorded(paths, lineage, step):
            found.add(step)
            step += 1
    return sorted(found)


def _agreed_start(paths: RunPaths, lineage: Lineage, mesh: Mesh, policy_step: int) -> int:
    """What rank 0 finds, on every rank; so is its error."""
    answer = {"step": 0, "problem": ""}
    if mesh.is_main:
        try:
            answer["step"] = starting_checkpoint(paths, lineage, policy_step)
        except CheckpointError as error:
            answer["problem"] = str(error)
    agreed = msgspec.json.decode(mesh.broadcast(msgspec.json.encode(answer)), type=_Start)
    if agreed.problem:
        raise CheckpointError(agreed.problem)
    return agreed.step


def starting_checkpoint(paths: RunPaths, lineage: Lineage, policy_step: int) -> int:
    """The newest checkpoint from which ``policy_step`` can be reached.

    Raises :class:`CheckpointError` with the steps that can be replayed.
    """
    usable = [step for step in _own_checkpoints(paths, lineage) if step <= policy_step]
    for checkpoint in sorted(usable, reverse=True):
        steps = range(checkpoint, policy_step + 1)
        if all(_is_recorded(paths, lineage, step) for step in steps):
            return checkpoint
    possible = replayable_steps(paths, lineage)
    raise CheckpointError(
        f"{paths.recordings}: step {policy_step} cannot be replayed, {_described(possible)} can "
        "(a step needs its recording and those back to a checkpoint: raise learner.recorded_steps "
        "and learner.keep_checkpoints to keep more)"
    )


@contextmanager
def mirrored(paths: RunPaths) -> Iterator[RunPaths]:
    """A directory that looks like the run's and ends with the block; writes stay in it."""
    with tempfile.TemporaryDirectory(prefix="headrace-replay-") as name:
        mirror = RunPaths(Path(name))
        for own, theirs in (
            (mirror.checkpoints, paths.checkpoints),
            (mirror.step_records, paths.step_records),
            (mirror.references, paths.references),
        ):
            own.mkdir(parents=True)
            for path in theirs.iterdir() if theirs.is_dir() else ():
                (own / path.name).symlink_to(path.resolve())
        yield mirror


def _take_again(run: TrainingRun, paths: RunPaths, step: int) -> None:
    record, chunks = _recorded(run, paths, step)
    batch = run.updater.start_batch(step)
    for chunk in chunks:
        run.updater.accumulate(batch, chunk)
    run.apply(batch)
    _check_digest(run, record)
    run.policy_step = step + 1
    run.renew_reference()


def _look_into(run: TrainingRun, paths: RunPaths, step: int, start: int) -> Replayed:
    record, chunks = _recorded(run, paths, step)
    documents = {key: item for chunk in chunks for key, item in chunk.documents.items()}
    recorder = TokenRecorder(documents)
    batch = run.updater.start_batch(step)
    batch.observer = recorder
    for chunk in chunks:
        run.updater.accumulate(batch, chunk)
    outcome = run.apply(batch)
    _check_digest(run, record)
    several = has_several_updates(run.config.learner)
    rows = recorder.rows(None if several else batch.denominator)
    return Replayed(
        policy_step=step,
        checkpoint=start,
        weight_digest=record.weight_digest,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        groups=_all_groups(chunks),
        rows=_gathered(run.mesh, rows),
        prompts=_gathered_prompts(run.mesh, chunks),
    )


def _recorded(run: TrainingRun, paths: RunPaths, step: int) -> tuple[StepRecord, list[Chunk]]:
    incarnation = run.lineage.incarnation_at(step)
    record = read_step_record(record_path(paths.step_records, step, incarnation))
    if record.world_size != run.mesh.world_size:
        raise FatalError(
            f"step {step} was computed by {record.world_size} ranks and must be replayed by as "
            f"many, got {run.mesh.world_size} (torchrun --nproc-per-node {record.world_size} "
            "--no-python headrace learner CONFIG --replay STEP)"
        )
    if (found := record.context_parallel) != run.mesh.context_size:
        raise FatalError(
            f"step {step} was computed with learner.context_parallel = {found} and must be so "
            f"again, got {run.mesh.context_size} (set learner.context_parallel = {found})"
        )
    if record.reference_version not in (None, run.reference_version):
        raise FatalError(
            f"step {step} was computed with the reference {record.reference_version}, got "
            f"{run.reference_version} (set learner.loss.kl_coefficient and "
            "learner.reference_reset_every as the run had them)"
        )
    path = recording_path(paths.recordings, step, incarnation, run.mesh.rank)
    chunks = read_recording(path)
    if tuple(chunk.layout for chunk in chunks) != record.chunks:
        raise CheckpointError(
            f"{path}: the recording is of another batch than {record.group_ids[:4]}... of the step "
            "record (replay a step that begins at a later checkpoint)"
        )
    return record, chunks


def _check_digest(run: TrainingRun, record: StepRecord) -> None:
    found = run.digest()
    if found != record.weight_digest:
        raise FatalError(
            f"step {record.policy_step} comes out with digest {found}, its record says "
            f"{record.weight_digest} (replay with the configuration, the package versions and the "
            "kind of machine that the run had)"
        )


def _is_recorded(paths: RunPaths, lineage: Lineage, step: int) -> bool:
    """Whether the step's record and the rollouts of all its ranks are there."""
    incarnation = lineage.incarnation_at(step)
    record = record_path(paths.step_records, step, incarnation)
    if not record.exists():
        return False
    ranks = range(read_step_record(record).world_size)
    files = (recording_path(paths.recordings, step, incarnation, rank) for rank in ranks)
    return all(file.exists() for file in files)


def _own_checkpoints(paths: RunPaths, lineage: Lineage) -> list[int]:
    """Whole checkpoints that lie on the current branch."""
    return [
        step
        for step in complete_checkpoints(paths.checkpoints)
        if not lineage.is_lost(
            WeightVersion(
                incarnation=read_state(checkpoint_path(paths.checkpoints, step)).incarnation,
                policy_step=step,
            )
        )
    ]


def _described(steps: Sequence[int]) -> str:
    """``steps`` as ranges: 3-5, 8."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and parts[-1][-1] == step - 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    named = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return ", ".join(named) or "none"


def _all_groups(chunks: Sequence[Chunk]) -> tuple[VerifiedGroup, ...]:
    return tuple(group for chunk in chunks for group in chunk.groups)


def _gathered(mesh: Mesh, rows: list[TokenRow]) -> list[TokenRow]:
    shares = mesh.gather_over_data(msgspec.msgpack.encode(rows))
    if not mesh.is_main:
        return []
    found = [row for share in shares for row in msgspec.msgpack.decode(share, type=list[TokenRow])]
    return sorted(found, key=lambda row: (row.group_id, row.index, row.visit, row.position))


def _gathered_prompts(mesh: Mesh, chunks: Sequence[Chunk]) -> dict[int, list[int]]:
    """Prompt tokens by group, from whichever rank has them."""
    own = {
        rollout_id.group_id: document.prompt_token_ids.tolist()
        for chunk in chunks
        for rollout_id, document in chunk.documents.items()
    }
    found: dict[int, list[int]] = {}
    for share in mesh.gather(msgspec.msgpack.encode(own)):
        found |= msgspec.msgpack.decode(share, type=dict[int, list[int]])
    return found


class _Start(msgspec.Struct, frozen=True):
    step: int
    problem: str


class _Onlooker(Process):
    """A process that serves no pages and writes into the mirror only."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        self.config = config
        self.paths = paths
        self.role, self.name = "learner", "replay"
        self.metrics = Metrics()
        self.log = configure_logs(config.run.id, self.role, self.name)
        self.stop = StopFlag()


class _NoBroker:
    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """A replay has everything on disk."""
        raise AssertionError(f"a replay asks no broker, it asked {type(message).__name__}")


class _NoPublisher:
    def publish(self, version: WeightVersion, policy: PolicyModel, canary: Canary) -> None:
        """A replay publishes nothing."""
        self._refuse()

    def wait_for_room(self) -> None:
        """A replay publishes nothing."""

    def close(self) -> None:
        """Nothing to end."""

    def _refuse(self) -> NoReturn:
        raise AssertionError("a replay publishes no weights")
