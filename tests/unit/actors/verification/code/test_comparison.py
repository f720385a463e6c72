"""Equality is decided outside, on exact builtin types, and every doubtful case is decided."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.code.comparison import equals, outputs_equal, read_returned
from actors.verification.sandbox.frames import encode_raised, encode_return, to_primitive

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_PLAIN)
def test_every_json_value_comes_back_equal_to_itself(value: Any) -> None:
    returned = read_returned(encode_return(value, 1 << 20))
    assert (returned.raised, returned.malformed) == ("", "")
    assert equals(returned.value, json.loads(json.dumps(value)))


@given(_PLAIN, _PLAIN)
def test_what_python_calls_different_is_different(one: Any, other: Any) -> None:
    if one != other:
        assert not equals(to_primitive(one), other)


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (2, 2.0, True),
        (2.0, 2, True),
        (-0.0, 0.0, True),
        (0.1 + 0.2, 0.3, False),
        (float("nan"), 1.0, False),
        (float("inf"), float("inf"), True),
        (float("inf"), 1e308, False),
        (10**400, 1.0, False),
        (True, 1, False),
        (1, True, False),
        (False, 0, False),
        (0, False, False),
        (None, False, False),
        (0, None, False),
        ("1", 1, False),
        (1, "1", False),
        ("e\u0301", "\u00e9", False),
        ((1, 2), [1, 2], True),
        ((1, (2,)), [1, [2]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({1, 2}, [1, 2], False),
        (b"a", "a", False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": (1,)}, {"a": [1]}, True),
        ({1: 1}, {"1": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({}, {}, True),
        ({}, [], False),
        ([], {}, False),
        ("", None, False),
    ],
)
def test_doubtful_cases_are_decided(value: Any, expected: Any, same: bool) -> None:
    assert equals(to_primitive(value), expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (1.0000001, 1, True),
        (1.1, 1, False),
        (1e9 + 1, 1e9, True),
        (1e-9, 0, True),
        (float("nan"), 1, False),
        (float("inf"), 1e300, False),
        (10**400, 1.5, False),
        (True, 1, False),
        ([0.3, "a"], [0.1 + 0.2, "a"], True),
    ],
)
def test_a_tolerance_is_absolute_near_zero_and_relative_elsewhere(
    value: Any, expected: Any, same: bool
) -> None:
    assert equals(to_primitive(value), expected, 1e-6) is same


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"1",
        b"[]",
        b'{"value": 1, "x": 2}',
        b'{"valu": 1}',
        b'{"raised": 1}',
        b'"ready"',
        b"\xff",
        b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"value": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_a_value_is_malformed(body: bytes) -> None:
    assert read_returned(body).malformed


@pytest.mark.parametrize(
    "value",
    [
        {"d": [["a", 1], ["a", 1]]},
        {"d": [["a"]]},
        {"d": "a"},
        {"d": [[["a"], 1]]},
        {"t": [1]},
        {"a": 1},
        {"d": [["a", 1]], "t": []},
    ],
)
def test_forged_tags_equal_nothing(value: Any) -> None:
    assert not equals(value, {"a": 1})


def test_a_call_that_raised_says_what() -> None:
    assert read_returned(encode_raised(ValueError("x" * 1000))).raised.startswith("ValueError: xxx")
    assert read_returned(encode_return(object(), 1 << 20)).malformed == "a value of type object"
    assert read_returned(encode_return("x" * 100, 50)).malformed == "a value of 113 bytes"


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        (b"1 2\n", "1 2", 0, True),
        (b"1 2 \n\n", "1 2\n", 0, True),
        (b"1 2\r\n3", "1 2\n3", 0, True),
        (b"1  2", "1 2", 0, False),
        (b" 1", "1", 0, False),
        (b"1\n\n2", "1\n2", 0, False),
        (b"", "", 0, True),
        (b"", "1", 0, False),
        (b"\xff", "\ufffd", 0, False),
        ("\u00e9".encode(), "\u00e9", 0, True),
        (b"0.3333333", "0.333333333", 0, False),
        (b"0.3333333", "0.333333333", 1e-6, True),
        (b"a 0.5", "b 0.5", 1e-6, False),
        (b"nan", "1", 1e-6, False),
        (b"inf", "1e308", 1e-6, False),
        (b"1 2", "1 2 3", 1e-6, False),
    ],
)
def test_outputs_are_compared_by_lines(
    output: bytes, expected: str, tolerance: float, same: bool
) -> None:
    assert outputs_equal(output, expected, tolerance) is same
