"""The corpus of supervised fine-tuning: JSON Lines of prompt and completion, checked by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from common.errors import FatalError, PromptFileError
from common.prompt_template import render_prompt
from common.text_tokenizer import TextTokenizer
from learner.batches.batch import Document


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the corpus; further fields (provenance) are allowed and ignored."""

    prompt: str
    completion: str


def read_corpus(path: Path) -> list[Pair]:
    """All pairs of ``path``; raises :class:`PromptFileError` naming file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PromptFileError(
            f"{path}: the corpus cannot be read: {error.strerror} (set sft.corpus)"
        ) from None
    pairs = [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise PromptFileError(f"{path}: the corpus is empty (write one JSON object a line)")
    return pairs


def encode_corpus(
    path: Path,
    pairs: Sequence[Pair],
    tokenizer: TextTokenizer,
    *,
    template: str,
    model_dir: Path,
    max_length: int,
) -> list[Document]:
    """Documents whose completion ends with the model's end token.

    Raises :class:`PromptFileError` for a pair longer than ``max_length`` or without a prompt, and
    :class:`FatalError` when the model names no end token.
    """
    if not tokenizer.eos_token_ids:
        raise FatalError(
            f"{model_dir}: the model names no end token (set eos_token_id in config.json)"
        )
    end = tokenizer.eos_token_ids[0]
    documents = []
    for number, pair in enumerate(pairs, 1):
        prompt = tokenizer.encode(render_prompt(template, pair.prompt, model_dir))
        completion = [*tokenizer.encode(pair.completion), end]
        _check_pair(f"{path}: pair {number}", prompt, completion, max_length)
        documents.append(_document(prompt, completion))
    return documents


def _check_pair(
    where: str, prompt: Sequence[int], completion: Sequence[int], max_length: int
) -> None:
    if not prompt:
        raise PromptFileError(f"{where}: the prompt must not be empty")
    if len(prompt) + len(completion) > max_length:
        raise PromptFileError(
            f"{where} has {len(prompt) + len(completion)} tokens, more than "
            f"model.max_length = {max_length} (raise it, or drop the line)"
        )


def _document(prompt: Sequence[int], completion: Sequence[int]) -> Document:
    return Document(
        prompt_token_ids=np.array(prompt),
        completion_token_ids=np.array(completion),
        behavior_logprobs=np.zeros(len(completion), dtype=np.float32),
    )


def example_order(
    num_examples: int, *, batch_size: int, num_steps: int, seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Indices [batch_size] of each step: every epoch a new permutation, a function of the seed."""
    epoch = 0
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(num_steps):
        while len(waiting) < batch_size:
            shuffled = np.random.default_rng((seed, epoch)).permutation(num_examples)
            waiting = np.concatenate([waiting, shuffled])
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _pair(path: Path, number: int, line: bytes) -> Pair:
    try:
        return msgspec.json.decode(line, type=Pair)
    except msgspec.MsgspecError as error:
        raise PromptFileError(
            f'{path}:{number}: {error} (write {{"prompt": ..., "completion": ...}} on one line)'
        ) from None
