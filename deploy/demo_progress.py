"""What the demo shows while it runs: its stages, and the telemetry of the one under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.clock import Clock, MonotonicClock
from common.config import RunPaths
from common.config_loader import load_config, run_paths
from common.errors import FatalError
from deploy.demo_config import SFT_STEPS, DemoPaths
from deploy.demo_stages import Stage, StageLedger
from deploy.evaluation import read_metrics
from deploy.local_run import progress_reader
from deploy.progress_state import ProgressState, StageLine, StageState
from deploy.run_analysis import series
from deploy.stage_runner import StageEnd
from deploy.telemetry_records import RecordTail, SftRecord, read_records, read_steps

_TITLE = "demo"


class DemoProgress:
    """Reads the state of the demo for the display."""

    def __init__(
        self,
        paths: DemoPaths,
        stages: Sequence[Stage],
        ledger: StageLedger,
        clock: Clock | None = None,
    ) -> None:
        self._paths = paths
        self._clock = clock or MonotonicClock()
        self._began_s = 0.0
        self._read_run: Callable[[], ProgressState] | None = None
        self._lines = {stage.name: self._line(stage, ledger) for stage in stages}

    def begin(self, stage: Stage) -> None:
        """``stage`` runs from now on."""
        self._began_s = self._clock.now_s()
        self._read_run = self._reader(stage)
        self._lines[stage.name] = StageLine(stage.title, StageState.RUNNING)

    def end(self, stage: Stage, end: StageEnd) -> None:
        """``stage`` has ended."""
        seconds = end.result.seconds
        if end.result.is_done:
            line = StageLine(
                stage.title, StageState.DONE, seconds, stage_result(self._paths, stage.name)
            )
        elif end.exit_code is None:
            line = StageLine(stage.title, StageState.STOPPED, seconds)
        else:
            line = StageLine(stage.title, StageState.FAILED, seconds)
        self._lines[stage.name] = line
        self._read_run = None

    def read(self) -> ProgressState:
        """The state now."""
        elapsed_s = self._clock.now_s() - self._began_s
        lines = tuple(
            replace(line, seconds=elapsed_s) if line.state is StageState.RUNNING else line
            for line in self._lines.values()
        )
        state = self._read_run() if self._read_run is not None else ProgressState(_TITLE)
        return replace(state, stages=lines)

    def _line(self, stage: Stage, ledger: StageLedger) -> StageLine:
        if not ledger.is_done(stage.name):
            return StageLine(stage.title, StageState.PENDING)
        seconds = ledger.results[stage.name].seconds
        result = stage_result(self._paths, stage.name)
        return StageLine(stage.title, StageState.DONE, seconds, result)

    def _reader(self, stage: Stage) -> Callable[[], ProgressState] | None:
        if stage.name == "sft":
            return _sft_reader(self._paths.sft_run)
        if stage.name == "train":
            config = load_config(self._paths.root / "train.toml")
            return progress_reader(config, run_paths(config), _TITLE)
        if stage.run_directory is not None:
            return _evaluation_reader(self._paths, stage.run_directory)
        return None


def stage_result(paths: DemoPaths, name: str) -> str:
    """One short line about what stage ``name`` achieved; empty where there is nothing to say."""
    if name in ("eval-before", "eval-after"):
        try:
            metrics = read_metrics(paths.evaluation(name.removeprefix("eval-")) / "results")
        except FatalError:
            return ""
        return f"pass@1 {metrics.pass_at_1:.3f}, {metrics.mean_length:.1f} tokens"
    if name == "sft":
        records = read_records(RunPaths(paths.sft_run).telemetry / "sft.jsonl", SftRecord)
        return f"loss {records[0].loss:.2f} -> {records[-1].loss:.2f}" if records else ""
    if name == "train":
        steps = read_steps(RunPaths(paths.train_run).telemetry / "steps.jsonl")
        rewards = series(steps, lambda step: step.reward_mean)
        return f"reward {rewards[0][1]:.2f} -> {rewards[-1][1]:.2f}" if rewards else ""
    return ""


def _sft_reader(run_directory: Path) -> Callable[[], ProgressState]:
    tail = RecordTail(RunPaths(run_directory).telemetry / "sft.jsonl", SftRecord)
    records: list[SftRecord] = []

    def read() -> ProgressState:
        records.extend(tail.read_new())
        done = records[-1].step + 1 if records else 0
        losses = tuple(record.loss for record in records)
        return ProgressState(_TITLE, steps_done=done, num_steps=SFT_STEPS, losses=losses)

    return read


def _evaluation_reader(paths: DemoPaths, run_directory: Path) -> Callable[[], ProgressState]:
    """Waits for the run file that the evaluation writes for itself."""
    reader: list[Callable[[], ProgressState]] = []

    def read() -> ProgressState:
        run_file = run_directory / "eval.toml"
        if not reader and run_file.exists():
            config = load_config(run_file)
            reader.append(progress_reader(config, run_paths(config), _TITLE))
        return reader[0]() if reader else ProgressState(_TITLE)

    return read
