"""Is it the expected value? By our own equality, outside, on what exact builtin types hold. Pure.

- ``True`` and ``1`` differ; ``2`` and ``2.0`` are equal; text is compared code point by code point.
- NaN equals nothing, not even NaN. ``-0.0`` equals ``0.0``. Infinity equals itself.
- A tuple equals an expected list: JSON has no tuples. Sets and bytes equal nothing.
- A dictionary equals an expected object when all its keys are text.
- With a tolerance t, numbers are equal when they differ by at most ``t * max(1, |expected|)``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Returned:
    """What one call came to."""

    value: Any = None
    """As ``sandbox.frames.to_primitive`` writes it: tagged, not yet believed."""
    raised: str = ""
    malformed: str = ""


def read_returned(frame: bytes) -> Returned:
    """Read the frame of one call; whatever it is not, it is ``malformed``."""
    try:
        fields = json.loads(frame.decode("ascii"))
    except (ValueError, RecursionError) as error:  # too many digits is a ValueError as well
        return Returned(malformed=f"not a value: {error}"[:200])
    match fields:
        case {"value": value, **rest} if not rest:
            return Returned(value)
        case {"raised": str(reason), **rest} if not rest:
            return Returned(raised=reason[:200] or "an exception")
        case {"unsupported": str(reason), **rest} if not rest:
            return Returned(malformed=reason[:200] or "a value of an unknown type")
    return Returned(malformed="not a value")


def equals(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Compare a tagged value with one from JSON."""
    if expected is None or isinstance(expected, bool):
        return value is expected
    if isinstance(expected, str):
        return isinstance(value, str) and value == expected
    if isinstance(expected, int | float):
        return _numbers_equal(value, expected, tolerance)
    if isinstance(expected, list):
        return _lists_equal(value, expected, tolerance)
    return isinstance(expected, dict) and _objects_equal(value, expected, tolerance)


def _numbers_equal(value: Any, expected: int | float, tolerance: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if value == expected:
        return True
    try:
        distance = abs(value - expected)
        return (
            tolerance > 0
            and math.isfinite(expected)
            and bool(distance <= tolerance * max(1.0, abs(expected)))
        )
    except OverflowError:  # an int that no float can hold
        return False


def _lists_equal(value: Any, expected: list[Any], tolerance: float) -> bool:
    if isinstance(value, dict) and value.keys() == {"t"}:
        value = value["t"]
    if not isinstance(value, list) or len(value) != len(expected):
        return False
    return all(equals(*pair, tolerance) for pair in zip(value, expected, strict=True))


def _objects_equal(value: Any, expected: dict[str, Any], tolerance: float) -> bool:
    if not isinstance(value, dict) or value.keys() != {"d"} or not isinstance(value["d"], list):
        return False
    found: dict[str, Any] = {}
    for pair in value["d"]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            return False
        found[pair[0]] = pair[1]
    if len(found) != len(value["d"]) or found.keys() != expected.keys():
        return False
    return all(equals(found[key], expected[key], tolerance) for key in expected)


def outputs_equal(output: bytes, expected: str, tolerance: float = 0.0) -> bool:
    """Compare what a program wrote: blanks at line ends and empty lines at the end do not count.

    With a tolerance, words that are both numbers are compared as numbers, all others exactly.
    """
    found, wanted = _lines(output), _lines(expected.encode("utf-8", "surrogatepass"))
    if found == wanted:
        return True
    if not tolerance or len(found) != len(wanted):
        return False
    return all(_words_equal(*pair, tolerance) for pair in zip(found, wanted, strict=True))


def _lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.rstrip().split(b"\n")]


def _words_equal(found: bytes, wanted: bytes, tolerance: float) -> bool:
    left, right = found.split(), wanted.split()
    if len(left) != len(right):
        return False
    return all(
        one == other or _close(one, other, tolerance)
        for one, other in zip(left, right, strict=True)
    )


def _close(found: bytes, wanted: bytes, tolerance: float) -> bool:
    try:
        return _numbers_equal(float(found), float(wanted), tolerance)
    except ValueError:
        return False
