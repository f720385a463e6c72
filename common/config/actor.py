"""Generation, and the weights that come to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """Generation."""

    count: int = 1
    """Actors that a local run starts."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """``vllm`` is the engine; ``transformers`` the slow, light one for machines without it."""
    max_tokens: int = 1024
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; the learner applies the same."""
    max_num_seqs: int = 256
    """Completions sampled at once by one engine."""
    kv_cache_bytes: int = 268435456
    """KV cache of one engine on CPU."""
    gpu_memory_ratio: float = 0.85
    """Share of a GPU's memory that an engine takes."""
    num_threads: int = 1
    """CPU threads of one actor process."""
    metrics_port: int = 0
    """Port of /metrics on 127.0.0.1; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The weight plane from learner to actors."""

    transfer: Literal["group", "pull"] = "group"
    """``group``: process group of learner and actors, with pull as the fallback; ``pull`` only."""
    backend: Literal["gloo", "nccl"] = "gloo"
    """``gloo``: through host memory; ``nccl``: where learner and actors have a GPU of their own."""
    bucket_bytes: int = 67108864
    """Bytes of one broadcast."""
    deadline_s: float = 30.0
    """Longest wait for any peer of a transfer."""
    keep_versions: int = 4
    """Published versions kept under weights/."""
    canary_tolerance: float = 1e-3
    """Largest difference in nats between learner and engine on the canary sequences."""
    interface: str = "127.0.0.1"
    """Address that the learner's rendezvous store listens on."""
