"""Published peak figures of GPUs; what a program gets of them is an assumption elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peak figures of one GPU. Giga and tera are powers of ten, links count one direction."""

    tflops: float
    """Dense bfloat16 TFLOP/s."""
    memory_gb: float
    """GB of device memory."""
    memory_gb_per_s: float
    """GB/s of device memory."""
    nvlink_gb_per_s: float
    """GB/s to the other GPUs of its machine, one direction."""
    host_gb_per_s: float
    """GB/s to host memory, one direction."""
    source: str
    """Where the figures are published."""


GPUS: Mapping[str, Gpu] = {
    "A100": Gpu(
        tflops=312.0,
        memory_gb=80.0,
        memory_gb_per_s=2039.0,
        nvlink_gb_per_s=300.0,
        host_gb_per_s=32.0,
        source="NVIDIA A100 80GB SXM data sheet",
    ),
    "H100": Gpu(
        tflops=989.0,
        memory_gb=80.0,
        memory_gb_per_s=3350.0,
        nvlink_gb_per_s=450.0,
        host_gb_per_s=64.0,
        source="NVIDIA H100 SXM data sheet",
    ),
    "H200": Gpu(
        tflops=989.0,
        memory_gb=141.0,
        memory_gb_per_s=4800.0,
        nvlink_gb_per_s=450.0,
        host_gb_per_s=64.0,
        source="NVIDIA H200 SXM data sheet",
    ),
    "B200": Gpu(
        tflops=2250.0,
        memory_gb=180.0,
        memory_gb_per_s=8000.0,
        nvlink_gb_per_s=900.0,
        host_gb_per_s=64.0,
        source="NVIDIA DGX B200 data sheet, an eighth of the system",
    ),
}
"""Data sheets give NVLink and PCIe as the sum of both directions: half of it stands here."""
