"""How long training stands still for a checkpoint: ``python -m learner.studies.checkpoint_study``.

Prints one JSON object. A model with its AdamW moments, on one rank, is checkpointed in two ways
that take turns and write the same files: *asynchronous* the loop leaves a copy and computes on,
*synchronous* it waits until the checkpoint has its name. Beside them as many bytes are written to
one file and synced, with no checksum and nothing read back. Time is wall time: the disk is what is
waited for. While the background thread writes, the loop multiplies matrices, and how much slower
that is than alone is a cost, too. ``python -m ... FOLDER`` writes under FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.checkpoints.checkpoint import CheckpointState, checkpoint_path, read_state
from learner.checkpoints.checkpoint_tensors import Trainees
from learner.checkpoints.checkpoint_writer import CheckpointWriter
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel
from learner.step.optim import build_adamw

REPEATS = 5
HIDDEN_SIZE = 512
NUM_LAYERS = 8
VOCABULARY = 4096
MATRIX_SIZE = 512
_PIECE_BYTES = 8 << 20
_LIMIT_S = 120.0
"""For one checkpoint; one that failed says so when it is settled."""


@dataclass(slots=True)
class Turns:
    """Seconds of each turn."""

    stalled_s: list[float] = field(default_factory=list)
    """An asynchronous checkpoint: until the loop goes on."""
    written_s: list[float] = field(default_factory=list)
    """The same: until it has its name, with the loop computing meanwhile."""
    synchronous_s: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    slow_down: list[float] = field(default_factory=list)
    """Time of a matrix product while a checkpoint is written over that alone."""


def main(arguments: list[str]) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    folder = arguments[0] if arguments else None
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=folder) as name:
        json.dump(study(Path(name), make_trainees(HIDDEN_SIZE, NUM_LAYERS), REPEATS), sys.stdout)


def study(folder: Path, trainees: Trainees, repeats: int) -> dict[str, object]:
    """Seconds of all turns, after one that warms up, and what a checkpoint holds."""
    writer = CheckpointWriter(folder, Mesh(0, 1, torch.device("cpu"), None), keep=2)
    turns, num_bytes = Turns(), 0
    for turn in range(repeats + 1):
        if turn == 1:
            turns = Turns()
        take_turn(writer, trainees, turns, policy_step=2 * turn)
        state = read_state(checkpoint_path(folder, 2 * turn + 1))
        num_bytes = sum(entry.num_bytes for entry in state.files.values())
        turns.plain_s.append(plain_write(folder / "plain", num_bytes))
    return {
        "num_bytes": num_bytes,
        "num_parameters": sum(
            weight.numel()
            for model, _ in trainees.values()
            for _, weight in model.trained_weights()
        ),
        **{name: getattr(turns, name) for name in Turns.__slots__},
    }


def take_turn(
    writer: CheckpointWriter, trainees: Trainees, turns: Turns, *, policy_step: int
) -> None:
    """One asynchronous checkpoint and one synchronous one; raises ``OSError`` if one fails."""
    alone_s = _product_s(num_products=20)
    begin_s = time.perf_counter()
    writer.begin(trainees, make_state(policy_step))
    turns.stalled_s.append(time.perf_counter() - begin_s)
    busy_s = [_product_s()]
    while not writer.is_whole and time.perf_counter() - begin_s < _LIMIT_S:
        busy_s.append(_product_s())
    turns.written_s.append(time.perf_counter() - begin_s)
    turns.slow_down.append(sum(busy_s) / len(busy_s) / alone_s)
    _settle(writer)

    begin_s = time.perf_counter()
    writer.begin(trainees, make_state(policy_step + 1))
    _settle(writer)
    turns.synchronous_s.append(time.perf_counter() - begin_s)


def plain_write(path: Path, num_bytes: int) -> float:
    """Seconds to write and sync that many bytes; the file is gone afterwards."""
    piece = memoryview(torch.randint(0, 256, (_PIECE_BYTES,), dtype=torch.uint8).numpy().data)
    begin_s = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for start in range(0, num_bytes, _PIECE_BYTES):
            file.write(piece[: num_bytes - start])
        os.fsync(file.fileno())
    taken_s = time.perf_counter() - begin_s
    path.unlink()
    return taken_s


def make_trainees(hidden_size: int, num_layers: int) -> Trainees:
    """A model of random weights and its optimizer, as a learner has them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    policy = PolicyModel(Qwen2ForCausalLM(config).float())
    weights = [weight for _, weight in policy.trained_weights()]
    return {"policy": (policy, build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.0))}


def make_state(policy_step: int) -> CheckpointState:
    """What stands beside the tensors."""
    return CheckpointState(
        policy_step=policy_step,
        incarnation=0,
        seed=0,
        world_size=1,
        weight_digest="",
        config_digest="",
    )


def _settle(writer: CheckpointWriter) -> None:
    if problem := writer.settle():
        raise OSError(problem)


def _product_s(num_products: int = 1) -> float:
    """Seconds of one product of matrices."""
    matrix: Tensor = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    begin_s = time.perf_counter()
    for _ in range(num_products):
        matrix @ matrix
    return (time.perf_counter() - begin_s) / num_products


if __name__ == "__main__":
    main(sys.argv[1:])
