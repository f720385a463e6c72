"""Fields of a ``choice`` task: the letter of the right option and, if known, all options."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Annotated

import msgspec

MAX_OPTIONS = 26
_MIN_OPTIONS = 2

_Option = Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]
_Options = Annotated[list[_Option], msgspec.Meta(min_length=_MIN_OPTIONS, max_length=MAX_OPTIONS)]
_LABEL = re.compile(r"\s*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])\s*[).:])\s*(?=\S)")


class ChoiceReference(msgspec.Struct, frozen=True):
    """Fields of a ``choice`` task.

    ``gold`` is one letter, in either case. ``options`` are the texts in the order of their letters,
    or an object from letter to text whose letters run from A without a gap.
    """

    gold: str
    options: _Options | dict[str, _Option] | None = None

    def __post_init__(self) -> None:
        if len(self.gold) != 1 or self.gold not in string.ascii_letters:
            raise ValueError(f"gold must be one letter from A to Z, got {self.gold[:80]!r}")
        if isinstance(self.options, dict):
            _check_letters(self.options)
        if self.letter not in self.letters:
            raise ValueError(
                f"gold {self.gold!r} must be the letter of an option, there are "
                f"{len(self.letters)} (A to {self.letters[-1]})"
            )

    @property
    def letter(self) -> str:
        """The right letter, in upper case."""
        return self.gold.upper()

    @property
    def letters(self) -> str:
        """The letters that may be chosen: all of the alphabet where the options are not given."""
        count = MAX_OPTIONS if self.options is None else len(self.options)
        return string.ascii_uppercase[:count]

    @property
    def texts(self) -> dict[str, str]:
        """Letter -> text of the option, without a label such as ``(A)`` where all have theirs."""
        if self.options is None:
            return {}
        if isinstance(self.options, dict):
            texts = {letter.upper(): text for letter, text in self.options.items()}
        else:
            texts = dict(zip(self.letters, self.options, strict=True))
        return _without_labels(texts)


def _check_letters(options: dict[str, str]) -> None:
    """Raise ``ValueError`` unless the keys are A, B, C and so on, at least two."""
    letters = sorted(key.upper() for key in options)
    if not _MIN_OPTIONS <= len(letters) <= MAX_OPTIONS or letters != list(
        string.ascii_uppercase[: len(letters)]
    ):
        raise ValueError(
            f"options must have the letters A, B, C and so on, {_MIN_OPTIONS} to {MAX_OPTIONS} of "
            f"them, got {', '.join(letters)[:80]}"
        )


def _without_labels(texts: dict[str, str]) -> dict[str, str]:
    """Cut the labels off where every option starts with that of its own letter."""
    cut: dict[str, str] = {}
    for letter, text in texts.items():
        match = _LABEL.match(unicodedata.normalize("NFKC", text))
        if match is None or "".join(group or "" for group in match.groups()).upper() != letter:
            return texts
        cut[letter] = unicodedata.normalize("NFKC", text)[match.end() :]
    return cut
