"""Where the reasoning of a completion begins, if its prompt already opened it.

Chat templates of reasoning models end in ``<think>``: the policy then writes the rest of a thought,
and a completion without ``</think>`` is still thinking. What is judged is the *response*, which
begins with the opening mark wherever that was written.
"""

from __future__ import annotations

from typing import Literal

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

InsideThought = Literal["auto", "always", "never"]
"""``auto``: where the prompt, as the policy read it, ends in ``<think>``."""


def begins_inside_thought(setting: InsideThought, prompt_ending: str) -> bool:
    """Whether what follows a prompt with this ending is the rest of a thought."""
    if setting == "auto":
        return prompt_ending.rstrip().endswith(THINK_OPEN)
    return setting == "always"


def response_of(completion: str, *, inside_thought: bool) -> str:
    """``completion`` behind the mark that its prompt ended in, if it did."""
    return THINK_OPEN + completion if inside_thought else completion
