"""Which processes a run file asks for, and how each is started: pure, nothing runs here."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.config import Config
from deploy.child_process import ProcessSpec, tied_to_parent
from deploy.gpu_assignment import assign_gpus

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No calls home and no noise, whatever a role loads."""

_EXIT_S = 1.0
"""For the end of a learner that has used up its grace."""

_TORCHRUN_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Whole seconds until torchrun kills ranks that it has asked to stop; 30 where nothing is said."""


def headrace_argv(*arguments: str) -> tuple[str, ...]:
    """The command line of one ``headrace`` command, by this very interpreter."""
    return (sys.executable, "-m", "common.cli", *arguments)


def role_environment(num_threads: int) -> dict[str, str]:
    """Environment of a role: roles share cores, so each gets exactly its threads."""
    return {**_QUIET, "OMP_NUM_THREADS": str(num_threads)}


def process_specs(
    config: Config, config_path: Path, *, master_port: int, gpus: Sequence[str] = ()
) -> list[ProcessSpec]:
    """All processes of a local run, the broker first and the consumer last."""
    path = str(config_path)
    num_ranks = config.learner.num_ranks if config.run.kind == "train" else 0
    specs = [_role("broker", "broker", path)]
    if config.stores.payloads == "store":
        specs += [_role("store", f"store-{index}", path) for index in range(config.stores.count)]
    for index in range(config.verifier.count):
        specs.append(_role("verifier", f"verifier-{index}", path))
    for index in range(config.actor.count):
        specs.append(_role("actor", f"actor-{index}", path, num_threads=config.actor.num_threads))
    if config.run.kind == "collect":
        specs.append(_role("collector", "collector", path, is_consumer=True))
    else:
        specs.append(learner_spec(config, config_path, master_port=master_port))
    assigned = assign_gpus(gpus, num_ranks, config.actor.count)
    return [_with_gpus(spec, assigned.get(spec.name)) for spec in specs]


def learner_spec(config: Config, config_path: Path, *, master_port: int) -> ProcessSpec:
    """The learner: ranks under torchrun; a single rank gets the environment torchrun would set.

    torchrun's agent imports torch a second time and hides how a rank ended: one rank goes without.
    Ranks are tied to the agent from their first instruction on, not only once they have imported.
    """
    num_ranks = config.learner.num_ranks
    spec = ProcessSpec(
        name="learner",
        role="learner",
        argv=headrace_argv("learner", str(config_path), "--name", "learner"),
        env=role_environment(config.learner.num_threads),
        is_consumer=True,
        stop_s=config.learner.stop_grace_s + _EXIT_S,
    )
    if num_ranks == 1:
        return replace(spec, env={**spec.env, **_single_rank_environment(master_port)})
    return replace(
        spec,
        argv=(*_torchrun(num_ranks, master_port), *tied_to_parent(spec.argv)),
        env={**spec.env, _TORCHRUN_PATIENCE: str(math.ceil(spec.stop_s))},
        runs_under_torchrun=True,
    )


def _torchrun(num_ranks: int, master_port: int) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "1", "--nproc-per-node", str(num_ranks)),
        *("--master-addr", "127.0.0.1", "--master-port", str(master_port)),
        "--no-python",
    )


def _single_rank_environment(master_port: int) -> Mapping[str, str]:
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(master_port),
    }


def _with_gpus(spec: ProcessSpec, gpus: str | None) -> ProcessSpec:
    if gpus is None:
        return spec
    return replace(spec, env={**spec.env, "CUDA_VISIBLE_DEVICES": gpus})


def _role(
    role: str,
    name: str,
    config_path: str,
    *,
    num_threads: int = 1,
    is_consumer: bool = False,
) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        role=role,
        argv=headrace_argv(role, config_path, "--name", name),
        env=role_environment(num_threads),
        is_consumer=is_consumer,
    )
