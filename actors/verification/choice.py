"""Kind ``choice``: the final answer names one option, by its letter or by its text.

An answer is read by a fixed grammar; nothing is looked for in prose. Compatibility forms such as
full-width or circled letters count as plain ones, and LaTeX, Markdown and quotes around the answer
are taken off first.

============================================= ==================================================
final answer                                  reads as
============================================= ==================================================
``B`` ``b`` ``(B)`` ``[B]`` ``B)`` ``B.``     B
``**B**`` ``$B$`` ``"B"``, full-width B       B
``\\text{B}`` ``\\boxed{B}`` ``\\textbf{(B)}`` B
``Option B`` ``the answer is (B)``            B
``B) Paris`` ``(B) Paris`` ``B: Paris``       B, if B is Paris or the options are not given
``Paris`` ``the answer is Paris``             the option with this text, if exactly one has it
``A or B`` ``(A)(B)`` ``A, B`` ``B) or C)``   several letters: 0
``B) London``, where B is Paris               letter and text disagree: 0
``E``, where there are four options           no option has this letter: 0
``I think B because``, a Cyrillic look-alike  names no option: 0
nothing in ``<answer>`` or ``\\boxed{}``       ``wrong-format``
============================================= ==================================================

A letter of an option by itself is that letter even where another option has it as its text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from actors.verification.judgement import Judgement
from common.answers import extract_answer
from common.references.choice import ChoiceReference
from common.task_reference import read_reference

MAX_ANSWER_CHARS = 20_000

_COMMAND = (
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|emph|underline|mathrm|mathbf|mathit|mathsf|boxed"
    r"|fbox|operatorname)"
)
_WRAPPED = (
    re.compile(_COMMAND + r"\s*\{(.*)\}", re.DOTALL),
    re.compile(r"\{(.*)\}", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(
        r"(\$\$|\$|\*\*\*|\*\*|\*|__|_|`|\"|'|\u201c|\u2018)(.*)(?:\1|\u201d|\u2019)", re.DOTALL
    ),
)
_BOLD_START = re.compile(r"(\*\*|__)\s*([^*_]+?)\s*\1")
_BLANK_COMMAND = re.compile(r"\\(?:[ ,;:!]|q?quad(?![A-Za-z]))|(?<!\\)~")
_RAISED = ("<super>", "<sub>")
_COMMAND_INSIDE = re.compile(_COMMAND + r"\s*\{([^{}]*)\}")
_PHRASE = re.compile(
    r"(?:(?:so|thus|therefore|hence)\s*,?\s+)?(?:(?:the|my)\s+)?"
    r"(?:(?:final|correct|right|best|true)\s+)*"
    r"(?:answer|option|choice)"
    r"(?:\s+(?:is|would\s+be|must\s+be|should\s+be)\b)?\s*:?\s*(?:(?:option|choice)\s+)?(?=\S)",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z]))[.:)\s]*")
_LABELLED = re.compile(
    r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])\s*[.:)])\s*(?=\S)(.*)",
    re.DOTALL,
)
_MARKED = re.compile(
    r"[(\[]\s*([A-Z])\s*[)\]]|(?<!\w)([A-Z])\s*[.:)](?!\w)"
    r"|\b(?:and|or|not|is|be|say|pick|choose|select|option|choice|answer)\s+([A-Z])\b"
    r"|(?<![\w'])([A-Z])\s+(?:is|was|must|seems|instead)\b|^\W*([A-Z])\W*$",
    re.IGNORECASE,
)
_SEPARATED = re.compile(r"[\s,;/&|+()\[\].:]+|\b(?:and|or|both|not)\b", re.IGNORECASE)
_ENDS = " .,;"


def judge_choice(completion: str, reference_json: str) -> Judgement:
    """1 when the final answer names the right option and no other, else 0 with the reason."""
    reference = read_reference(reference_json, ChoiceReference)
    answer = extract_answer(completion)
    if answer is None:
        return Judgement.wrong_format("no final answer in <answer> or \\boxed{}")
    if len(answer) > MAX_ANSWER_CHARS:
        return Judgement.graded(0.0, f"an answer has at most {MAX_ANSWER_CHARS} characters")
    letter, problem = read_choice(answer, reference.letters, reference.texts)
    if letter is None:
        return Judgement.graded(0.0, problem)
    return Judgement.graded(float(letter == reference.letter))


def read_choice(answer: str, letters: str, texts: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, "") of the option that ``answer`` names, or (None, why it names none).

    ``letters`` may be chosen; ``texts`` are the options by letter, empty where not known.
    """
    plain = _without_bold_start(_unwrapped(_plain(answer)))
    stated = _unwrapped(_PHRASE.sub("", plain, count=1)) if _PHRASE.match(plain) else plain
    bare = _LETTER.fullmatch(stated)
    if bare and _first_group(bare) in letters:
        return _first_group(bare), ""
    wanted = {_folded(stated), _folded(plain)}
    same = [letter for letter, text in texts.items() if _folded(text) in wanted]
    if len(same) == 1:
        return same[0], ""
    if same:
        return None, "several options have this text"
    if bare:
        return None, f"no option has the letter {_first_group(bare)}"
    labelled = _LABELLED.fullmatch(stated)
    if labelled:
        return _labelled_choice(labelled, letters, texts)
    return None, _unread(stated)


