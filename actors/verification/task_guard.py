"""Keeps answers from running as code while a scorer of reasoning-gym reads them.

Several scorers hand the answer to ``eval`` or to SymPy's ``parse_expr``, which is ``eval`` too. In
a verifier that is more than a danger to the machine: an answer that is a program can ask SymPy to
solve the problem (``Integral(f, x)`` is an antiderivative of ``f``, ``expand(p)`` the product) or
write its own verdict. Python announces every ``eval`` as the audit event ``exec`` with the compiled
code (PEP 578), before it runs: code made from text may use numbers, elementary functions and
nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType

# fmt: off
ALLOWED_NAMES = frozenset({
    "Integer", "Float", "Rational", "Symbol", "Add", "Mul", "Pow", "factorial", "factorial2",
    "pi", "E", "I", "oo", "sqrt", "cbrt", "root", "exp", "log", "ln", "Abs", "abs", "sign",
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc",
    "sinh", "cosh", "tanh", "coth", "sech", "csch",
    "asinh", "acosh", "atanh", "acoth", "asech", "acsch",
    "sympy",  # of "from sympy import *", which its parser runs first
})
# fmt: on
"""Names that SymPy's parser writes, constants and elementary functions; besides one letter each."""

_FROM_TEXT = "<string>"


class ForbiddenCodeError(Exception):
    """An answer was about to run as code that does more than arithmetic."""


@contextmanager
def no_code_from_answers() -> Iterator[None]:
    """Refuse code made from text that is more than arithmetic, in this process, while inside."""
    _install()
    _STATE.active = True
    try:
        yield
    finally:
        _STATE.active = False


class _State:
    def __init__(self) -> None:
        self.active = False
        self.installed = False


_STATE = _State()


def _install() -> None:
    """Add the hook once: the interpreter keeps it until it ends."""
    if not _STATE.installed:
        _STATE.installed = True
        sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if not _STATE.active or event != "exec" or not isinstance(arguments[0], CodeType):
        return
    forbidden = forbidden_names(arguments[0])
    if forbidden:
        raise ForbiddenCodeError(f"the answer runs as code and uses {forbidden[0]!r}")


def forbidden_names(code: CodeType) -> list[str]:
    """Names in ``code``, if it was made from text, that are not in :data:`ALLOWED_NAMES`."""
    if code.co_filename != _FROM_TEXT:
        return []
    names = [name for name in code.co_names if len(name) > 1 and name not in ALLOWED_NAMES]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += forbidden_names(constant)
    return names
