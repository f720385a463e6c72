"""What has to be worked out: sums, products, integrals, limits, determinants, sums of matrices.

The grammar refuses them, and so they are no answers. A *gold answer* of that form is read by
math-verify, which makes it an object of sympy. Both are optional, and neither bounds what it does:
:func:`read_symbolic` runs in limited processes only. In front of it stands a gate: one expression
in commands that are known, no relation but the ``k=1`` under a sum, no percentage, no list, no
words. What math-verify takes off, tidies up or picks out is not there to begin with.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from functools import lru_cache
from typing import Any, TypeAlias

from common.math_answer import vocabulary as vocab
from common.math_answer.characters import fold_characters
from common.math_answer.limits import MAX_DEPTH, AnswerError

Sympy: TypeAlias = Any
"""An expression or matrix of sympy, which has no types."""

MAX_SYMBOLIC_CHARS = 400
INSTALL = "pip install 'headrace[symbolic]'"

_MAX_DIGITS = 12
_MATRICES = "(?:p|b|v)?matrix"
_TO_WORK_OUT = re.compile(
    r"\\(?:sum|prod|i?int|oint|lim|det)(?![A-Za-z])|\\begin\{vmatrix\}"
    rf"|\\end\{{{_MATRICES}\}}\s*(?:\\cdot|\\times|[-+*^]|\\begin)"
)
_BOUND = re.compile(
    r"\\(?:sum|prod)(?:\\limits)?_\{\s*[A-Za-z]\s*=[^{}=]*\}"
    r"|\\lim(?:\\limits)?_\{\s*[A-Za-z]\s*\\(?:to|rightarrow)(?![a-z])[^{}=]*\}"
)
_SUBSCRIPT = re.compile(r"\\(?:i?int|oint|log)(?:\\limits)?_|[A-Za-z]_(?:\d|\{\d+\})")
_ENVIRONMENT = re.compile(rf"\\(?:begin|end)\{{{_MATRICES}\}}")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_REST = re.compile(r"[A-Za-z0-9\s^{}()\[\]+\-*/|!.&]*")
_WORD = re.compile(r"[A-Za-z]{3,}|\b(?:or|in|is|if|no)\b")
_COMMANDS = (
    vocab.FRACTIONS
    | vocab.BINOMIALS
    | vocab.GREEK
    | vocab.UNWORKED
    | frozenset(vocab.FUNCTIONS)
    | frozenset(("sqrt", "pi", "infty", "det", "cdot", "times", "left", "right", "limits"))
    | frozenset(("displaystyle", "quad", "\\", ",", ";", "!", " "))
)


def is_installed() -> bool:
    """Whether math-verify is there; nothing is imported."""
    return importlib.util.find_spec("math_verify") is not None


def has_to_be_worked_out(text: str) -> bool:
    """Whether ``text`` holds a sum, product, integral, limit, determinant or such of matrices."""
    return bool(_TO_WORK_OUT.search(text))


def check_admissible(text: str) -> None:
    """Raise :class:`AnswerError` unless ``text`` may be given to math-verify."""
    if len(text) > MAX_SYMBOLIC_CHARS:
        raise AnswerError(f"what must be worked out has at most {MAX_SYMBOLIC_CHARS} characters")
    plain = fold_characters(text).strip("$ \n")
    if re.search(rf"\d{{{_MAX_DIGITS + 1}}}", plain):
        raise AnswerError(f"a number to work out has at most {_MAX_DIGITS} digits")
    if _deepest(plain) > MAX_DEPTH:
        raise AnswerError(f"an answer is at most {MAX_DEPTH} levels deep")
    rest = _SUBSCRIPT.sub(" ", _ENVIRONMENT.sub(" ", _BOUND.sub(" ", plain)))
    for command in _COMMAND.finditer(rest):
        if command[1] not in _COMMANDS:
            raise AnswerError(f"\\{command[1][:20]} cannot stand in what must be worked out")
    rest = _COMMAND.sub(" ", rest)
    if word := _WORD.search(rest):
        raise AnswerError(f"words cannot stand in what must be worked out, got {word[0][:20]!r}")
    if "!!" in rest or not _REST.fullmatch(rest):
        raise AnswerError("what must be worked out is one expression, without relations and lists")


@lru_cache(256)
def read_symbolic(text: str) -> Sympy:
    """What math-verify makes of an admissible ``text``: an expression or matrix of sympy.

    It may take any time and memory: for limited processes only. Raises :class:`AnswerError` when it
    is neither.
    """
    check_admissible(text)
    import sympy
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    plain = fold_characters(text).strip("$ \n")
    try:
        found = parse(
            f"${plain}$",
            [LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # of any kind: it is a parser for well-meant input
        raise AnswerError(f"math-verify cannot read it: {error}"[:200]) from None
    if not found or not isinstance(found[0], sympy.Expr | sympy.MatrixBase):
        raise AnswerError("math-verify reads no expression in it")
    return found[0]


def is_matrix(value: Sympy) -> bool:
    """Whether ``value`` is a matrix, or a sum or product of some."""
    return bool(getattr(value, "is_Matrix", False))


def _deepest(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest
