"""Small valid records for tests; every argument that matters is said at the call."""

from __future__ import annotations

import numpy as np

from common.arrays import RolloutArrays
from common.types import (
    FinishReason,
    Prompt,
    RolloutHeader,
    RolloutId,
    VersionSpan,
    WeightVersion,
)


def version(policy_step: int, incarnation: int = 0) -> WeightVersion:
    """The weight version ``incarnation.policy_step``."""
    return WeightVersion(incarnation=incarnation, policy_step=policy_step)


def prompt(number: int = 0, gold: str = "3") -> Prompt:
    """An arithmetic prompt."""
    return Prompt(
        prompt_id=f"p{number}",
        text="1+2=",
        task="arithmetic",
        reference_json=f'{{"gold": "{gold}"}}',
    )


def rollout_header(
    *,
    group_id: int = 0,
    index: int = 0,
    attempt: int = 1,
    num_prompt: int = 3,
    num_completion: int = 5,
    spans: tuple[tuple[int, WeightVersion], ...] = ((0, version(0)),),
) -> RolloutHeader:
    """A finished rollout of ``num_completion`` tokens."""
    return RolloutHeader(
        rollout_id=RolloutId(group_id=group_id, index=index, attempt=attempt),
        num_prompt_tokens=num_prompt,
        num_completion_tokens=num_completion,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=tuple(VersionSpan(start=start, version=at) for start, at in spans),
        actor="actor-0",
        generation_s=0.5,
    )


def rollout_arrays(*, num_prompt: int, num_completion: int, seed: int) -> RolloutArrays:
    """Random but valid arrays."""
    random = np.random.default_rng(seed)
    return RolloutArrays(
        prompt_token_ids=random.integers(0, 50, num_prompt, dtype=np.int32),
        completion_token_ids=random.integers(0, 50, num_completion, dtype=np.int32),
        behavior_logprobs=-random.random(num_completion, dtype=np.float32),
    )
