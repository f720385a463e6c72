"""B3: encode and decode a rollout of 32,768 tokens, against memcpy and against lists.

The first baseline is what physics asks (copying the same bytes once), the second what peers do:
MessagePack of Python lists.
"""

from __future__ import annotations

import itertools
import statistics

from common.codec import decode, encode
from common.messages import SubmitRollout
from common.types import FinishReason, RolloutHeader, RolloutId, VersionSpan, WeightVersion
from deploy.bench.result import (
    BenchResult,
    hardware_name,
    interleaved_seconds,
    spread,
    versions,
)

NUM_TOKENS = 32_768
NUM_PROMPT_TOKENS = 512
RING = 256
MAX_OVER_MEMCPY = 10.0
MIN_OVER_LISTS = 30.0


def bench_codec() -> BenchResult:
    """Measure; the ratio is (encode + decode) over memcpy, lower is better.

    All workloads walk the same ring of distinct rollouts, larger than the caches: in a run every
    rollout is new memory.
    """
    import msgpack
    import numpy as np

    from common.arrays import RolloutArrays, arrays_from_frames

    random = np.random.default_rng(0)
    ring = [
        RolloutArrays(
            prompt_token_ids=random.integers(0, 150_000, NUM_PROMPT_TOKENS, dtype=np.int32),
            completion_token_ids=random.integers(0, 150_000, NUM_TOKENS, dtype=np.int32),
            behavior_logprobs=-random.random(NUM_TOKENS, dtype=np.float32),
        )
        for _ in range(RING)
    ]
    message = SubmitRollout(rollout=_header())
    num_bytes = sum(frame.nbytes for frame in ring[0].frames())
    payloads = random.integers(0, 255, (RING, num_bytes), dtype=np.uint8)
    copies = np.empty_like(payloads)
    turns = {name: itertools.cycle(range(RING)) for name in ("headrace", "lists", "memcpy")}

    def headrace() -> object:
        parts = encode(message, 1, list(ring[next(turns["headrace"])].frames()))
        return arrays_from_frames(decode([memoryview(part).cast("B") for part in parts]).frames)

    def lists() -> object:
        arrays = ring[next(turns["lists"])]
        packed = msgpack.packb(
            [arrays.completion_token_ids.tolist(), arrays.behavior_logprobs.tolist()]
        )
        token_ids, logprobs = msgpack.unpackb(packed)
        return np.array(token_ids, dtype=np.int32), np.array(logprobs, dtype=np.float32)

    def memcpy() -> object:
        turn = next(turns["memcpy"])
        np.copyto(copies[turn], payloads[turn])
        return copies

    workloads = {"headrace": headrace, "lists": lists, "memcpy": memcpy}
    seconds = interleaved_seconds(workloads, repeats=15, inner=64)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    over_memcpy = median["headrace"] / median["memcpy"]
    over_lists = median["lists"] / median["headrace"]
    return BenchResult(
        name="codec",
        ratio=over_memcpy,
        goal=f"<= {MAX_OVER_MEMCPY:g}x memcpy and >= {MIN_OVER_LISTS:g}x faster than lists",
        passed=over_memcpy <= MAX_OVER_MEMCPY and over_lists >= MIN_OVER_LISTS,
        baseline=f"memcpy of the same {num_bytes} bytes",
        hardware=hardware_name(),
        details={
            "faster_than_msgpack_of_lists": over_lists,
            "num_tokens": NUM_TOKENS,
            **{name: spread(values) for name, values in seconds.items()},
            "versions": versions("msgpack", "msgspec", "numpy"),
        },
    )


def _header() -> RolloutHeader:
    return RolloutHeader(
        rollout_id=RolloutId(group_id=1, index=0, attempt=1),
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_completion_tokens=NUM_TOKENS,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=(VersionSpan(start=0, version=WeightVersion(incarnation=0, policy_step=1)),),
        actor="actor-0",
    )
