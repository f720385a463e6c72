"""Whether a reader sees anything of a text. Pure, in linear time.

A text may be long and show nothing: blanks of any kind, characters without a form, HTML comments
and tags, LaTeX that makes room (``\\quad``, ``\\hspace{1cm}``, ``\\phantom{42}``) or wraps nothing
(``$$``, ``\\text{}``, ``\\boxed{}``), an empty fence of code.
"""

from __future__ import annotations

import html
import re
import unicodedata

BLANK_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters, marks and signs that Unicode gives no form."""

_MAX_MARKUP_CHARS = 65536
"""Who writes more than so much of markup in front of an answer shows nothing."""

_HTML = re.compile(
    r"</?(?:a|b|big|blockquote|br|center|code|div|em|font|h[1-6]|i|li|ol|p|pre|s|small|span"
    r"|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"(?<![`~])(`{3,}+|~{3,}+)[^\n`~]*+\n\s*+\1")
_LINK_OF_NOTHING = re.compile(r"(?<!!)\[\s*+\]\([^()\s]*+\)")
_UNSEEN_GROUP = re.compile(r"\\(?:[vh]?phantom|[hv]space\*?|label|(?:text)?color)\s*(?=\{)")
_ROOM = re.compile(
    r"\\(?:[ ,;:!>/()\[\]\\\n]"
    r"|(?:q?quad|enspace|enskip|thinspace|medspace|thickspace|negthinspace|space|nobreakspace|hfill"
    r"|hfil|vfill|newline|linebreak|par|noindent|null|relax|strut|displaystyle|textstyle|left\.|right\."
    r"|text|textbf|textit|textrm|textsf|texttt|emph|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathbb"
    r"|operatorname|boxed|fbox|begingroup|endgroup)(?![A-Za-z]))"
    r"|[\^_](?=\s*+\{\s*+\})|[{}$~]"
)
_LITERAL = re.compile(r"[{}~\s]++|\$")
"""Outside of LaTeX these are seen."""


def shows_something(text: str) -> bool:
    """Whether anything of ``text`` is seen when it is displayed; punctuation and signs are."""
    if not _has_form(text):
        return False
    bare = _without_comments(text[:_MAX_MARKUP_CHARS])
    for unseen in (_FENCE, _LINK_OF_NOTHING, _HTML):
        bare = unseen.sub(" ", bare)
    bare = html.unescape(bare)
    if _LITERAL.fullmatch(bare.strip()):
        return True
    return _has_form(_ROOM.sub(" ", _without_groups(bare)))


def _has_form(text: str) -> bool:
    """Blanks, and marks without a letter below, have none."""
    return any(
        unicodedata.category(char)[0] not in "ZCM" and char not in BLANK_LETTERS for char in text
    )


def _without_comments(text: str) -> str:
    """``text`` without ``<!-- -->``; one that never ends is text."""
    kept, place = list[str](), 0
    while (start := text.find("<!--", place)) >= 0:
        end = text.find("-->", start)
        if end < 0:
            break
        kept.append(text[place:start])
        place = end + len("-->")
    return " ".join((*kept, text[place:]))


def _without_groups(text: str) -> str:
    """``text`` without the commands that show nothing of their argument, and without that."""
    kept, place = list[str](), 0
    while (found := _UNSEEN_GROUP.search(text, place)) is not None:
        kept.append(text[place : found.start()])
        place = _end_of_group(text, found.end())
    return " ".join((*kept, text[place:]))


def _end_of_group(text: str, start: int) -> int:
    """Behind the brace that closes the one at ``start``; the end of ``text`` where none does."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place + 1
    return len(text)
