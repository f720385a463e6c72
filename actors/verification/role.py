"""Puts one verifier process together: backends, channel, payload client, worker."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager

from actors.verification.backends import known_kinds
from actors.verification.dispatch import Dispatcher
from actors.verification.grading import RolloutReference
from actors.verification.reward import check_rewards, needed_kinds
from actors.verification.rollout_judge import RolloutJudge
from actors.verification.task_pool import generated_kinds
from actors.verification.worker import VerifierWorker
from common.endpoints import read_endpoint
from common.lifecycle import Process
from common.payloads.wiring import payload_client
from common.security import client_security
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import Role


async def serve(process: Process) -> None:
    """Run one verifier until its process is stopped."""
    config = process.config
    verifier = config.verifier
    check_rewards(verifier.rewards, known_kinds())
    tokenizer = TextTokenizer.load(config.model.path)
    async with (
        Dispatcher(verifier, metrics=process.metrics) as dispatcher,
        _reference(process) as reference,
    ):
        judge = RolloutJudge(
            dispatcher, tokenizer, verifier, metrics=process.metrics, log=process.log
        )
        kinds = (*needed_kinds(verifier.rewards), *generated_kinds(config.prompts))
        await dispatcher.start(kinds)
        await _work(process, judge, reference)


async def _work(process: Process, judge: RolloutJudge, reference: RolloutReference | None) -> None:
    """Judge what the broker sends until the process is stopped."""
    config = process.config
    channel = await Channel.connect(
        role=Role.VERIFIER,
        name=process.name,
        endpoint=read_endpoint(config, process.paths),
        security=client_security(config, Role.VERIFIER, process.name),
    )
    payloads = payload_client(config, channel, Role.VERIFIER, process.name)
    try:
        worker = VerifierWorker(
            channel,
            judge,
            metrics=process.metrics,
            log=process.log,
            heartbeat_s=channel.registered.heartbeat_s,
            payloads=payloads,
            reference=reference,
            on_pause=process.pause,
        )
        process.ready(num_children=config.verifier.num_workers)
        await worker.run()
    finally:
        await payloads.close()
        await channel.close()


def _reference(process: Process) -> AbstractAsyncContextManager[RolloutReference | None]:
    """The reference pass, where verifiers compute it."""
    if not process.config.has_verifier_reference:
        return contextlib.nullcontext()
    from actors.verification.models.reference import reference_pass

    return reference_pass(process.config, process.metrics)
