"""Which GPUs of this machine each process may see. Pure but for the listing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """GPUs of this machine, those of ``CUDA_VISIBLE_DEVICES`` if that is set."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


def assign_gpus(gpus: Sequence[str], num_ranks: int, num_actors: int) -> dict[str, str]:
    """``CUDA_VISIBLE_DEVICES`` by process name; empty where there is nothing to divide.

    The learner's ranks take the first GPUs, one each, and actors the others in turn. Where none is
    left actors share the learner's, from the last one backwards.
    """
    if len(gpus) < 2 or num_ranks > len(gpus):
        return {}
    rest = gpus[num_ranks:] or gpus[::-1]
    actors = {f"actor-{index}": rest[index % len(rest)] for index in range(num_actors)}
    return {**({"learner": ",".join(gpus[:num_ranks])} if num_ranks else {}), **actors}
