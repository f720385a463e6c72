"""A prompt source of one function, for tests that care for groups and not for prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.prompts.mixture import Draw
from broker.prompts.state import PromptsState
from common.types import Prompt


@dataclass(frozen=True)
class ScriptedPrompts:
    """Prompt number n of the run is ``prompt_at(n)``; None there ends the source."""

    prompt_at: Callable[[int], Prompt | None]

    def draw(self, state: PromptsState) -> Draw | None:
        """See :class:`broker.prompts.mixture.PromptSource`."""
        prompt = self.prompt_at(state.num_drawn)
        return None if prompt is None else Draw(prompt, state.num_drawn, None, state.mix)
