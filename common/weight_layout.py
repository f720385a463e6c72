"""A set of weights described without torch: names, shapes, digests, transfer buckets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from common.types import Count, Name, Record, WeightVersion

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""A 64-bit digest as 16 hexadecimal digits; MessagePack integers stop where JSON readers differ."""


class TensorSpec(Record, frozen=True):
    """One tensor under its canonical Hugging Face name."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    dtype: Name
    shape: tuple[Count, ...]
    digest: Digest

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


class Canary(Record, frozen=True):
    """Fixed sequences with the learner's own log-probabilities: the behavioural proof of a load.

    ``logprobs[i][t]`` is the learner's log-probability in nats, temperature 1, of
    ``token_ids[i][t + 1]`` given the tokens before it.
    """

    token_ids: tuple[tuple[Count, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    tolerance: float


class WeightManifest(Record, frozen=True):
    """Everything a receiver needs to prove that it holds ``version``."""

    version: WeightVersion
    tensors: tuple[TensorSpec, ...]
    canary: Canary | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def digest(self) -> str:
        """One 64-bit digest of all tensors: equal exactly when every tensor digest is equal."""
        total = 0
        for position, tensor in enumerate(self.tensors):
            rotated = int(tensor.digest, 16) * (2 * position + 1)
            total = (total + rotated) % 2**64
        return f"{total:016x}"


def plan_buckets(
    tensors: Sequence[TensorSpec], bucket_bytes: int
) -> Iterator[tuple[TensorSpec, ...]]:
    """Cut ``tensors``, in order, into runs of one dtype and at most ``bucket_bytes``.

    A tensor larger than a bucket travels alone. Sender and receiver derive the same plan from the
    same manifest, so no plan is ever sent.
    """
    run: list[TensorSpec] = []
    run_bytes = 0
    for tensor in tensors:
        full = run_bytes + tensor.num_bytes > bucket_bytes
        if run and (full or tensor.dtype != run[0].dtype):
            yield tuple(run)
            run, run_bytes = [], 0
        run.append(tensor)
        run_bytes += tensor.num_bytes
    if run:
        yield tuple(run)
