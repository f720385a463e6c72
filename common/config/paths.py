"""Names of everything below a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run keeps what: every path below the run directory has its one name here."""

    root: Path

    @property
    def journal(self) -> Path:
        """Directory of the broker's journal."""
        return self.root / "broker" / "journal"

    @property
    def stores(self) -> Path:
        """Logs of the stores, one directory a store."""
        return self.root / "stores"

    @property
    def endpoint_file(self) -> Path:
        """Where the broker can be reached; read again at each reconnect."""
        return self.root / "broker" / "endpoint"

    @property
    def checkpoints(self) -> Path:
        """Learner checkpoints, one directory a step."""
        return self.root / "learner" / "checkpoints"

    @property
    def step_records(self) -> Path:
        """Durable step records, one file a step."""
        return self.root / "learner" / "steps"

    @property
    def recordings(self) -> Path:
        """What recent steps trained on, one file a step and rank."""
        return self.root / "learner" / "recordings"

    @property
    def lineage(self) -> Path:
        """Incarnations of the weights and where they forked."""
        return self.root / "learner" / "lineage.json"

    @property
    def weights(self) -> Path:
        """Published weights, one directory a version."""
        return self.root / "weights"

    @property
    def references(self) -> Path:
        """Float32 weights that became the reference policy, one directory a version."""
        return self.root / "references"

    @property
    def export(self) -> Path:
        """Hugging Face export of the final policy."""
        return self.root / "model"

    @property
    def telemetry(self) -> Path:
        """JSON Lines of steps, sample rollouts and metric scrapes."""
        return self.root / "telemetry"

    @property
    def samples(self) -> Path:
        """What a collector has finished so far; as old as the journal that it answers to."""
        return self.root / "collector" / "samples.jsonl"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.root / "logs"

    @property
    def ready(self) -> Path:
        """One JSON file for each live process: pid, metrics port, state."""
        return self.root / "processes"
