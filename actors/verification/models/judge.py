"""A generative judge behind an OpenAI-compatible endpoint: a service, or a local ``vllm serve``.

The judge sees the question, the reference and the final summary: never the reasoning, whose length
would sway it (DeepSeek-R1, supplement on evaluation). A judge that is away, or does not follow the
grammar, is an infrastructure failure and never a reward.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import httpx
import msgspec

from actors.verification.judgement import Check, Judgement, VerifyJob
from actors.verification.models.judge_prompt import (
    JudgeQuestion,
    correctness_question,
    read_verdict,
    score_question,
)
from actors.verification.models.judge_records import JudgeRecord, JudgeRecords
from actors.verification.models.memory import AnswerMemory
from actors.verification.models.response import final_summary
from common.config import VerifierModelConfig
from common.errors import ConfigError, DataError, FatalError, InfraError
from common.metrics import Metrics
from common.types import VerdictStatus

MAX_ANSWER_TOKENS = 2048
FIRST_PAUSE_S = 0.5
"""Pause before the second try; each further one is twice as long."""

_CHARS_PER_TOKEN = 4
"""What is too long is the answer's fault; refused by the endpoint it would have no reward."""
_NEVER_WORKS = frozenset({401, 403, 404})
_WORTH_A_TRY = frozenset({408, 409, 429})
_CUT_OFF = frozenset({"abort", "content_filter", "error", "length"})


class JudgeError(InfraError):
    """The judge gave no verdict."""


class _TryAgainError(Exception):
    """This try failed; the next may not."""


class EndpointJudge:
    """Asks one model of one endpoint; ``async with`` holds the connections."""

    def __init__(
        self,
        config: VerifierModelConfig,
        *,
        api_key: str = "",
        metrics: Metrics | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._pause = pause
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/",
            headers=headers,
            timeout=config.timeout_s,
            transport=transport,
            trust_env=False,
        )
        self._records: JudgeRecords | None = None
        self._turns = asyncio.Semaphore(config.concurrency)
        self._memory: AnswerMemory[float] = AnswerMemory()

    async def __aenter__(self) -> EndpointJudge:
        self._records = JudgeRecords(Path(self._config.directory))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        if self._records is not None:
            self._records.close()

    async def judge(self, job: VerifyJob, check: Check) -> Judgement:
        """The judge's verdict on the final summary; raises :class:`JudgeError` without one."""
        summary = final_summary(job.response)
        if summary is None:
            return Judgement(
                status=VerdictStatus.WRONG_FORMAT,
                value=self._config.minimum,
                reason="there is no final summary to judge",
            )
        if len(summary) > _CHARS_PER_TOKEN * self._config.max_tokens:
            return Judgement(
                status=VerdictStatus.WRONG_FORMAT,
                value=self._config.minimum,
                reason=f"the summary has {len(summary)} characters: too long for the judge",
            )
        question = self._question(job.prompt, check.reference_json, summary)
        key = question.content_hash(self._config.model)
        value = await self._memory.get(key, lambda: self._verdict(key, question))
        return Judgement.graded(value, f"judged by {self._config.model}, record {key[:16]}")

    def _question(self, prompt: str, reference_json: str, summary: str) -> JudgeQuestion:
        if self._config.verdict == "score":
            return score_question(prompt, summary)
        return correctness_question(prompt, _gold(reference_json), summary)

    async def _verdict(self, key: str, question: JudgeQuestion) -> float:
        records = self._records
        if records is None:
            raise JudgeError("the judge was not started")
        known = await asyncio.to_thread(records.find, key)
        if known is not None:
            self._count("cached")
            return known
        reason = ""
        for number in range(self._config.attempts):
            if number:
                await self._pause(FIRST_PAUSE_S * 2 ** (number - 1))
            try:
                return await self._ask(key, question, records)
            except _TryAgainError as error:
                reason = str(error)
        self._count("failed")
        raise JudgeError(f"no verdict of the judge in {self._config.attempts} tries: {reason}")

    async def _ask(self, key: str, question: JudgeQuestion, records: JudgeRecords) -> float:
        messages = question.messages()
        async with self._turns:
            answer = await self._request(messages)
        value = read_verdict(question.grammar, answer)
        record = JudgeRecord(key, self._config.model, messages, answer, value, time.time())
        try:
            await asyncio.to_thread(records.keep, record)
        except OSError as error:
            raise JudgeError(f"the verdict cannot be recorded: {error.strerror}") from None
        if value is None:
            self._count("ungrammatical")
            raise _TryAgainError(f"the answer ends in {answer[-80:]!r}, which is no verdict")
        self._count("judged")
        return value

    async def _request(self, messages: list[dict[str, str]]) -> str:
        """The text of the judge's answer; raises what the failure asks to be done about it."""
        body = {
            "model": self._config.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        try:
            async with asyncio.timeout(self._config.timeout_s):  # httpx counts each byte anew
                response = await self._client.post("chat/completions", json=body)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from None
        status = response.status_code
        if status in _NEVER_WORKS:
            raise FatalError(
                f"the judge at {self._config.url} answers HTTP {status} (check "
                "verifier.models.url, model and api_key_variable)"
            )
        if status >= 500 or status in _WORTH_A_TRY:
            raise _TryAgainError(f"HTTP {status}")
        if status != 200:
            raise JudgeError(f"the judge answers HTTP {status}: {response.text[:200]}")
        return _answer_text(response.content)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.inc("headrace_judge_answers_total", outcome=outcome)


def judge_at_endpoint(
    config: VerifierModelConfig,
    metrics: Metrics | None = None,
    environment: Mapping[str, str] | None = None,
) -> EndpointJudge:
    """The judge of one table of ``[[verifier.models]]``.

    Raises :class:`ConfigError` where the variable that holds its key is not set.
    """
    variables = os.environ if environment is None else environment
    api_key = variables.get(config.api_key_variable, "")
    if config.api_key_variable and not api_key:
        raise ConfigError(
            f"verifier.models.api_key_variable: the environment has no {config.api_key_variable} "
            "(set it, or delete the line for an endpoint without keys)"
        )
    return EndpointJudge(config, api_key=api_key, metrics=metrics)


class _Gold(msgspec.Struct, frozen=True):
    gold: str | int | float


def _gold(reference_json: str) -> str:
    try:
        return str(msgspec.json.decode(reference_json, type=_Gold).gold)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"malformed task: {error}") from None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def _answer_text(content: bytes) -> str:
    try:
        choices = msgspec.json.decode(content, type=_Completion).choices
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _TryAgainError(f"the endpoint's answer is not a chat completion: {error}") from None
    if not choices or choices[0].message.content is None:
        raise _TryAgainError("the endpoint's answer has no text")
    if choices[0].finish_reason in _CUT_OFF:  # of "verdict: 10" a "verdict: 1" may be left
        raise _TryAgainError(f"the answer was cut off ({choices[0].finish_reason})")
    return choices[0].message.content
