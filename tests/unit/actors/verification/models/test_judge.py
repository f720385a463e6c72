"""A judge at an endpoint: retried, recorded, remembered, and never a reward when it is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from actors.verification.judgement import Check, Judgement, VerifyJob
from actors.verification.models.judge import EndpointJudge, JudgeError, judge_at_endpoint
from actors.verification.models.judge_records import JudgeRecord, JudgeRecords
from common.config import VerifierModelConfig
from common.errors import ConfigError, DataError, FatalError
from common.metrics import Metrics
from common.types import VerdictStatus

Answer = str | int | Exception


def _config(directory: Path, **settings: Any) -> VerifierModelConfig:
    return VerifierModelConfig(
        kind="judge",
        url="http://judge.invalid/v1",
        model="big-judge",
        directory=str(directory),
        **settings,
    )


class _Endpoint:
    """Answers with the scripted texts, status codes and errors, one after the other."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, text="no")
        return httpx.Response(200, json={"choices": [{"message": {"content": answer}}]})

    async def pause(self, seconds: float) -> None:
        """Remember instead of waiting."""
        self.pauses.append(seconds)


def _ask(
    config: VerifierModelConfig,
    endpoint: Callable[[httpx.Request], httpx.Response],
    completion: str = "<think>hm</think>3",
    *,
    reference_json: str = '{"gold": "3"}',
    metrics: Metrics | None = None,
    times: int = 1,
) -> Judgement:
    async def ask() -> Judgement:
        pause = endpoint.pause if isinstance(endpoint, _Endpoint) else asyncio.sleep
        transport = httpx.MockTransport(endpoint)
        judge = EndpointJudge(config, metrics=metrics, transport=transport, pause=pause)
        job = VerifyJob(completion=completion, checks=(), prompt="1+2=")
        check = Check(kind="judge", reference_json=reference_json)
        async with judge:
            answers = await asyncio.gather(*(judge.judge(job, check) for _ in range(times)))
        return answers[-1]

    return asyncio.run(ask())


def _log(directory: Path) -> list[JudgeRecord]:
    lines = (directory / "log.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=JudgeRecord) for line in lines]


def test_the_judge_sees_question_reference_and_summary_but_no_reasoning(tmp_path: Path) -> None:
    endpoint = _Endpoint("It is.\nverdict: A")
    judgement = _ask(_config(tmp_path), endpoint, "<think>secret thoughts</think>three")
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 1.0)
    body = json.loads(endpoint.requests[0].content)
    assert (body["model"], body["temperature"]) == ("big-judge", 0.0)
    asked = body["messages"][1]["content"]
    assert "1+2=" in asked
    assert "three" in asked
    assert "secret thoughts" not in asked


def test_a_score_is_given_without_a_reference(tmp_path: Path) -> None:
    endpoint = _Endpoint("verdict: 7")
    judgement = _ask(_config(tmp_path, verdict="score"), endpoint, reference_json="{}")
    assert judgement.value == 0.7


@pytest.mark.parametrize(
    "trouble",
    [500, 503, 429, httpx.ConnectError("refused"), httpx.ReadTimeout("late"), "I cannot say"],
)
def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(
    tmp_path: Path, trouble: Answer
) -> None:
    endpoint = _Endpoint(trouble, trouble, "verdict: B")
    judgement = _ask(_config(tmp_path), endpoint)
    assert judgement.value == 0.0
    assert endpoint.pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (502, "HTTP 502"),
        (httpx.ConnectError("refused"), "refused"),
        ("verdict: maybe", "which is no verdict"),
    ],
)
def test_a_judge_that_gives_no_verdict_is_an_infrastructure_failure(
    tmp_path: Path, trouble: Answer, reason: str
) -> None:
    endpoint = _Endpoint(trouble, trouble, trouble)
    with pytest.raises(JudgeError, match=reason):
        _ask(_config(tmp_path), endpoint)
    assert list((tmp_path / "verdicts").iterdir()) == []


def test_a_request_that_the_judge_refuses_is_not_repeated(tmp_path: Path) -> None:
    endpoint = _Endpoint(400)
    with pytest.raises(JudgeError, match="HTTP 400"):
        _ask(_config(tmp_path), endpoint)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_will_never_answer_stops_the_run(tmp_path: Path, status: int) -> None:
    with pytest.raises(FatalError, match=rf"HTTP {status} \(check verifier\.models\.url"):
        _ask(_config(tmp_path), _Endpoint(status))


def test_what_the_endpoint_says_is_no_chat_completion_is_tried_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def endpoint(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(200, json={"choices": [] if len(calls) > 1 else None})

    with pytest.raises(JudgeError, match="has no text"):
        _ask(_config(tmp_path, attempts=2), endpoint)
    assert len(calls) == 2


def test_a_verdict_is_asked_for_once_and_outlives_the_process(tmp_path: Path) -> None:
    endpoint = _Endpoint("verdict: A")
    assert _ask(_config(tmp_path), endpoint, times=4).value == 1.0
    metrics = Metrics()
    assert _ask(_config(tmp_path), _Endpoint(), metrics=metrics).value == 1.0
    assert len(endpoint.requests) == 1
    found = metrics.registry.get_sample_value("headrace_judge_answers_total", {"outcome": "cached"})
    assert found == 1.0


def test_every_answer_is_in_the_log_also_one_that_did_not_count(tmp_path: Path) -> None:
    _ask(_config(tmp_path), _Endpoint("hm, verdict unclear", "verdict: A"))
    unclear, clear = _log(tmp_path)
    assert (unclear.answer, unclear.value) == ("hm, verdict unclear", None)
    assert (clear.answer, clear.value) == ("verdict: A", 1.0)
    assert clear.messages == unclear.messages
    assert "1+2=" in clear.messages[1]["content"]
    file = tmp_path / "verdicts" / clear.content_hash[:2] / f"{clear.content_hash}.json"
    assert msgspec.json.decode(file.read_bytes(), type=JudgeRecord) == clear


@pytest.mark.parametrize("content", [b"", b"{", b'{"value": 1.0}'])
def test_a_damaged_record_is_asked_for_again(tmp_path: Path, content: bytes) -> None:
    _ask(_config(tmp_path), _Endpoint("verdict: A"))
    (file,) = (tmp_path / "verdicts").glob("*/*.json")
    file.write_bytes(content)
    assert _ask(_config(tmp_path), _Endpoint("verdict: B")).value == 0.0


def test_an_answer_without_a_summary_is_worth_the_least_and_nobody_is_asked(
    tmp_path: Path,
) -> None:
    judgement = _ask(_config(tmp_path, minimum=-1.0), _Endpoint(), "<think>still at it")
    assert (judgement.status, judgement.value) == (VerdictStatus.WRONG_FORMAT, -1.0)


def test_a_task_without_a_reference_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gold"):
        _ask(_config(tmp_path), _Endpoint(), reference_json="{}")


def test_records_that_cannot_be_kept_are_said_before_anything_is_judged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match=r"set verifier\.models\.directory"):
        JudgeRecords(tmp_path / "file")


def test_the_key_comes_from_the_environment_and_is_sent_as_a_bearer(tmp_path: Path) -> None:
    config = _config(tmp_path, api_key_variable="JUDGE_KEY")
    with pytest.raises(ConfigError, match="has no JUDGE_KEY"):
        judge_at_endpoint(config, environment={})
    judge = judge_at_endpoint(config, environment={"JUDGE_KEY": "k1"})
    assert judge._client.headers["Authorization"] == "Bearer k1"
    assert "Authorization" not in judge_at_endpoint(_config(tmp_path))._client.headers
