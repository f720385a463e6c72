"""One run with all its roles on this machine: supervisor, telemetry and display together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from common.config import Config, RunPaths
from common.config_loader import run_paths
from common.endpoints import read_endpoint
from common.errors import EXIT_INTERRUPTED, FatalError, InfraError
from common.files import write_atomically
from common.messages import GetStatus, Status
from common.security import client_security
from common.sync_channel import SyncChannel
from common.types import Role
from deploy.gpu_assignment import visible_gpus
from deploy.progress import ProgressDisplay
from deploy.progress_state import ProgressState, collect_progress, run_progress
from deploy.role_commands import process_specs
from deploy.supervisor import RunOutcome, Supervisor, free_port, run_lock, stop_on_signals
from deploy.telemetry import TelemetryThread
from deploy.telemetry_records import RecordTail, Scrape, StepRecord, latest_by_step

_STATUS_TIMEOUT_S = 10.0
FINAL_STATUS = "final_status.json"
"""File in ``telemetry/`` with the broker's last :class:`Status`."""


def run_locally(config: Config, config_path: Path, *, title: str) -> RunOutcome:
    """Run every role of ``config``, which ``config_path`` holds, until the run ends.

    Raises :class:`FatalError` when it cannot go on or when its directory is in use.
    """
    paths = run_paths(config)
    telemetry = TelemetryThread(paths)
    display = ProgressDisplay(progress_reader(config, paths, title))

    def on_finished() -> None:
        telemetry.scrape_now()
        save_final_status(config, paths)

    supervisor = Supervisor(
        process_specs(config, config_path.resolve(), master_port=free_port(), gpus=visible_gpus()),
        paths,
        on_tick=display.tick,
        on_finished=on_finished,
    )
    with run_lock(paths), stop_on_signals() as stop:
        telemetry.start()
        try:
            with display:
                outcome = supervisor.run(stop)
        finally:
            telemetry.stop()
    if outcome.exit_code not in (0, EXIT_INTERRUPTED):
        raise FatalError(outcome.reason)
    return outcome


def has_state(paths: RunPaths) -> bool:
    """True when the run directory holds a run that was begun."""
    folders = (paths.checkpoints, paths.step_records, paths.weights)
    return paths.journal.exists() or any(f.is_dir() and any(f.iterdir()) for f in folders)


def progress_reader(config: Config, paths: RunPaths, title: str) -> Callable[[], ProgressState]:
    """A function that reads what is new in the telemetry and returns the state of the run."""
    step_tail = RecordTail(paths.telemetry / "steps.jsonl", StepRecord)
    scrape_tail = RecordTail(paths.telemetry / "scrapes.jsonl", Scrape)
    steps: list[StepRecord] = []
    scrapes: list[Scrape] = []

    def read() -> ProgressState:
        steps.extend(step_tail.read_new())
        scrapes.extend(scrape_tail.read_new())
        if config.run.kind == "collect":
            return collect_progress(title, scrapes, num_prompts=config.collect.num_prompts)
        return run_progress(
            title,
            latest_by_step(steps),
            scrapes,
            num_steps=config.learner.num_steps,
            max_policy_lag=config.learner.max_policy_lag,
        )

    return read


def save_final_status(config: Config, paths: RunPaths) -> None:
    """Ask the broker for its last state and keep it; a broker that is gone leaves no file."""
    try:
        status = fetch_status(config, paths)
    except InfraError:
        return
    paths.telemetry.mkdir(parents=True, exist_ok=True)
    write_atomically(paths.telemetry / FINAL_STATUS, msgspec.json.encode(named(status)))


def fetch_status(config: Config, paths: RunPaths) -> Status:
    """The broker's state now; raises :class:`InfraError` when it does not answer."""
    channel = SyncChannel.connect(
        role=Role.SUPERVISOR,
        name="supervisor",
        endpoint=read_endpoint(config, paths),
        security=client_security(config, Role.SUPERVISOR, "supervisor"),
        timeout_s=_STATUS_TIMEOUT_S,
    )
    try:
        reply = channel.request(GetStatus(), timeout_s=_STATUS_TIMEOUT_S).message
    finally:
        channel.close()
    if not isinstance(reply, Status):
        raise InfraError(f"the broker answered GetStatus with {type(reply).__name__}")
    return reply


def named(status: Status) -> dict[str, object]:
    """``status`` with names, for files that people and other programs read."""
    return {
        "run_id": status.run_id,
        "groups": {name: getattr(status.groups, name) for name in status.groups.__struct_fields__},
        "evicted": {item.name: item.count for item in status.evicted},
        "policy_step": status.policy_step,
        "incarnation": status.incarnation,
        "newest_version": str(status.newest_version) if status.newest_version else None,
        "weight_syncs": status.weight_syncs,
        "weight_proofs_failed": status.weight_proofs_failed,
        "duplicates": status.duplicates,
        "redelivered": status.redelivered,
        "sealed": status.sealed,
    }
