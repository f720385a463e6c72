"""A generated problem, and which of them are kept for evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b

from common.types import Prompt

HELD_OUT_ONE_IN = 8
"""One in so many problems is for evaluation."""


@dataclass(frozen=True)
class Problem:
    """One task: the prompt text, a right answer, and a name unique within the task."""

    problem_id: str
    text: str
    answer: str
    task: str = "arithmetic"
    """Kind of the verifier that judges answers."""
    fields_json: str = ""
    """Fields of that kind as JSON; empty: the answer, as ``gold``."""

    @property
    def prompt(self) -> Prompt:
        """The prompt that travels."""
        fields_json = self.fields_json or json.dumps({"gold": self.answer})
        return Prompt(
            prompt_id=self.problem_id, text=self.text, task=self.task, reference_json=fields_json
        )


def is_held_out_text(text: str) -> bool:
    """Whether a problem is for evaluation, by hash of its text: no seed trains on one that is."""
    digest = blake2b(text.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0
