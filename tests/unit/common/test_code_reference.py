"""A malformed code task is found when it is loaded, with the rule that it breaks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import DataError
from common.references.code import CodeChecker, CodeReference
from common.task_reference import check_task, read_reference

_CALL = {"args": [1], "expected": [True, None]}
_RUN = {"input": "", "output": ""}


@pytest.mark.parametrize(
    "fields",
    [
        {"tests": [_RUN]},
        {"tests": [_RUN], "language": "cpp", "checker": "x"},
        {"tests": [_CALL, _CALL], "function": "f"},
        {"tests": [{"args": [], "expected": None}], "function": "f", "tolerance": 1e-6},
        {"tests": [_RUN], "limits": {"cpu_s": 1, "time_s": 0.5}, "all_or_nothing": False},
        {"tests": [_RUN], "checker": {"source": "x", "language": "cpp"}, "unknown": 1},
    ],
)
def test_well_formed_tasks_are_taken(fields: dict[str, Any]) -> None:
    check_task("code", json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, "tests"),
        ({"tests": []}, "length >= 1"),
        ({"tests": [{}]}, "input and output"),
        ({"tests": [{"input": ""}]}, "input and output"),
        ({"tests": [{"args": []}]}, "args and expected"),
        ({"tests": [{**_CALL, **_RUN}]}, "input and output"),
        ({"tests": [{**_RUN, "outputs": ""}]}, "outputs"),
        ({"tests": [_CALL]}, "go with function"),
        ({"tests": [_RUN], "function": "f"}, "go with function"),
        ({"tests": [_CALL, _RUN], "function": "f"}, "go with function"),
        ({"tests": [_CALL], "function": "a.b"}, "Python name"),
        ({"tests": [_CALL], "function": "def"}, "Python name"),
        ({"tests": [_CALL], "function": "f", "language": "cpp"}, "is in python"),
        ({"tests": [_RUN], "language": "rust"}, "language"),
        ({"tests": [_RUN], "checker": ""}, "characters"),
        ({"tests": [_RUN], "limits": {"cpu_s": 0}}, "cpu_s"),
        ({"tests": [_RUN], "limits": {"cpu": 1}}, "cpu"),
        ({"tests": [_RUN], "tolerance": -1}, "tolerance"),
        ({"tests": [_RUN], "tolerance": 1}, "tolerance"),
    ],
)
def test_a_malformed_task_names_the_rule(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        check_task("code", json.dumps(fields))


def test_values_nested_too_deep_are_refused() -> None:
    deep = "[" * 60 + "]" * 60
    text = f'{{"function": "f", "tests": [{{"args": [], "expected": {deep}}}]}}'
    with pytest.raises(DataError, match="nested at most 50"):
        check_task("code", text)


def test_a_checker_of_plain_text_is_in_python() -> None:
    reference = read_reference(json.dumps({"tests": [_RUN], "checker": "pass"}), CodeReference)
    assert reference.judge == CodeChecker("pass", "python")
    assert read_reference(json.dumps({"tests": [_RUN]}), CodeReference).judge is None


def test_expected_values_keep_their_kind() -> None:
    text = '{"function": "f", "tests": [{"args": [1.0, 1], "expected": 123456789012345678901}]}'
    (test,) = read_reference(text, CodeReference).tests
    assert isinstance(test.args, list)
    assert [type(item) for item in test.args] == [float, int]
    assert test.expected == 123456789012345678901
