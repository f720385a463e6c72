"""The text of a completion, and whether it begins inside of a thought that its prompt opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.arrays import RolloutArrays
from common.prompt_template import render_prompt
from common.text_tokenizer import TextTokenizer
from common.thoughts import InsideThought, begins_inside_thought, response_of

_ENDING_TOKENS = 32
"""A mark spelled letter by letter and blanks behind it fit into so many tokens."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote, and where it began."""

    text: str
    inside_thought: bool = False
    """The prompt ended in ``<think>``."""

    @property
    def response(self) -> str:
        """The text with the mark that the prompt already held: what rewards and votes read."""
        return response_of(self.text, inside_thought=self.inside_thought)


def decode_completion(
    tokenizer: TextTokenizer, arrays: RolloutArrays, setting: InsideThought
) -> Completion:
    """The completion of one rollout, under ``verifier.inside_thought``."""
    ending = ""
    if setting == "auto":
        ending = tokenizer.decode(arrays.prompt_token_ids[-_ENDING_TOKENS:].tolist())
    text = tokenizer.decode(arrays.completion_token_ids.tolist())
    return Completion(text, begins_inside_thought(setting, ending))


def template_opens_thought(setting: InsideThought, template: str, model_dir: Path | str) -> bool:
    """The same where no prompt is at hand: ``auto`` goes by what the template puts behind one.

    Raises what :func:`common.prompt_template.render_prompt` does, for ``auto`` only.
    """
    ending = render_prompt(template, "", model_dir) if setting == "auto" else ""
    return begins_inside_thought(setting, ending)
