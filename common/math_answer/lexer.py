"""An answer's text -> tokens, in one pass.

Numbers carry their separators' meaning from here on: ``1,000`` is a number outside of brackets and
two items inside, ``1{,}000``, ``1,\\!000``, ``1\\,000`` and ``1 000`` are numbers everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.math_answer import vocabulary as vocab
from common.math_answer.characters import fold_characters
from common.math_answer.limits import MAX_ANSWER_BYTES, MAX_TOKENS, AnswerError
from common.math_answer.numerals import THOUSANDS_MARK, read_numeral, starts_numeral

_HALF_DAY = re.compile(r"(?<![A-Za-z\\])([aApP])\. ?[mM](?:\.|(?![A-Za-z]))")
_MARKED_SEPARATOR = re.compile(r"(?<=\d)(?: ?\{ ?, ?\}|,\\![ ]?|\\,|\\ |~)(?=\d{3}(?!\d))")
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n~]+")
_LONG_SYMBOLS = (("<=", "<="), (">=", ">="), ("!=", "!="), ("==", "="))
_SYMBOLS = frozenset("+-*/^_!,;:&=<>()[]{}|%.")
_OPENERS, _CLOSERS = frozenset(("(", "[", "{set")), frozenset((")", "]", "set}"))
_STYLES = frozenset(("mathbf", "mathit", "textbf", "textit", "mathnormal", "operatorname"))
"""Commands whose single letter is a variable; in others, after a number, it is a unit."""

_INLINE_TEXT = re.compile(r"[-+.\d]+|\(?[A-Za-z]\)?|[eEiI]")


@dataclass(frozen=True, slots=True)
class Token:
    """``kind`` is number, name, constant, function, text, command, symbol, begin, close or end."""

    kind: str
    value: str
    spaced: bool = False
    """Whether a blank stands before it."""
    exponent: int = 0
    """Of ten, for a number such as ``1e5``."""


def tokenize(text: str) -> list[Token]:
    """The tokens of ``text``; raises :class:`AnswerError` where it is not in the vocabulary."""
    if len(text.encode("utf-8", "replace")) > MAX_ANSWER_BYTES:
        raise AnswerError(f"an answer has at most {MAX_ANSWER_BYTES} bytes")
    folded = _HALF_DAY.sub(r"\1m", fold_characters(text))
    return _Lexer(_MARKED_SEPARATOR.sub(THOUSANDS_MARK, folded)).run()


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._tokens: list[Token] = []
        self._depth = 0
        self._spaced = False

    def run(self) -> list[Token]:
        while self._position < len(self._text):
            self._step()
            if len(self._tokens) > MAX_TOKENS:
                raise AnswerError(f"an answer has at most {MAX_TOKENS} symbols")
        self._add("end", "")
        return self._tokens

    def _step(self) -> None:
        char = self._text[self._position]
        if blank := _BLANK.match(self._text, self._position):
            self._position = blank.end()
            self._spaced = "\n" not in blank[0]
        elif starts_numeral(self._text, self._position):
            self._number()
        elif letters := _LETTERS.match(self._text, self._position):
            self._position = letters.end()
            self._letters(letters[0])
        elif char == "\\":
            self._command()
        elif char == "$":
            self._position += 1
        else:
            self._symbol(char)

    def _add(self, kind: str, value: str, exponent: int = 0) -> None:
        self._tokens.append(Token(kind, value, self._spaced, exponent))
        self._spaced = False

    def _number(self) -> None:
        numeral = read_numeral(self._text, self._position, in_brackets=bool(self._depth))
        self._position = numeral.end
        self._add("number", numeral.digits, numeral.exponent)

    def _letters(self, run: str) -> None:
        lower = run.lower()
        if lower in vocab.CONNECTIVES:
            self._add("symbol", lower)
        elif lower in vocab.PERCENT:
            self._add("symbol", "%")
        elif lower in vocab.DEGREE:
            self._add("symbol", "degree")
        elif run in vocab.PLAIN_CONSTANTS:
            self._add("constant", vocab.PLAIN_CONSTANTS[run])
        elif run == "sqrt":
            self._add("command", "sqrt")
        elif run in vocab.FUNCTIONS and not self._is_time_unit(run):
            self._add("function", vocab.FUNCTIONS[run])
        elif run == "in" and not self._follows_number():
            self._add("symbol", "in")
        elif _is_word(run):
            self._add("text", lower)
        elif not run.isascii():
            raise AnswerError(f"unexpected {run[:10]!r} (write words in \\text{{}})")
        else:
            for letter in run:
                self._letter(letter)

    def _is_time_unit(self, run: str) -> bool:
        return run == "min" and self._follows_number()

    def _follows_number(self) -> bool:
        return bool(self._tokens) and self._tokens[-1].kind == "number"

    def _letter(self, letter: str) -> None:
        self._add("constant" if letter in "ei" else "name", letter)

    def _symbol(self, char: str) -> None:
        for spelling, meaning in _LONG_SYMBOLS:
            if self._text.startswith(spelling, self._position):
                self._position += len(spelling)
                self._add("symbol", meaning)
                return
        if char not in _SYMBOLS:
            raise AnswerError(f"unexpected {char!r}")
        self._position += 1
        self._add_symbol(char)

    def _add_symbol(self, symbol: str) -> None:
        if symbol in _OPENERS or (symbol == "{" and self._opens_set()):
            self._depth += 1
        elif symbol in _CLOSERS:
            self._depth = max(0, self._depth - 1)
        self._add("symbol", symbol)

    def _opens_set(self) -> bool:
        """A brace at the start of an answer may hold a list; all others are LaTeX groups."""
        return not self._tokens

    def _command(self) -> None:
        match = _COMMAND.match(self._text, self._position)
        if match is None:
            raise AnswerError("an answer does not end in a backslash")
        self._position = match.end()
        name = match[0][1:]
        if name in vocab.LAYOUT or name.isspace():
            self._spaced = self._spaced or name != "!"
            self._skip_null_delimiter(name)
        elif name in vocab.TEXT:
            self._text_argument(name)
        elif name in vocab.OPERATORS:
            self._add_symbol(vocab.OPERATORS[name])
        elif name in vocab.CONSTANTS:
            self._add("constant", vocab.CONSTANTS[name])
        elif name in vocab.GREEK:
            self._add("name", f"\\{name}")
        elif name in vocab.FUNCTIONS:
            self._add("function", vocab.FUNCTIONS[name])
        elif name in ("begin", "end"):
            self._add("begin" if name == "begin" else "close", self._environment())
            self._depth = max(0, self._depth + (1 if name == "begin" else -1))
        elif name in vocab.DECORATIONS:
            self._decoration(name)
        elif name == "mathbb":
            self._add("set", self._braced().strip())
        elif name in ("emptyset", "varnothing"):
            self._add("emptyset", "")
        elif name in vocab.FRACTIONS or name in vocab.BINOMIALS or name == "sqrt":
            kind = "frac" if name in vocab.FRACTIONS else name
            self._add("command", "binom" if name in vocab.BINOMIALS else kind)
        elif name in vocab.UNWORKED:
            raise AnswerError(f"\\{name} must be worked out")
        else:
            raise AnswerError(f"\\{name[:20]} is no command of an answer")

    def _skip_null_delimiter(self, name: str) -> None:
        if name in ("left", "right") and self._text.startswith(".", self._position):
            self._position += 1

    def _environment(self) -> str:
        name = self._braced().strip()
        if name not in vocab.MATRICES:
            raise AnswerError(f"{name[:20]!r} is no environment of an answer")
        if name == "array" and self._tokens and self._text.startswith("{", self._position):
            self._braced()
        return name

    def _braced(self) -> str:
        """The text of the group that follows, without commands in it."""
        blank = _BLANK.match(self._text, self._position)
        start = blank.end() if blank else self._position
        if not self._text.startswith("{", start):
            self._position = start + 1
            return self._text[start : start + 1]
        end = self._text.find("}", start)
        content = self._text[start + 1 : end]
        if end < 0 or "{" in content:
            raise AnswerError("text in an answer holds no groups, and its braces are closed")
        self._position = end + 1
        return content

    def _text_argument(self, command: str) -> None:
        content = self._braced()
        plain = " ".join(content.replace(THOUSANDS_MARK, ",").split())
        words = plain.lower().strip(",.;:!? ")
        if not words:
            self._add_separator_of(plain)
        elif words in vocab.CONNECTIVES:
            self._add("symbol", words)
        elif words in vocab.PERCENT or words in ("\\%", "%"):
            self._add("symbol", "%")
        elif words in vocab.DEGREE:
            self._add("symbol", "degree")
        elif plain in vocab.FUNCTIONS and command not in ("text", "mbox", "hbox"):
            self._add("function", vocab.FUNCTIONS[plain])
        elif _INLINE_TEXT.fullmatch(plain) and not self._is_unit(plain, command):
            self._tokens.extend(_Lexer(plain).run()[:-1])
        elif "\\" in words or "$" in words:
            raise AnswerError("text in an answer holds no commands")
        elif plain == "M":
            raise AnswerError("'M' is no unit")
        else:
            self._add("text", words)

    def _is_unit(self, plain: str, command: str) -> bool:
        """A single letter after a number is a unit: ``5\\text{ m}``; constants and the letters that
        stand for an unknown never are.
        """
        if command in _STYLES or len(plain) != 1 or plain in "eixyzn" or not plain.isalpha():
            return False
        return bool(self._tokens) and self._tokens[-1].kind == "number"

    def _add_separator_of(self, plain: str) -> None:
        if "," in plain or ";" in plain:
            self._add("symbol", ",")
        else:
            self._spaced = True

    def _decoration(self, name: str) -> None:
        if name in ("angle", "triangle"):
            letters = re.compile(r"\s*([A-Z]{1,3})").match(self._text, self._position)
            if letters is None:
                raise AnswerError(f"\\{name} must name points")
            self._position = letters.end()
            self._add("name", f"\\{name} {letters[1]}")
            return
        content = self._braced().strip()
        if name == "overline" and content.isdigit() and content.isascii():
            self._add("repeating", content)
        elif content.isalpha() and content.isascii() and len(content) <= 3:
            self._add("name", f"\\{name} {content}")
        else:
            raise AnswerError(f"\\{name} must stand over letters, or over repeating digits")


def _is_word(run: str) -> bool:
    """Other letters are a product of variables; ``Bob`` is a name."""
    if len(run) > 3 or (len(run) == 3 and run.istitle()):
        return True
    return len(run) > 1 and (run.lower() in vocab.SHORT_WORDS or run in vocab.UNITS)
