"""Reward terms from the tokens of an answer: length and repetition. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.reward_terms import CosineOptions, OverlongOptions, RepetitionOptions


def overlong_penalty(num_tokens: int, options: OverlongOptions) -> float:
    """Soft overlong punishment, from 0 down to -1 (DAPO, arXiv 2503.14476, equation 13).

    0 up to ``max_tokens - cache_tokens``, then falling on a line to -1 at ``max_tokens``.
    """
    free_tokens = options.max_tokens - options.cache_tokens
    if num_tokens <= free_tokens:
        return 0.0
    return max(-1.0, (free_tokens - num_tokens) / options.cache_tokens)


def cosine_reward(num_tokens: int, is_right: bool, options: CosineOptions) -> float:
    """Reward by length (Demystifying Long Chain-of-Thought, arXiv 2502.03373, section 4.2).

    Half a cosine from the ``short`` value at 0 tokens to the ``long`` one; from ``max_tokens`` on
    ``exceeded``, where open-r1 lets the cosine rise again.
    """
    if num_tokens >= options.max_tokens:
        return options.exceeded
    short, long = (
        (options.right_short, options.right_long)
        if is_right
        else (options.wrong_short, options.wrong_long)
    )
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * num_tokens / options.max_tokens))


def repetition_penalty(token_ids: Sequence[int], options: RepetitionOptions) -> float:
    """``max_penalty`` times the share of n-grams that occurred before (2502.03373, C.2).

    0 for an answer of fewer than n tokens.
    """
    return repeat_ratio(token_ids, options.ngram) * options.max_penalty


def repeat_ratio(token_ids: Sequence[int], ngram: int) -> float:
    """1 - distinct n-grams / n-grams, 0 where there is none."""
    num_ngrams = len(token_ids) - ngram + 1
    if num_ngrams <= 0:
        return 0.0
    distinct = len(set(zip(*(token_ids[start:] for start in range(ngram)), strict=False)))
    return 1.0 - distinct / num_ngrams