def _labelled_choice(
    match: re.Match[str], letters: str, texts: Mapping[str, str]
) -> tuple[str | None, str]:
    """``B) Paris``: the text must be that of B, or, where it is not known, mark no other letter."""
    letter, rest = _first_group(match), match[4]
    others = {_first_group(found) for found in _MARKED.finditer(rest)} - {letter}
    if letter not in letters:
        return None, f"no option has the letter {letter}"
    if texts:
        if _folded(rest) == _folded(texts[letter]):
            return letter, ""
        return None, "several letters" if others else "letter and text disagree"
    return (None, "several letters") if others else (letter, "")


def _unread(stated: str) -> str:
    """Why an answer that fits no form is refused."""
    parts = [part for part in _SEPARATED.split(stated) if part]
    several = len(parts) > 1 and all(len(part) == 1 and part.isascii() for part in parts)
    return "several letters" if several else "names no option"


def _first_group(match: re.Match[str]) -> str:
    """The letter that one of the alternatives caught."""
    return next(group for group in match.groups() if group).upper()


def _plain(text: str) -> str:
    """Compatibility forms replaced, invisible format characters taken out, LaTeX's blanks blank.

    Raised and lowered characters stay what they are: 10\u00b2 is not 102.
    """
    raised = {char for char in set(text) if unicodedata.decomposition(char).startswith(_RAISED)}
    pieces = re.split(f"([{''.join(raised)}])", text) if raised else [text]
    normal = "".join(
        piece if piece in raised else unicodedata.normalize("NFKC", piece) for piece in pieces
    )
    seen = "".join(char for char in normal if unicodedata.category(char) != "Cf")
    return _BLANK_COMMAND.sub(" ", seen).strip()


def _without_bold_start(text: str) -> str:
    """``**(B)** Paris`` and ``**Answer:** B`` as without the stars."""
    match = _BOLD_START.match(text)
    return f"{match[2]}{text[match.end() :]}" if match else text


def _unwrapped(text: str) -> str:
    """Take off what stands around the whole answer; each round shortens it, eight are enough."""
    for _ in range(8):
        before = text
        text = _COMMAND_INSIDE.sub(r"\1", text).strip()
        for pattern in _WRAPPED:
            match = pattern.fullmatch(text.rstrip("."))
            if match:
                text = match[match.lastindex or 1].strip()
        if text == before:
            break
    return text


def _folded(text: str) -> str:
    """Equal for texts that differ in case, blanks, a full stop at the end and LaTeX around them."""
    return " ".join(_unwrapped(_plain(text)).casefold().split()).rstrip(_ENDS)
