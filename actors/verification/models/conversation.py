"""Prompt and answer -> the token ids that a scoring model reads.

The template's own text and the candidate's are tokenised apart: special tokens that a candidate
writes out as text stay text, so no answer can close its turn and speak in another's name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from actors.verification.models.response import Step
from common.arrays import Int32Array
from common.errors import ConfigError
from common.prompt_template import render_exchange
from common.text_tokenizer import TextTokenizer

_PROMPT_MARK = "headrace-place-of-the-prompt"
_ANSWER_MARK = "headrace-place-of-the-answer"


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Token ids of one prompt with one answer, and where the answer's tokens begin."""

    token_ids: Int32Array
    """[N]."""
    answer_start: int
    """The first token of the answer."""
    answer: Encoding
    """The answer's tokens with the characters that each covers."""

    def last_tokens_of(self, steps: Sequence[Step]) -> Int32Array:
        """Position of the token in which each step of the answer ends."""
        starts = [start for start, _ in self.answer.offsets]
        ends = [max(0, bisect_left(starts, step.end) - 1) for step in steps]
        return np.array(ends, dtype=np.int32) + np.int32(self.answer_start)


class ConversationEncoder:
    """The tokenizer of a scoring model, with its chat template or with none."""

    def __init__(self, model_dir: Path | str, template: str) -> None:
        """Read the tokenizer; raises :class:`ModelDirectoryError`.

        ``template`` is ``plain`` (prompt and answer, nothing else) or ``chat``.
        """
        self._tokenizer = TextTokenizer.load(model_dir)
        self._contents: Tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
        self._contents.encode_special_tokens = True
        text = _PROMPT_MARK + _ANSWER_MARK
        if template == "chat":
            text = render_exchange(_PROMPT_MARK, _ANSWER_MARK, model_dir)
        before, _, rest = text.partition(_PROMPT_MARK)
        between, _, after = rest.partition(_ANSWER_MARK)
        self._before, self._between, self._after = map(
            self._tokenizer.encode, (before, between, after)
        )

    def encode(self, prompt: str, answer: str) -> EncodedConversation:
        """Token ids of the conversation."""
        head = [*self._before, *self._encode_content(prompt), *self._between]
        encoding = self._contents.encode(answer, add_special_tokens=False)
        token_ids = np.array([*head, *encoding.ids, *self._after], dtype=np.int32)
        return EncodedConversation(token_ids, len(head), encoding)

    def encode_steps(
        self, prompt: str, steps: Sequence[str], step_token: str
    ) -> tuple[Int32Array, Int32Array]:
        """Token ids with ``step_token`` after every step, and the positions of those tokens.

        Raises :class:`ConfigError` where ``step_token`` is no single token of the model.
        """
        mark = self._tokenizer.encode(step_token)
        if len(mark) != 1:
            raise ConfigError(
                f"verifier.models.step_token must be one token of the model, {step_token!r} is "
                f"{len(mark)} (see its added_tokens, or delete the line)"
            )
        ids = [*self._before, *self._encode_content(prompt), *self._between]
        positions = []
        for step in steps:
            ids += [*self._encode_content(step), *mark]
            positions.append(len(ids) - 1)
        ids += self._after
        return np.array(ids, dtype=np.int32), np.array(positions, dtype=np.int32)

    def _encode_content(self, text: str) -> list[int]:
        return list(self._contents.encode(text, add_special_tokens=False).ids)
