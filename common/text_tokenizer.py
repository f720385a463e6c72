"""Text <-> token ids of a model directory, without torch or transformers.

The actor encodes prompts with it and the verifier decodes completions. Nothing is added and nothing
is guessed: no special tokens on the way in, and only end and padding tokens dropped on the way out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from common.errors import ModelDirectoryError


class TextTokenizer:
    """The tokenizer of one model directory.

    ``eos_token_ids`` unites what generation_config.json, config.json and tokenizer_config.json
    name, in that order: a model may end its answer with any of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...], pad_token_ids: tuple[int, ...]
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.pad_token_ids = pad_token_ids
        self._silent = frozenset((*eos_token_ids, *pad_token_ids))

    @classmethod
    def load(cls, model_dir: Path | str) -> TextTokenizer:
        """Read ``tokenizer.json`` and the three configuration files that name special tokens.

        Raises :class:`ModelDirectoryError` when tokenizer.json is missing or a file is malformed.
        """
        directory = Path(model_dir)
        tokenizer = _load_tokenizer(directory)
        settings = [
            read_json_object(directory / name)
            for name in ("generation_config.json", "config.json", "tokenizer_config.json")
        ]
        return cls(
            tokenizer,
            _special_ids(tokenizer, settings, "eos"),
            _special_ids(tokenizer, settings, "pad"),
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ``token_ids``; only end and padding tokens are left out."""
        kept = [token_id for token_id in token_ids if token_id not in self._silent]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def text_ends(self, token_ids: Iterable[int]) -> list[int]:
        """Characters that are written once each of ``token_ids`` is: of ``decode`` up to it.

        A token that leaves a character unfinished has written nothing of it yet.
        """
        stream = DecodeStream(skip_special_tokens=False)
        ends, length = [], 0
        for token_id in token_ids:
            if token_id not in self._silent:
                length += len(stream.step(self._tokenizer, token_id) or "")
            ends.append(length)
        return ends


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, empty when there is no such file.

    Raises :class:`ModelDirectoryError` when it holds anything else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(
            f"{path} must be a readable JSON file, got: {error} (copy the model directory again)"
        ) from None
    if not isinstance(content, dict):
        raise ModelDirectoryError(
            f"{path} must hold a JSON object, got {type(content).__name__} "
            "(copy the model directory again)"
        )
    return content


def special_token_text(settings: Mapping[str, Any], key: str) -> str | None:
    """Text of a token that tokenizer_config.json gives as a string or as ``{"content": ...}``."""
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _load_tokenizer(directory: Path) -> Tokenizer:
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ModelDirectoryError(
            f"model directory {directory} must hold tokenizer.json, found none "
            "(save a fast tokenizer with save_pretrained)"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise ModelDirectoryError(
            f"{file} must be a tokenizer of the tokenizers library, got: {error} "
            "(copy the model directory again)"
        ) from None


def _special_ids(
    tokenizer: Tokenizer, settings: Iterable[Mapping[str, Any]], name: str
) -> tuple[int, ...]:
    """Every id that the files give for ``{name}_token_id`` or ``{name}_token``, each once."""
    found: dict[int, None] = {}
    for table in settings:
        ids = table.get(f"{name}_token_id")
        for token_id in ids if isinstance(ids, list) else [ids]:
            if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0:
                found[token_id] = None
        text = special_token_text(table, f"{name}_token")
        named = None if text is None else tokenizer.token_to_id(text)
        if named is not None:
            found[int(named)] = None
    return tuple(found)
