"""Ranks of a learner under test, forked from one process that has imported what all of them need.

A rank spends eight seconds of a processor on imports, far more than on a model of a few thousand
parameters. Each is still a process of its own, with the environment that torchrun would give it.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

_IMPORTED = [
    "torch.distributed.fsdp",
    "transformers.models.qwen2.modeling_qwen2",
    "learner.main",
    "actors.generation.weight_agent",
    "tests.unit.learner.small_run",
]


def warm_processes() -> ForkServerContext:
    """Where processes start with torch, transformers and the learner imported.

    Their standard streams and their environment are those of the process that imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def run_ranks(
    work: Callable[..., None], *arguments: Any, folder: Path, world_size: int, timeout_s: float
) -> None:
    """Call ``work`` with ``arguments`` on each rank; what it prints stays in ``folder``.

    ``work`` is a function of a module. Raises ``AssertionError`` with the end of what a rank
    printed when it fails, and ends all of them when one takes longer than ``timeout_s``.
    """
    processes, logs = warm_processes(), [folder / f"rank-{rank}.log" for rank in range(world_size)]
    for log in logs:
        log.touch()
    port = free_port()
    ranks = [
        processes.Process(target=_be_rank, args=(rank, world_size, port, log, work, arguments))
        for rank, log in enumerate(logs)
    ]
    try:
        for process in ranks:
            process.start()
        for process, log in zip(ranks, logs, strict=True):
            process.join(timeout_s)
            assert process.exitcode == 0, f"{process.exitcode}: {log.read_text()[-3000:]}"
    finally:
        for process in ranks:
            if process.pid is not None:
                process.kill()
                process.join()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _be_rank(
    rank: int,
    world_size: int,
    port: int,
    log: Path,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ours.items()}, MASTER_ADDR="127.0.0.1")
    work(*arguments)
