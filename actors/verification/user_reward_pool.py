"""The backend of kind ``function``: children of their own, which load the user's rewards.

They start with a trial of each function, so a run does not begin with a reward that cannot work.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import msgspec
import structlog

from actors.verification.child import ChildLimits
from actors.verification.judgement import Check, JobReply, VerifyJob
from actors.verification.pool import VerifierPool
from actors.verification.user_reward import TRIAL_KIND, FunctionCall
from common.config import VerifierConfig
from common.errors import FatalError
from common.types import VerdictStatus
from common.user_rewards import FUNCTION_KIND, FUNCTION_OPTION, SIGNATURE

REGISTRY = "actors.verification.user_reward"

_TRIAL_PROMPT = "1+1="
_TRIAL_COMPLETION = "<think>1+1=2</think><answer>2</answer>"
_TRIAL_REFERENCE = {"gold": "2"}

_log = structlog.get_logger(__name__)


def user_rewards(config: VerifierConfig) -> UserRewards:
    """The backend for ``[verifier]``."""
    functions = {term.module: None for term in config.rewards if term.module}
    return UserRewards(config, tuple(functions))


class UserRewards:
    """Judges checks of kind ``function``; see :class:`actors.verification.dispatch.Backend`."""

    def __init__(self, config: VerifierConfig, functions: tuple[str, ...]) -> None:
        """``functions`` are those that the children load."""
        limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes, REGISTRY, functions)
        self._pool = VerifierPool(limits, config.num_workers)
        self._functions = functions

    @property
    def num_workers(self) -> int:
        """Jobs that are judged at the same time."""
        return self._pool.num_workers

    @property
    def num_restarts(self) -> int:
        """Children that were replaced."""
        return self._pool.num_restarts

    async def __aenter__(self) -> UserRewards:
        """Start the children and try every function once.

        Raises :class:`FatalError` for one that cannot be loaded, hangs or returns no number. That
        it raises is only logged: the task of the trial is made up.
        """
        await self._pool.__aenter__()
        try:
            await asyncio.gather(*(self._try(function) for function in self._functions))
        except BaseException:
            await self._pool.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.__aexit__(kind, error, traceback)

    async def judge(self, job: VerifyJob) -> JobReply:
        """Run the functions that the checks of ``job`` name."""
        checks = tuple(_call(check, job.prompt) for check in job.checks)
        return await self._pool.judge(job.about_completion(checks))

    async def _try(self, function: str) -> None:
        call = FunctionCall(function, _TRIAL_PROMPT, dict(_TRIAL_REFERENCE))
        check = Check(kind=TRIAL_KIND, reference_json=msgspec.json.encode(call).decode())
        reply = await self._pool.judge(VerifyJob(completion=_TRIAL_COMPLETION, checks=(check,)))
        if reply.failure is not None:
            raise FatalError(
                f"verifier.rewards: the trial of {function} failed: {reply.reason} "
                f"(it must be {SIGNATURE}; see docs/writing-a-reward.md)"
            )
        (judgement,) = reply.judgements
        if judgement.status is VerdictStatus.WRONG_FORMAT:
            _log.warning(
                "a reward raised in its trial with a made-up task", reason=judgement.reason
            )


def _call(check: Check, prompt: str) -> Check:
    """The check as the child reads it: the function, the prompt and the fields of the task."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(check.reference_json, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return check  # the child answers that the task is malformed
    function = str(fields.pop(FUNCTION_OPTION, ""))
    call = FunctionCall(function, prompt, fields)
    return Check(kind=FUNCTION_KIND, reference_json=msgspec.json.encode(call).decode())
