"""How long weights take from learner to engines, stage by stage, as the weight plane does it.

Every rank copies its shard to host memory, rank 0 gathers and writes the files, the version is
announced and broadcast (or pulled), each engine loads it between two decode steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.config import WeightsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Bytes a second that each hop really gets."""

    host: float
    """GPU to host memory, for each rank."""
    gloo: float
    disk: float
    nvlink: float
    network: float
    load: float
    """At which an engine takes staged weights into its parameters."""
    node_gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Seconds of the stages of one publish, in order."""

    snapshot_s: float
    """The learner's step waits for it."""
    gather_s: float
    write_s: float
    send_s: float
    load_s: float
    """The engines' requests stand still for it."""

    @property
    def background_s(self) -> float:
        """What one publish keeps the publishing thread for: a step cannot be shorter."""
        return self.gather_s + self.write_s + self.send_s

    @property
    def total_s(self) -> float:
        """From the end of a step until all engines serve its weights."""
        return self.snapshot_s + self.background_s + self.load_s


def publication(
    num_bytes: float,
    weights: WeightsConfig,
    links: Links,
    *,
    num_ranks: int,
    num_engines: int,
    load_s: float = 0.0,
) -> Publication:
    """Stages for ``num_bytes`` of weights; ``load_s`` above 0 was measured."""
    return Publication(
        snapshot_s=num_bytes / num_ranks / links.host,
        gather_s=num_bytes * (num_ranks - 1) / num_ranks / links.gloo,
        write_s=num_bytes / links.disk,
        send_s=send_s(num_bytes, weights, links, num_ranks=num_ranks, num_engines=num_engines),
        load_s=load_s or num_bytes / links.load,
    )


def send_s(
    num_bytes: float, weights: WeightsConfig, links: Links, *, num_ranks: int, num_engines: int
) -> float:
    """Seconds of the broadcast.

    NCCL pipelines: bytes over the slowest link, and one bucket for each level of the tree. gloo
    sends a bucket down a binomial tree, and the root sends it once a level. Whoever pulls reads
    files; all readers are taken to read at the speed of the disk.
    """
    if weights.transfer == "pull":
        return num_bytes / links.disk
    levels = math.ceil(math.log2(num_engines + 1))
    if weights.backend == "gloo":
        return levels * num_bytes / min(links.gloo, links.network)
    is_one_node = num_ranks + num_engines <= links.node_gpus
    link = links.nvlink if is_one_node else min(links.nvlink, links.network)
    return (num_bytes + (levels - 1) * min(num_bytes, weights.bucket_bytes)) / link
