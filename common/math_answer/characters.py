"""Unicode in, ASCII and LaTeX commands out: what a reader sees is what is compared.

Look-alikes of the same meaning are folded (full-width digits, the Unicode minus, superscripts, pi),
and characters that cannot be seen are dropped. Everything else stays, and what is not ASCII is
refused by the lexer outside of words: letters of other scripts, marks that change the direction.
"""

from __future__ import annotations

import re
import unicodedata

from common.math_answer.limits import AnswerError

_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\ufe0e\ufe0f"
_BLANKS = "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f"
_SUBSCRIPTS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = re.compile(f"[{_SUBSCRIPTS}]+")
_RAISED_MEANING = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
_LOWERED_MEANING = str.maketrans(_SUBSCRIPTS, "0123456789")
_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "varsigma", "sigma", "tau", "upsilon"),
    *("phi", "chi", "psi", "omega"),
)
_SYMBOLS = {
    **{"\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-"},
    **{"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u2219": "\\cdot "},
    **{"\u00f7": "\\div ", "\u2217": "*", "\u2044": "/", "\u2215": "/", "\u221a": "\\sqrt "},
    **{"\u221e": "\\infty ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in "},
    **{"\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2248": "\\approx "},
    **{"\u2a7d": "\\le ", "\u2a7e": "\\ge ", "\u00b1": "\\pm ", "\u2213": "\\mp "},
    **{"\u00b0": "\\degree ", "\u2205": "\\emptyset ", "\u2216": "\\setminus "},
    **{"\u27e8": "\\langle ", "\u27e9": "\\rangle ", "\u2220": "\\angle "},
    **{"\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}", "\u211a": "\\mathbb{Q}"},
    **{"\u2115": "\\mathbb{N}", "\u2102": "\\mathbb{C}", "\u2236": ":"},
    **{"\u20ac": " ", "\u00a3": " ", "\u00a5": " "},
    **{chr(0x3B1 + index): f"\\{name} " for index, name in enumerate(_GREEK)},
}
_TRANSLATION = str.maketrans(
    dict.fromkeys(_INVISIBLE, "")
    | dict.fromkeys(_BLANKS, " ")
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | _SYMBOLS
)


def fold_characters(text: str) -> str:
    """``text`` in ASCII and LaTeX where that means the same.

    Raises :class:`AnswerError` for control characters.
    """
    if _CONTROL.search(text):
        raise AnswerError("an answer has no control characters")
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_RAISED_MEANING)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_LOWERED_MEANING)}}}", text)
    text = text.translate(_TRANSLATION)
    return text if text.isascii() else "".join(map(_folded, text))


def _folded(char: str) -> str:
    """Mathematical alphabets and vulgar fractions; any other character stays as it is."""
    if char.isascii():
        return char
    plain = unicodedata.normalize("NFKC", char)
    upper, slash, lower = plain.partition("\u2044")
    if slash and upper.isdigit() and lower.isdigit():
        return f"\\frac{{{upper}}}{{{lower}}}"
    styled = 0x1D400 <= ord(char) <= 0x1D7FF
    return plain if styled and plain.isascii() else char
