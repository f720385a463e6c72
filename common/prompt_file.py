"""A JSON Lines file of prompts, checked whole before anything starts. Memory stays bounded.

Only the position of each line is kept; a prompt is read again when its turn comes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from common.errors import DataError, PromptFileError
from common.task_reference import check_task
from common.types import Prompt

MAX_LINE_BYTES = 1 << 20
MAX_NAME_LENGTH = 128
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_EXAMPLE = '{"prompt_id": "a-1", "prompt": "1+1=", "task": "arithmetic", "gold": "2"}'


class PromptFile:
    """Random access to the prompts of one file."""

    def __init__(self, path: Path) -> None:
        """Read and check all of ``path``; raises :class:`PromptFileError` with file and line."""
        self._path = path
        self._offsets = array("Q")
        self._line_numbers = array("Q")
        self._hash = blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                self._check(file)
        except FileNotFoundError:
            raise PromptFileError(
                f"{path}: no such file (give JSON Lines such as {_EXAMPLE})"
            ) from None
        except OSError as error:
            raise PromptFileError(f"{path}: cannot be read: {error.strerror}") from None

    @property
    def digest(self) -> str:
        """Digest of the prompts in their order, whatever blank lines and line ends there are."""
        return self._hash.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at ``position``; raises :class:`PromptFileError` if the file has changed."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offsets[position])
                line = file.readline(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise PromptFileError(f"{self._path}: cannot be read: {error.strerror}") from None
        return parse_prompt(line, f"{self._path}:{self._line_numbers[position]}")

    def _check(self, file: BinaryIO) -> None:
        seen: dict[bytes, int] = {}
        for number, offset, line in _lines(file, self._path):
            where = f"{self._path}:{number}"
            prompt = parse_prompt(line, where)
            digest = blake2b(prompt.prompt_id.encode(), digest_size=16).digest()
            if digest in seen:
                raise PromptFileError(
                    f"{where}: prompt_id {prompt.prompt_id!r} stands on line {seen[digest]} "
                    "already (give each prompt an id of its own)"
                )
            seen[digest] = number
            self._offsets.append(offset)
            self._line_numbers.append(number)
            self._hash.update(line.strip() + b"\n")
        if not self._offsets:
            raise PromptFileError(f"{self._path}: holds no prompt (write lines like {_EXAMPLE})")


def parse_prompt(line: bytes, where: str) -> Prompt:
    """The prompt on one line; ``where`` is file and line for the :class:`PromptFileError`."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"{where}: must be UTF-8, byte {error.start} is not (convert with iconv -t utf-8)"
        ) from None
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PromptFileError(f"{where}: not valid JSON: {error} (write {_EXAMPLE})") from None
    if not isinstance(record, dict):
        raise PromptFileError(
            f"{where}: must be a JSON object, got {type(record).__name__} (write {_EXAMPLE})"
        )
    return _prompt(record, where)


def _prompt(record: dict[str, Any], where: str) -> Prompt:
    prompt_id = _text(record, "prompt_id", where, MAX_NAME_LENGTH)
    text = _text(record, "prompt", where, MAX_LINE_BYTES)
    task = _text(record, "task", where, MAX_NAME_LENGTH)
    reference_json = msgspec.json.encode(record).decode()
    try:
        check_task(task, reference_json)
    except DataError as error:
        raise PromptFileError(f"{where}: {error} (write {_EXAMPLE})") from None
    return Prompt(prompt_id=prompt_id, text=text, task=task, reference_json=reference_json)


def _text(record: dict[str, Any], key: str, where: str, max_length: int) -> str:
    """Take the text under ``key`` out of ``record``."""
    if key not in record:
        raise PromptFileError(f'{where}: field "{key}" is missing (write {_EXAMPLE})')
    value = record.pop(key)
    if not isinstance(value, str):
        raise PromptFileError(
            f'{where}: field "{key}" must be text, got {type(value).__name__} (put it in quotes)'
        )
    if not 1 <= len(value) <= max_length:
        raise PromptFileError(
            f'{where}: field "{key}" must have 1 to {max_length} characters, got {len(value)} '
            "(shorten or fill it)"
        )
    return value


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, bytes) of each line that is not blank; one in memory at a time."""
    offset, number = 0, 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and line.startswith(_BYTE_ORDER_MARKS):
            raise PromptFileError(
                f"{path}:1: starts with a byte order mark (save as UTF-8 without one)"
            )
        if len(line) > MAX_LINE_BYTES:
            raise PromptFileError(
                f"{path}:{number}: line is longer than {MAX_LINE_BYTES} bytes (split the task)"
            )
        if line.strip():
            yield number, offset, line
        offset += len(line)
