"""Numbers of a step to experiment trackers: TensorBoard, Weights & Biases, Trackio.

Their packages are optional and imported when the first step is written. A tracker that fails is
left out from then on: the run's own telemetry has everything, and no step is lost for a curve.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from structlog.stdlib import BoundLogger

from common.config import Config, RunPaths

PROJECT = "headrace"


class Tracker(Protocol):
    """One place for numbers."""

    def log(self, policy_step: int, values: Mapping[str, float]) -> None:
        """The numbers of the batch computed at ``policy_step``."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


class TensorBoardTracker:
    """Event files under ``telemetry/tensorboard``; each start adds a file."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer: Any = module.SummaryWriter(str(paths.telemetry / "tensorboard"))

    def log(self, policy_step: int, values: Mapping[str, float]) -> None:
        """Scalars, on disk when this returns."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, policy_step)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, or with the same interface a Trackio one.

    Where it goes (offline too) is for their own settings to say: ``WANDB_MODE``,
    ``WANDB_BASE_URL``, ``TRACKIO_DIR``. A resumed run goes on under the same id.
    """

    def __init__(self, config: Config, paths: RunPaths, package: str = "wandb") -> None:
        module = importlib.import_module(package)
        options: dict[str, Any] = {}
        if package == "wandb":
            options = {
                "id": run_identity(config),
                "dir": str(paths.telemetry),
                "settings": module.Settings(console="off", silent=True),
            }
        self._module = module
        self._run: Any = module.init(
            project=PROJECT,
            name=run_identity(config),
            config=dataclasses.asdict(config),
            resume="allow",
            **options,
        )

    def log(self, policy_step: int, values: Mapping[str, float]) -> None:
        """One step of history."""
        self._module.log(dict(values), step=policy_step)

    def close(self) -> None:
        """End the run, and wait until it is written."""
        self._module.finish()


_KINDS: Mapping[str, Callable[[Config, RunPaths], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": lambda config, paths: WandbTracker(config, paths, "trackio"),
}


class Trackers:
    """All trackers of ``learner.trackers``."""

    def __init__(self, config: Config, paths: RunPaths, log: BoundLogger) -> None:
        self._config = config
        self._paths = paths
        self._log = log
        self._open: dict[str, Tracker] | None = None

    def log_step(self, policy_step: int, row: Mapping[str, object]) -> None:
        """The numbers of one line of ``steps.jsonl``."""
        if self._open is None:
            self._start_all()
        values = dict(flat_numbers(row))
        for name, tracker in list((self._open or {}).items()):
            self._guarded(name, partial(tracker.log, policy_step, values))

    def close(self) -> None:
        """Close all that were opened."""
        for name, tracker in list((self._open or {}).items()):
            self._guarded(name, tracker.close)
        self._open = {}

    def _start_all(self) -> None:
        started: dict[str, Tracker] = {}
        for name in self._config.learner.trackers:
            self._guarded(name, partial(self._start, name, started))
        self._open = started

    def _start(self, name: str, started: dict[str, Tracker]) -> None:
        started[name] = _KINDS[name](self._config, self._paths)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # theirs: network, disk, accounts
            if self._open is not None:
                self._open.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            self._log.warning("tracker failed and is left out", tracker=name, reason=reason)


def flat_numbers(row: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of ``row``; those of tables inside it as ``table/key``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def run_identity(config: Config) -> str:
    """The run's name with a few digits of where it lies: two runs of one name stay apart."""
    where = hashlib.sha256(str(Path(config.run.directory)).encode()).hexdigest()[:8]
    return f"{config.run.id}-{where}"
