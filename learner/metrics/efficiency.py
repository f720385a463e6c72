"""Tokens a second, model FLOPs utilisation and memory of a step.

Model FLOPs as in PaLM (Chowdhery et al., arXiv 2204.02311, appendix B), forward and backward, but
with the causal half of attention only: 6 for each weight and token, and 6 L w n^2 for a sequence of
n tokens in L layers of attention width w. What is computed twice does not count, the head computes
only tokens that are trained, and embeddings multiply nothing.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import torch

from learner.batches.layout import PlannedRollout
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel

PEAK_TFLOPS: Mapping[str, float] = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A6000": 155.0,
    "RTX 4090": 165.0,
    "MI300X": 1307.0,
}
"""Dense bfloat16 TFLOP/s by a part of the device's name, the first that fits (vendors' sheets)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What one token costs."""

    body_parameters: int
    """Without embeddings and head."""
    head_parameters: int
    attention_width: int
    """Layers times heads times head size."""

    def flops(self, rollouts: Iterable[PlannedRollout]) -> float:
        """Forward and backward of ``rollouts``, each alone: no token looks at another's."""
        tokens = trained = pairs = 0
        for rollout in rollouts:
            tokens += rollout.length
            trained += rollout.num_trained_tokens
            pairs += rollout.length**2
        weights = self.body_parameters * tokens + self.head_parameters * trained
        return 6.0 * weights + 6.0 * self.attention_width * pairs


def model_cost(policy: PolicyModel) -> ModelCost:
    """Counted on the model as it is; sharded weights count whole."""
    causal_lm = policy.causal_lm
    head = causal_lm.get_output_embeddings().weight
    embedding = causal_lm.get_input_embeddings().weight
    weights = {id(weight): int(weight.numel()) for weight in causal_lm.parameters()}
    outside = sum(weights.get(item, 0) for item in {id(head), id(embedding)})
    whole = sum(weights.values())
    return ModelCost(
        body_parameters=whole - outside,
        head_parameters=int(head.numel()),
        attention_width=round(policy.attention_ratio * whole),
    )


def peak_flops(device: torch.device, configured_tflops: float) -> float | None:
    """FLOP/s of one device; None on a CPU or an unknown device without a configured value."""
    if configured_tflops:
        return configured_tflops * 1e12
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """FLOP/s by the name that the driver has for the device."""
    words = name.replace("-", " ")
    found = (peak for part, peak in PEAK_TFLOPS.items() if part in words)
    peak = next(found, None)
    return None if peak is None else peak * 1e12


class Memory(msgspec.Struct, frozen=True):
    """Peaks since the process began, in bytes."""

    rss: int
    device: int
    """Allocated by torch on the accelerator, 0 without one."""


def peak_memory(mesh: Mesh) -> Memory:
    """The largest peak of any rank; a collective."""
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    on_gpu = mesh.device.type == "cuda"
    device = torch.cuda.max_memory_allocated(mesh.device) if on_gpu else 0
    peaks = mesh.max(torch.tensor([rss, device], dtype=torch.int64)).tolist()
    return Memory(int(peaks[0]), int(peaks[1]))


def describe_efficiency(
    *,
    num_tokens: int,
    flops: float,
    seconds: Mapping[str, float],
    peak: float | None,
    num_devices: int,
) -> dict[str, float]:
    """Rates of one step: over the whole of its time, and over the time that it computed."""
    whole = sum(seconds.values())
    computing = seconds.get("compute", 0.0) + seconds.get("step", 0.0)
    row: dict[str, float] = {}
    if whole > 0:
        row["tokens_per_second"] = num_tokens / whole
    if peak and whole > 0:
        row["mfu"] = flops / (whole * peak * num_devices)
    if peak and computing > 0:
        row["mfu_computing"] = flops / (computing * peak * num_devices)
    return row
