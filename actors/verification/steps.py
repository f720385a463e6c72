"""Values of the steps of an answer -> rewards at the tokens with which the steps end.

Process supervision rewards every step by itself (DeepSeekMath, arXiv 2402.03300, section 4.1.3).
What a process model calls a step is a piece of text; what is trained is tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from actors.verification.judgement import Judgement
from common.text_tokenizer import TextTokenizer
from common.types import StepReward, Verdict


def with_steps(
    verdict: Verdict,
    judgements: Sequence[Judgement],
    tokenizer: TextTokenizer,
    token_ids: Sequence[int],
) -> Verdict:
    """``verdict`` with the rewards of the steps, where one of ``judgements`` has any.

    The weight is that of the verdict's only component. With several components no single one says
    what a step is worth, and the verdict stays as it is.
    """
    scored = [judgement for judgement in judgements if judgement.step_ends]
    if not scored or len(verdict.components) != 1 or verdict.reward is None:
        return verdict
    weight = verdict.components[0].weight
    ends = last_tokens(scored[0].step_ends, tokenizer.text_ends(token_ids))
    steps = (
        StepReward(end=end, value=weight * value)
        for end, value in zip(ends, scored[0].step_values, strict=True)
    )
    return msgspec.structs.replace(verdict, steps=tuple(steps))


def last_tokens(step_ends: Sequence[int], text_ends: Sequence[int]) -> list[int]:
    """Index of the token with which each step ends.

    ``step_ends`` are characters of the completion in rising order, ``text_ends[t]`` those that
    tokens 0 to t have written. The last step takes everything that follows it along, so that
    ending the answer is part of it.
    """
    last = len(text_ends) - 1
    found = [min(bisect_left(text_ends, end), last) for end in step_ends]
    return [*found[:-1], last]
