"""Kind ``format``: does the completion have the required form? The answer itself is not read.

``r1-zero`` is the form of R1-Zero's template (DeepSeek-R1, arXiv 2501.12948, Table 1 and section
2.2.2): one ``<think>`` block and one ``<answer>`` block, nothing else but blanks. ``special-token``
is R1's cold-start form, ``|special_token|<reasoning>|special_token|<summary>`` (section 2.3.1); the
field ``token`` replaces the literal, which the paper leaves open. Peers disagree on many cases; the
table of ours is in docs/rewards.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from actors.verification.judgement import Judgement
from actors.verification.visible import shows_something
from common.errors import DataError
from common.task_reference import read_reference

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL_MARK = "|special_token|"


class FormatReference(msgspec.Struct, frozen=True):
    """Fields of a ``format`` task."""

    template: Literal["r1-zero", "special-token"]
    token: str = SPECIAL_MARK


def judge_format(completion: str, reference_json: str) -> Judgement:
    """1 when ``completion`` has the form of the template, else 0 with the rule it breaks."""
    reference = read_reference(reference_json, FormatReference)
    if reference.template == "r1-zero":
        problem = r1_zero_problem(completion)
    elif not reference.token:
        raise DataError("malformed task: token must not be empty")
    else:
        parsed = parse_special_token(completion, reference.token)
        problem = "" if parsed else f"must be {reference.token}reasoning{reference.token}summary"
    return Judgement.wrong_format(problem) if problem else Judgement.graded(1.0)


def r1_zero_problem(completion: str) -> str:
    """The first rule of the ``r1-zero`` form that ``completion`` breaks, empty when none."""
    for tag in _TAGS:
        count = completion.count(tag)
        if count != 1:
            return f"needs {tag} exactly once, found {count}"
    before, _, rest = completion.partition("<think>")
    _, closed, rest = rest.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    answer, ended, after = rest.partition("</answer>")
    if not (closed and opened and ended):
        return "tags must come in the order <think> </think> <answer> </answer>"
    if before.strip() or between.strip() or after.strip():
        return "text must stand inside the <think> and <answer> blocks"
    return "" if shows_something(answer) else "the <answer> block is empty"


def parse_special_token(completion: str, token: str = SPECIAL_MARK) -> tuple[str, str] | None:
    """(reasoning, summary) of a cold-start completion, or None when it has another form."""
    before, *parts = completion.split(token)
    if before.strip() or len(parts) != 2 or not shows_something(parts[1]):
        return None
    return parts[0], parts[1]
