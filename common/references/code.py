"""Fields of a ``code`` task: a language, hidden tests, and how their outcome is judged."""

from __future__ import annotations

import keyword
from typing import Annotated, Any, Literal

import msgspec

MAX_TESTS = 1000
MAX_SOURCE_CHARS = 200_000
_MAX_DEPTH = 50

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=600)]
_Source = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]


class CodeTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``input`` and ``output`` of a program, or ``args`` and ``expected`` of a function."""

    input: str | msgspec.UnsetType = msgspec.UNSET
    output: str | msgspec.UnsetType = msgspec.UNSET
    args: list[Any] | msgspec.UnsetType = msgspec.UNSET
    expected: Any = msgspec.UNSET

    @property
    def is_call(self) -> bool:
        """True for a test of a function."""
        return self.args is not msgspec.UNSET

    def __post_init__(self) -> None:
        of_program = (self.input is not msgspec.UNSET, self.output is not msgspec.UNSET)
        of_function = (self.args is not msgspec.UNSET, self.expected is not msgspec.UNSET)
        if sorted((of_program, of_function)) != [(False, False), (True, True)]:
            raise ValueError(
                "a test has input and output (of a program) or args and expected (of a function)"
            )
        if self.is_call and max(_depth(self.args), _depth(self.expected)) > _MAX_DEPTH:
            raise ValueError(f"args and expected of a test are nested at most {_MAX_DEPTH} deep")


class CodeLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one execution. They can only lower those of the verifier."""

    cpu_s: _Seconds | None = None
    wall_s: _Seconds | None = None
    memory_bytes: Annotated[int, msgspec.Meta(ge=64 << 20)] | None = None
    time_s: _Seconds | None = None
    """A right answer that takes longer is too slow: processor seconds of a program, wall seconds of
    a call, both measured from outside."""


class CodeChecker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A special judge: a program that says ``accept`` or ``reject``."""

    source: _Source
    language: Literal["python", "cpp"] = "python"


class CodeReference(msgspec.Struct, frozen=True):
    """Fields of a ``code`` task. ``function`` makes it a function problem, in Python only."""

    tests: Annotated[tuple[CodeTest, ...], msgspec.Meta(min_length=1, max_length=MAX_TESTS)]
    language: Literal["python", "cpp"] = "python"
    function: str | None = None
    checker: CodeChecker | str | None = None
    limits: CodeLimits = CodeLimits()
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Absolute or relative error that a number may have; 0: exactly equal."""
    all_or_nothing: bool = True
    """False: the reward is the share of the tests that were passed."""

    def __post_init__(self) -> None:
        if self.function is not None:
            _check_function(self.function, self.language)
        if any(test.is_call != (self.function is not None) for test in self.tests):
            raise ValueError(
                "tests with args and expected go with function, tests with input and output do not"
            )
        if isinstance(self.checker, str) and not 0 < len(self.checker) <= MAX_SOURCE_CHARS:
            raise ValueError(f"a checker has 1 to {MAX_SOURCE_CHARS} characters")

    @property
    def judge(self) -> CodeChecker | None:
        """The special judge; a plain text is one in Python."""
        return CodeChecker(self.checker) if isinstance(self.checker, str) else self.checker


def _check_function(name: str, language: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"function must be a Python name, got {name[:80]!r}")
    if language != "python":
        raise ValueError(f"a function problem is in python, got {language} (use input and output)")


def _depth(value: Any) -> int:
    """Nesting of lists and objects, without recursion; stops counting where it is too much."""
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        level = [part for item in level if isinstance(item, list | dict) for part in _parts(item)]
        depth += 1
    return depth


def _parts(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
