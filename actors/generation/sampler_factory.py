"""Which sampler ``actor.engine`` names; the stacks are imported when the engine is built."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from actors.generation.sampler import Sampler
from actors.generation.worker import INITIAL_VERSION
from common.config import Config
from common.errors import FatalError


def sampler_factory(config: Config, name: str) -> Callable[[], Sampler]:
    """A function that builds the configured sampler of actor ``name`` on the calling thread.

    Raises :class:`FatalError` when the engine's package is not installed.
    """
    if importlib.util.find_spec(config.actor.engine) is None:
        raise FatalError(
            f"actor.engine {config.actor.engine!r} needs the {config.actor.engine} package, which "
            "is not installed "
            "(install headrace[cpu] or headrace[gpu], or set actor.engine to 'transformers')"
        )
    seed = actor_seed(config.run.seed, name)
    build = _vllm if config.actor.engine == "vllm" else _light
    return lambda: build(config, seed)


def actor_seed(run_seed: int, name: str) -> int:
    """A seed of its own for each actor: equal ones would answer a repeated prompt alike."""
    digest = hashlib.sha256(f"{run_seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _vllm(config: Config, seed: int) -> Sampler:
    import torch

    from actors.generation.vllm_engine import VllmOptions
    from actors.generation.vllm_sampler import VllmSampler

    on_gpu = torch.cuda.is_available()
    options = VllmOptions(
        model_dir=Path(config.model.path),
        max_model_len=config.model.max_length,
        dtype=config.model.dtype,
        kv_cache_bytes=None if on_gpu else config.actor.kv_cache_bytes,
        gpu_memory_ratio=config.actor.gpu_memory_ratio,
        max_num_seqs=config.actor.max_num_seqs,
        enforce_eager=not on_gpu,  # on a CPU compiling costs more than it gains
        seed=seed,
        record_experts=config.records_experts,
    )
    return VllmSampler(options, INITIAL_VERSION)


def _light(config: Config, seed: int) -> Sampler:
    from actors.generation.transformers_sampler import TransformersOptions, TransformersSampler

    options = TransformersOptions(
        model_dir=Path(config.model.path),
        max_model_len=config.model.max_length,
        dtype=config.model.dtype,
        max_num_seqs=config.actor.max_num_seqs,
        seed=seed,
    )
    return TransformersSampler(options, INITIAL_VERSION)
