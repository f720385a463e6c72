"""A reward of the user's own: see docs/writing-a-reward.md."""

from __future__ import annotations

FREE_WORDS = 200


def score(completion: str, *, prompt: str, reference: dict[str, object]) -> tuple[float, str]:
    """1 for up to 200 words before the answer, then falling to 0 at 1200."""
    thought = completion.partition("</think>")[0]
    excess = max(0, len(thought.split()) - FREE_WORDS)
    return max(0.0, 1.0 - excess / 1000), f"{excess} words too many" if excess else ""
