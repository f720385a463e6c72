"""What must hold of a run directory whatever was killed, while nothing runs and at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.errors import CheckpointError
from learner.checkpoints.checkpoint import INCOMPLETE, is_whole, read_state
from learner.checkpoints.checkpoint_tensors import file_checksum
from learner.checkpoints.lineage import read_lineage
from learner.checkpoints.step_record import StepRecord, read_step_record, record_path
from tests.chaos.learner.remote_broker import BrokerServer


def check_checkpoints(directory: Path, *, at_least: int) -> Iterator[str]:
    """Every directory under its final name is whole to the last bit, and enough are left."""
    found = [path for path in sorted(directory.glob("*")) if INCOMPLETE not in path.name]
    for path in found:
        try:
            damaged = [
                name
                for name, entry in read_state(path).files.items()
                if file_checksum(path / name) != entry.checksum
            ]
            if damaged or not is_whole(path):
                yield f"checkpoint {path.name} is not whole: {damaged}"
        except (CheckpointError, OSError) as error:
            yield f"checkpoint {path.name} cannot be read: {error}"
    if len(found) < at_least:
        yield f"{len(found)} checkpoints are left of {at_least}"


def published(root: Path) -> tuple[dict[str, str], list[str]]:
    """Digest of every version that was published; versions that had two."""
    digests: dict[str, str] = {}
    doubles = []
    file = root / "published.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        if digests.setdefault(row["version"], row["digest"]) != row["digest"]:
            doubles.append(f"version {row['version']} was published with two contents")
    return digests, doubles


def check_groups(root: Path, server: BrokerServer, *, num_steps: int) -> Iterator[str]:
    """Every group that was handed over is in one step, and records and broker agree on which."""
    forks = read_lineage(root / "run/learner/lineage.json").forks
    if forks:
        yield f"weights could not be reproduced: {forks}"
        return
    records = [_record(root, step) for step in range(num_steps)]
    trained = Counter(item for record in records for item in record.group_ids)
    for group_id, count in trained.items():
        if count > 1:
            yield f"group {group_id} was trained {count} times"
    lost = set(range(server.broker.next_group)) - trained.keys()
    if lost:
        yield f"groups {sorted(lost)} were handed over and never trained"
    if server.broker.trained != trained.keys():
        wrong = sorted(server.broker.trained ^ trained.keys())
        yield f"the broker and the step records disagree on groups {wrong}"
    for record in records:
        if server.commits.get(record.policy_step) != record.group_ids:
            yield f"step {record.policy_step} was committed with other groups than recorded"


def check_same(root: Path, undisturbed: Path) -> Iterator[str]:
    """Every published version and the exported model are the bits of the run left alone."""
    ours, doubles = published(root)
    theirs, _ = published(undisturbed)
    yield from doubles
    for version, digest in theirs.items():
        if ours.get(version, digest) != digest:
            yield f"version {version} has other weights than in the undisturbed run"
    last = max(theirs, key=lambda name: int(name.split(".")[1]))
    if last not in ours:
        yield f"version {last} was never published"
    model = "run/model/model.safetensors"
    if (root / model).read_bytes() != (undisturbed / model).read_bytes():
        yield "the exported model differs from that of the undisturbed run"


def _record(root: Path, step: int) -> StepRecord:
    return read_step_record(record_path(root / "run/learner/steps", step, 0))
