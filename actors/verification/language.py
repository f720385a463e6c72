"""Kind ``language``: the share of target-language words in the chain of thought.

R1's language consistency reward, Num(words in the target language) / Num(words) (Nature 645,
Methods, equation 7). What is a word, and of which language, is decided by script:

- A word is one ideograph (Han); a run of kana (Hiragana or Katakana, the prolonged sound mark
  included); a run of Hangul, which is what blanks separate in Korean; of other scripts a run of
  letters and marks, with apostrophes and hyphens inside. Digits and punctuation are no words, and a
  single Latin or Greek letter is a symbol.
- A word is in the target language when its script is one that the language is written in. Japanese
  and Chinese share Han: a sentence with kana is Japanese, one without is Chinese.
- Left out are fenced and inline code, LaTeX, and addresses: complete ones only, so that nothing is
  hidden behind a mark that never ends.

Languages of one script are not told apart unless ``rivals`` names them: then each sentence with
enough words is identified, and those of a rival do not count.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import regex

from actors.verification.format_reward import SPECIAL_MARK, parse_special_token
from actors.verification.judgement import Judgement
from actors.verification.visible import BLANK_LETTERS
from common.errors import DataError
from common.language_tags import LanguageTag, parse_language_tag
from common.task_reference import read_reference

if TYPE_CHECKING:
    from lingua import LanguageDetector

EMPTY_VALUE = 0.0
"""Value of a chain of thought without a word: thinking nothing must not earn the reward."""

MIN_IDENTIFIED_WORDS = 4
"""Shorter sentences are not told apart by language: identification would guess."""

_MIN_SPOKEN_WORDS = 3
"""Fewer in ``\\text{}`` are a unit or a connective."""

_ALPHABETS = (
    *("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Bengali"),
    *("Thai", "Georgian", "Armenian", "Tamil", "Telugu", "Ethiopic"),
)
_LETTERS = r"\p{{Script={0}}}[\p{{Script={0}}}\p{{M}}]*+"
_ALPHABETIC_WORD = rf"(?P<{{0}}>{_LETTERS}(?:['\u2019-]{_LETTERS})*+)"
_WORD = regex.compile(
    "|".join(
        (
            r"(?P<Han>\p{Script=Han})",
            r"(?P<Kana>[\p{Script=Hiragana}\p{Script=Katakana}\u30fc]+)",
            r"(?P<Hangul>\p{Script=Hangul}+)",
            *(_ALPHABETIC_WORD.format(script) for script in _ALPHABETS),
            r"(?P<other>[\p{L}--\p{Script=Common}][\p{L}\p{M}]*+)",
        )
    ),
    regex.V1,
)
_SENTENCE_END = regex.compile(r"[.!?\u3002\uff01\uff1f\u2026\n]+")
_KANA = regex.compile(r"[\p{Script=Hiragana}\p{Script=Katakana}]")
_SYMBOL_SCRIPTS = frozenset({"Latin", "Greek"})

_OPENING = regex.compile(
    r"(?P<fence>```|~~~)|(?P<display>\$\$)|\\(?P<bracket>[(\[])"
    r"|\\begin\{(?P<environment>(?:equation|align|aligned|gather|cases|array|[pbvBV]?matrix)\*?)\}"
)
_SHORT = regex.compile(
    r"`[^`\n]+`"
    r"|\$[^\s$](?:[^$\n]*[^\s$])?\$(?!\d)"
    r"|https?://\S+"
    r"|\\[A-Za-z]+"
)
_TAG = regex.compile(r"</?(?:think|answer)>")
_NOT_SEEN = regex.compile(rf"[\p{{Cf}}{BLANK_LETTERS}]+")
_TEXT = regex.compile(r"\\(?:text|mbox|textrm|textit|textbf)\s*+\{([^{}]*+)\}")
_OTHER_LETTERS = regex.compile(
    r"[\p{L}--[\p{Script=Latin}\p{Script=Greek}\p{Script=Common}]][\p{L}\p{M}]*+", regex.V1
)
_CLOSING = {"(": r"\)", "[": r"\]"}


class LanguageReference(msgspec.Struct, frozen=True):
    """Fields of a ``language`` task; ``rivals`` are tags with blanks between them."""

    target: str
    rivals: str = ""


def judge_language(completion: str, reference_json: str) -> Judgement:
    """Share of words of ``target`` in the chain of thought; 0 without any word."""
    reference = read_reference(reference_json, LanguageReference)
    try:
        target = parse_language_tag(reference.target)
        rivals = tuple(parse_language_tag(tag) for tag in reference.rivals.split())
    except ValueError as error:
        raise DataError(f"malformed task: target {error}") from None
    num_target, num_words = count_words(chain_of_thought(completion), target, rivals)
    if not num_words:
        return Judgement.graded(EMPTY_VALUE, "no words in the chain of thought")
    return Judgement.graded(num_target / num_words, f"{num_target} of {num_words} words")


def chain_of_thought(completion: str) -> str:
    """The reasoning: all that stands before the last ``</think>``, inside of blocks or not.

    Thinking that is opened and never closed runs to the end. Between special tokens where the
    completion has that form; without any mark what stands before the last ``<answer>``.
    """
    thought, closed, rest = completion.rpartition("</think>")
    if "<think>" in rest or not closed:
        thought = completion
    if thought == completion and "<think>" not in completion:
        parsed = parse_special_token(completion, SPECIAL_MARK)
        before, answered, _ = completion.rpartition("<answer>")
        thought = parsed[0] if parsed else before if answered else completion
    return _TAG.sub(" ", thought).strip(" ")


def count_words(
    text: str, target: LanguageTag, rivals: tuple[LanguageTag, ...] = ()
) -> tuple[int, int]:
    """(words in the target language, words) of ``text``."""
    text = _NOT_SEEN.sub("", unicodedata.normalize("NFKC", text))
    num_target = num_words = 0
    for sentence in _sentences(prose(text), target):
        scripts = list(_scripts_of_words(sentence))
        found = sum(_is_target(script, sentence, target) for script in scripts)
        num_words += len(scripts)
        if found >= MIN_IDENTIFIED_WORDS and rivals and _is_rival(sentence, target, rivals):
            continue
        num_target += found
    return num_target, num_words


def _sentences(text: str, target: LanguageTag) -> Iterator[str]:
    """Sentences; those too short to be identified are put together until they are not.

    Only where one script may be several languages: with kana or without, a sentence is itself.
    """
    kept, num_kept = list[str](), 0
    for sentence in _SENTENCE_END.split(text):
        num_words = sum(1 for _ in _scripts_of_words(sentence))
        if num_words >= MIN_IDENTIFIED_WORDS or "Han" in target.scripts:
            yield sentence
            continue
        kept.append(sentence)
        num_kept += num_words
        if num_kept >= MIN_IDENTIFIED_WORDS:
            yield ". ".join(kept)
            kept, num_kept = [], 0
    yield ". ".join(kept)


def prose(text: str) -> str:
    """``text`` without code, LaTeX and addresses, but for words that are no part of those.

    Code and formulas are written with Latin and Greek letters; words of other scripts in them, and
    three words or more in ``\\text{}``, are somebody speaking. In linear time.
    """
    kept, position, hopeless = [], 0, set[str]()
    while (opening := _OPENING.search(text, position)) is not None:
        closing = _closing_of(opening)
        end = -1 if closing in hopeless else text.find(closing, opening.end())
        if end < 0:  # never closed: it is text, and need not be looked for again
            hopeless.add(closing)
            kept.append(text[position : opening.end()])
            position = opening.end()
        else:
            kept.append(text[position : opening.start()])
            kept.append(_spoken(text[opening.end() : end]))
            position = end + len(closing)
    kept.append(text[position:])
    return _SHORT.sub(lambda found: f" {_spoken(found[0])} ", " ".join(kept))


def _spoken(hidden: str) -> str:
    """Words inside of code or a formula that are no part of it."""
    said = [text for text in _TEXT.findall(hidden) if len(text.split()) >= _MIN_SPOKEN_WORDS]
    rest = _TEXT.sub(" ", hidden) if said else hidden
    return " ".join((*said, *_OTHER_LETTERS.findall(rest)))


def _closing_of(opening: regex.Match[str]) -> str:
    if opening["environment"]:
        return f"\\end{{{opening['environment']}}}"
    if opening["bracket"]:
        return _CLOSING[opening["bracket"]]
    return str(opening[0])


def _scripts_of_words(sentence: str) -> Iterator[str]:
    for match in _WORD.finditer(sentence):
        script = str(match.lastgroup)
        if script in _SYMBOL_SCRIPTS and match.end() - match.start() == 1:
            continue
        yield script


def _is_target(script: str, sentence: str, target: LanguageTag) -> bool:
    if script == "Kana":
        return "Hiragana" in target.scripts
    if script == "Han" and "Han" in target.scripts:
        return bool(_KANA.search(sentence)) == ("Hiragana" in target.scripts)
    return script in target.scripts


def _is_rival(sentence: str, target: LanguageTag, rivals: tuple[LanguageTag, ...]) -> bool:
    identify = _identifier(target.language, tuple(rival.language for rival in rivals))
    return identify(sentence) not in (target.language, "")


@functools.cache
def _identifier(target: str, rivals: tuple[str, ...]) -> Callable[[str], str]:
    """A function from a sentence to its language's subtag, "" where it cannot say.

    Raises :class:`DataError` for a language that the library does not know.
    """
    detector = _detector((target, *rivals))

    def identify(sentence: str) -> str:
        language = detector.detect_language_of(sentence)
        return "" if language is None else language.iso_code_639_1.name.lower()

    return identify


def _detector(languages: tuple[str, ...]) -> LanguageDetector:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    unknown = unidentifiable(languages)
    if unknown:
        raise DataError(f"malformed task: language {unknown[0]!r} cannot be told from others")
    codes = [getattr(IsoCode639_1, language.upper()) for language in languages]
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
    return builder.with_low_accuracy_mode().build()


def unidentifiable(languages: tuple[str, ...]) -> list[str]:
    """Those of ``languages`` that cannot be told from others by the library.

    Raises ``ModuleNotFoundError`` where the library is not installed.
    """
    from lingua import IsoCode639_1

    return [language for language in languages if not hasattr(IsoCode639_1, language.upper())]
