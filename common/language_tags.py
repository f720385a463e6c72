"""BCP 47 language tags and the scripts that a language is written in.

Script names are Unicode's (``\\p{Script=...}``, UAX #24), script subtags ISO 15924's. Only what a
reward can act on is kept of a tag: its language and its script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"([A-Za-z]{2,3})(?:-([A-Za-z]{4}))?(?:-[A-Za-z0-9]{1,8})*")

_SCRIPT_OF_SUBTAG: dict[str, tuple[str, ...]] = {
    "Latn": ("Latin",),
    "Cyrl": ("Cyrillic",),
    "Grek": ("Greek",),
    "Hani": ("Han",),
    "Hans": ("Han",),
    "Hant": ("Han",),
    "Jpan": ("Han", "Hiragana", "Katakana"),
    "Hang": ("Hangul",),
    "Kore": ("Hangul",),
    "Arab": ("Arabic",),
    "Hebr": ("Hebrew",),
    "Deva": ("Devanagari",),
    "Beng": ("Bengali",),
    "Thai": ("Thai",),
    "Geor": ("Georgian",),
    "Armn": ("Armenian",),
    "Taml": ("Tamil",),
    "Telu": ("Telugu",),
    "Ethi": ("Ethiopic",),
}
_LANGUAGES_OF_SUBTAG: dict[str, str] = {
    "Latn": (
        "af az bs ca cs cy da de en es et eu fi fr ga gl hr hu id is it la lt lv ms nb nl nn no pl "
        "pt ro sk sl sq sv sw tl tr uz vi"
    ),
    "Cyrl": "be bg kk ky mk mn ru sr uk",
    "Grek": "el",
    "Hani": "yue zh",
    "Jpan": "ja",
    "Kore": "ko",
    "Arab": "ar fa ps ur",
    "Hebr": "he yi",
    "Deva": "hi mr ne",
    "Beng": "bn",
    "Thai": "th",
    "Geor": "ka",
    "Armn": "hy",
    "Taml": "ta",
    "Telu": "te",
    "Ethi": "am ti",
}
_SUBTAG_OF_LANGUAGE = {
    language: subtag
    for subtag, languages in _LANGUAGES_OF_SUBTAG.items()
    for language in languages.split()
}


@dataclass(frozen=True, slots=True)
class LanguageTag:
    """What a tag says: ``language`` is its primary subtag, ``scripts`` what it is written in."""

    language: str
    scripts: tuple[str, ...]


def parse_language_tag(tag: str) -> LanguageTag:
    """Read ``en``, ``pt-BR``, ``zh-Hant`` or ``sr-Latn``; region and variants say nothing here.

    Raises ``ValueError`` for what is no tag, and for a language whose script is not known here and
    not given.
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"must be a BCP 47 tag such as en, zh or pt-BR, got {tag!r}")
    language, subtag = match[1].lower(), (match[2] or "").title()
    subtag = subtag or _SUBTAG_OF_LANGUAGE.get(language, "")
    if subtag not in _SCRIPT_OF_SUBTAG:
        known = ", ".join(sorted(_SCRIPT_OF_SUBTAG))
        raise ValueError(
            f"the script of {tag!r} is not known (name one, such as {language}-Latn: {known})"
        )
    return LanguageTag(language, _SCRIPT_OF_SUBTAG[subtag])
