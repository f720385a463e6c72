"""A user's reward the whole way: terms, checks, backend, verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.verification.dispatch import Dispatcher
from actors.verification.judgement import VerifyJob
from actors.verification.reward import compose_verdict, plan_checks
from common.config import VerifierConfig
from common.types import Prompt, Verdict

PROMPT = Prompt(prompt_id="p", text="1+1=", task="arithmetic", reference_json='{"gold":"2"}')


def verdicts_on(config: VerifierConfig, completions: Sequence[str]) -> list[Verdict]:
    """The verdicts, one after the other."""

    async def run() -> list[Verdict]:
        async with Dispatcher(config) as dispatcher:
            verdicts = []
            for completion in completions:
                checks = plan_checks(config.rewards, PROMPT)
                job = VerifyJob(completion=completion, checks=checks, prompt=PROMPT.text)
                verdicts.append(compose_verdict(config.rewards, await dispatcher.judge(job)))
            return verdicts

    return asyncio.run(run())
