"""Lines in, jobs out; verdicts in, lines out."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.json_lines import (
    MAX_LINE_BYTES,
    BadLine,
    LineJob,
    LineSplitter,
    bad_line_verdict,
    parse_line,
    render_verdict,
)
from common.config import RewardWeight
from common.types import RewardComponent, Verdict, VerdictStatus

_ACCURACY = (RewardWeight(name="accuracy"),)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_lines_do_not_depend_on_how_the_stream_is_cut(data: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter()
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines: list[bytes | None] = []
    for start, end in itertools.pairwise(bounds):
        lines += splitter.feed(data[start:end])
    lines += splitter.finish()
    expected = data.split(b"\n")
    assert lines == (expected if expected[-1] else expected[:-1])


def test_a_line_over_the_cap_is_reported_once_and_the_next_one_is_read() -> None:
    splitter = LineSplitter(max_line_bytes=4)
    assert splitter.feed(b"12345") == []
    assert splitter.feed(b"678\nabcd\nabcde") == [None, b"abcd"]
    assert splitter.finish() == [None]


def test_a_good_line_becomes_a_job_with_the_kinds_own_fields() -> None:
    line = b'{"id":"a","completion":"<answer>1</answer>","gold":"1","source":"x"}'
    parsed = parse_line(line, "arithmetic", _ACCURACY)
    assert isinstance(parsed, LineJob)
    assert (parsed.line_id, parsed.job.completion) == ("a", "<answer>1</answer>")
    assert [check.kind for check in parsed.job.checks] == ["arithmetic"]
    assert json.loads(parsed.job.checks[0].reference_json) == {"gold": "1", "source": "x"}


@pytest.mark.parametrize(("before", "after"), [(b"\xef\xbb\xbf", b""), (b"", b"\r"), (b" ", b"\t")])
def test_what_editors_put_around_a_line_is_no_part_of_it(before: bytes, after: bytes) -> None:
    line = before + b'{"id":1,"completion":"x","gold":"1"}' + after
    assert isinstance(parse_line(line, "arithmetic", _ACCURACY), LineJob)


def test_kind_format_is_judged_by_the_lines_own_template() -> None:
    line = b'{"id":1,"completion":"","template":"special-token"}'
    parsed = parse_line(line, "format", (RewardWeight(name="format", kind="format"),))
    assert isinstance(parsed, LineJob)
    assert parsed.job.checks[0].reference_json == '{"template":"special-token"}'


def test_the_prompt_on_a_line_is_kept_for_models() -> None:
    line = b'{"id":1,"completion":"x","prompt":"Who?"}'
    parsed = parse_line(line, "helpful", _ACCURACY)
    assert isinstance(parsed, LineJob)
    assert parsed.job.prompt == "Who?"


def test_a_reward_that_is_computed_from_tokens_needs_them_on_the_line() -> None:
    terms = (RewardWeight(name="repetition", options={"ngram": 2}),)
    parsed = parse_line(b'{"id":1,"completion":"x","token_ids":[5,5,5]}', "math", terms)
    assert isinstance(parsed, LineJob)
    assert (parsed.token_ids, parsed.job.checks) == ((5, 5, 5), ())
    for line in (b'{"id":1,"completion":"x"}', b'{"id":1,"completion":"x","token_ids":["a"]}'):
        bad = parse_line(line, "math", terms)
        assert isinstance(bad, BadLine)
        assert bad.reason == "token_ids must be a list of numbers: the reward needs it"


@pytest.mark.parametrize(
    ("line", "line_id", "reason"),
    [
        (b"", None, "not valid JSON"),
        (b"garbage", None, "not valid JSON"),
        (b'{"id":1', None, "not valid JSON"),
        (b'{"id":"\\ud800","completion":""}', None, "not valid JSON"),
        (b'{"id":1,"completion":NaN}', None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b"[" * 200_000, None, "not valid JSON"),
        (b"[1]", None, "must be a JSON object, got list"),
        (b'{"completion":"x"}', None, "id must be a string or a number"),
        (b'{"id":true,"completion":"x"}', None, "id must be a string or a number"),
        (b'{"id":7}', 7, "completion must be a string"),
        (b'{"id":"q","completion":5}', "q", "completion must be a string"),
        (None, None, f"a line has at most {MAX_LINE_BYTES} bytes"),
        (b'{"id":9,"completion":"","gold":"%s"}' % (b"1" * (1 << 20)), 9, "fields have at most"),
    ],
)
def test_a_bad_line_is_answered_with_its_id_where_known(
    line: bytes | None, line_id: object, reason: str
) -> None:
    parsed = parse_line(line, "arithmetic", _ACCURACY)
    assert isinstance(parsed, BadLine)
    assert parsed.line_id == line_id
    assert reason in parsed.reason
    answer = json.loads(render_verdict(parsed.line_id, bad_line_verdict(parsed)))
    assert answer["id"] == line_id
    assert (answer["status"], answer["reward"]) == ("bad-input", None)


def test_an_answer_is_one_line_with_the_five_fields() -> None:
    verdict = Verdict(
        status=VerdictStatus.GRADED,
        reward=1.0,
        components=(RewardComponent(name="accuracy", value=1.0),),
        reason="a\nb",
    )
    line = render_verdict("x", verdict)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": "x",
        "status": "graded",
        "reward": 1.0,
        "components": {"accuracy": 1.0},
        "reason": "a\nb",
    }
