"""The program is the last closed block of the declared language after the thinking."""

from __future__ import annotations

import time

import pytest

from actors.verification.code.extraction import extract_program


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\ntext\n```Python3\nb\n```\n", "b\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>x</think><think>\n```python\na\n```", "a\n"),
        ("```python\na\n```\n```cpp\nb\n```", "a\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```python title=x\na\n```", "a\n"),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("  ```python\n  a\n  ```", "  a\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("<answer>\na\n</answer>", "a"),
        ("<answer>```\na\n```</answer>", "a\n"),
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("<answer>a</answer>\n```python\nb\n```", "b\n"),
        ("<answer>\n```python\nb\n```\n</answer>", "b\n"),
        ("```\na\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```python\na\n```\nprints\n```\n1 2\n```", "a\n"),
        ("```\na\n```\n```cpp\nb\n```", "a\n"),
        ("```\na\n```\n<answer>b</answer>", "b"),
    ],
)
def test_the_last_closed_block_of_the_language_is_the_program(
    completion: str, program: str
) -> None:
    assert extract_program(completion, "python") == program


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "a = 1",
        "```python\na",
        "```cpp\na\n```",
        "```python\n\n```",
        "<think>```python\na\n```",
        "```python\na\n```</think>",
        "    ```python\n    a\n    ```",
        "`python a`",
        "<answer></answer>",
        "<answer>```cpp\na\n```</answer>",
        "</answer>a<answer>",
    ],
)
def test_anything_else_is_no_program(completion: str) -> None:
    assert extract_program(completion, "python") is None


@pytest.mark.parametrize("name", ["cpp", "c++", "C++", "cc", "cxx"])
def test_cpp_goes_by_several_names(name: str) -> None:
    assert extract_program(f"```{name}\na\n```", "cpp") == "a\n"


@pytest.mark.parametrize("piece", ["```\n", "```python\n", "<answer>", "</think>", "`", "\n"])
def test_a_megabyte_of_marks_is_read_in_linear_time(piece: str) -> None:
    started_s = time.process_time()
    extract_program(piece * ((1 << 20) // len(piece)), "python")
    assert time.process_time() - started_s < 2.0
