"""Preference pairs for a helpful reward model, free of the judge's love of places and of length.

DeepSeek-V3 judged each pair four times with the two answers in random order, took the mean, kept a
pair whose scores differ by more than 1, and balanced lengths between chosen and rejected (Nature
645, Methods). Answers are shown here in both orders equally often, so a judge that always prefers
the first place makes no pairs at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NUM_JUDGEMENTS = 4
MIN_DIFFERENCE = 1.0


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """Scores that one judgement gave, each to the answer in that place."""

    swapped: bool
    """The judge saw B first."""
    first: float
    second: float

    @property
    def advantage_of_a(self) -> float:
        """Score of A minus score of B."""
        return self.second - self.first if self.swapped else self.first - self.second


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One training example of a reward model."""

    prompt: str
    chosen: str
    rejected: str
    difference: float
    """Mean score of the chosen answer minus that of the rejected one, above 0."""

    @property
    def length_gap(self) -> int:
        """Characters by which the chosen answer is longer."""
        return len(self.chosen) - len(self.rejected)


def judging_orders(seed: int, num_judgements: int = NUM_JUDGEMENTS) -> list[bool]:
    """For each judgement of a pair, True where B stands first: half of them, in random order.

    Raises ``ValueError`` for an odd number, which would leave one place favoured.
    """
    if num_judgements < 2 or num_judgements % 2:
        raise ValueError(f"a pair needs an even number of judgements, got {num_judgements}")
    orders = [False, True] * (num_judgements // 2)
    random.Random(seed).shuffle(orders)
    return orders


def build_pair(
    prompt: str,
    a: str,
    b: str,
    judgements: Sequence[PairJudgement],
    *,
    min_difference: float = MIN_DIFFERENCE,
) -> PreferencePair | None:
    """The pair that ``judgements`` make of two answers, None unless they differ by more.

    Raises ``ValueError`` unless both orders were judged equally often.
    """
    num_swapped = sum(judgement.swapped for judgement in judgements)
    if not judgements or 2 * num_swapped != len(judgements):
        raise ValueError(
            f"both orders must be judged equally often, got {num_swapped} of {len(judgements)} "
            "swapped (use judging_orders)"
        )
    difference = sum(item.advantage_of_a for item in judgements) / len(judgements)
    if abs(difference) <= min_difference:
        return None
    chosen, rejected = (a, b) if difference > 0 else (b, a)
    return PreferencePair(prompt, chosen, rejected, abs(difference))


def balance_lengths(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """As many pairs with the longer answer chosen as with the shorter one, in their order.

    Of the side that is in excess, the pairs with the widest gaps in length are left out: these
    teach length best. Pairs of equal lengths stay.
    """
    kept = list(pairs)
    longer = [n for n, pair in enumerate(kept) if pair.length_gap > 0]
    shorter = [n for n, pair in enumerate(kept) if pair.length_gap < 0]
    excess = max(longer, shorter, key=len)
    num_dropped = abs(len(longer) - len(shorter))
    widest = sorted(excess, key=lambda n: (-abs(kept[n].length_gap), n))[:num_dropped]
    return [pair for n, pair in enumerate(kept) if n not in set(widest)]
