"""The generation actor: prompts in, rollouts out, newest proven weights in between.

One engine thread owns the sampler; one event loop talks to the broker; one more thread at a time
receives weights. The actor may be killed at any time: its leases expire or are revoked, and it
keeps nothing that another actor would need. A stop returns its leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from actors.generation.engine_thread import EngineThread
from actors.generation.lease_book import LeaseBook
from actors.generation.own_payloads import OwnPayloads, payload_place
from actors.generation.rollout_stream import RolloutStream, SamplingSettings
from actors.generation.sampler import SampledCompletion, Sampler
from actors.generation.weight_agent import WeightAgent, WeightReceiver
from actors.generation.weight_watch import Serving, WeightWatch
from common.config import Config, RunPaths
from common.endpoints import read_endpoint
from common.errors import DataError
from common.lifecycle import Process
from common.prompt_template import render_prompt
from common.security import client_security
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import Prompt, Role, WeightVersion

INITIAL_VERSION = WeightVersion(incarnation=0, policy_step=0)
"""What the model directory itself counts as where no learner publishes."""
_FLUSH_S = 3.0
_ENGINE_CLOSE_S = 3.0

SamplerFactory = Callable[[], Sampler]


async def run_actor(process: Process, build_sampler: SamplerFactory) -> None:
    """Serve until cancelled or until the engine fails; ``build_sampler`` runs on its thread."""
    serves_payloads = process.config.stores.payloads == "direct"
    own_payloads = OwnPayloads.open(process) if serves_payloads else None
    channel = await Channel.connect(
        role=Role.ACTOR,
        name=process.name,
        endpoint=read_endpoint(process.config, process.paths),
        security=client_security(process.config, Role.ACTOR, process.name),
        payload_endpoint=own_payloads.endpoint if own_payloads else "",
    )
    try:
        worker = GenerationWorker(
            process,
            channel,
            build_sampler,
            weight_agent(process.config, process.paths, process.name),
            own_payloads,
        )
        try:
            await worker.run()
        finally:
            await worker.close()
    finally:
        await channel.close()
        if own_payloads is not None:
            own_payloads.close()


def weight_agent(config: Config, paths: RunPaths, name: str) -> WeightAgent:
    """The receiver of weights that ``config`` asks for."""
    return WeightAgent(
        run_id=config.run.id,
        member=name,
        directory=paths.weights,
        bucket_bytes=config.weights.bucket_bytes,
        deadline_s=config.weights.deadline_s,
    )


def prompt_encoder(config: Config, tokenizer: TextTokenizer) -> Callable[[Prompt], list[int]]:
    """Prompt -> token ids under the run's template; ``DataError`` for one that is too long."""
    longest = config.model.max_length - config.actor.max_tokens

    def encode(prompt: Prompt) -> list[int]:
        text = render_prompt(config.prompts.template, prompt.text, config.model.path)
        token_ids = tokenizer.encode(text)
        if not 1 <= len(token_ids) <= longest:
            raise DataError(
                f"prompt {prompt.prompt_id} must have 1 to {longest} tokens (model.max_length - "
                f"actor.max_tokens), got {len(token_ids)}"
            )
        return token_ids

    return encode


class GenerationWorker:
    """Wires engine, weights and rollouts of one actor together."""

    def __init__(
        self,
        process: Process,
        channel: Channel,
        build_sampler: SamplerFactory,
        receiver: WeightReceiver,
        own_payloads: OwnPayloads | None = None,
    ) -> None:
        """``own_payloads`` serves the rollouts that are kept in this process, if they are."""
        config = process.config
        tokenizer = TextTokenizer.load(config.model.path)
        self._process = process
        self._receiver = receiver
        self._channel = channel
        self._own_payloads = own_payloads
        self._serving = Serving()
        self._reported = (0.0, 0.0)
        self._blocked_told_s = 0.0
        self._engine_error: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engine = EngineThread(build_sampler, self._deliver, self._engine_failed)
        self._stream = RolloutStream(
            channel=channel,
            engine=self._engine,
            serving=self._serving,
            book=LeaseBook(max_sequences=config.actor.max_num_seqs, group_size=config.group_size),
            encode=prompt_encoder(config, tokenizer),
            settings=SamplingSettings(
                actor=process.name,
                max_tokens=config.actor.max_tokens,
                temperature=config.actor.temperature,
                stop_token_ids=tokenizer.eos_token_ids,
            ),
            place=payload_place(process, channel, own_payloads),
            metrics=process.metrics,
            log=process.log,
        )
        self._watch = WeightWatch(
            channel=channel,
            engine=self._engine,
            receiver=receiver,
            serving=self._serving,
            metrics=process.metrics,
            log=process.log,
        )
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Work until cancelled; raises what ended the engine."""
        self._engine.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wait_engine_failed(), name="engine")
            tasks.create_task(self._stream.heartbeat_forever(), name="heartbeats")
            tasks.create_task(self._export_metrics(), name="metrics")
            if self._own_payloads is not None:
                serving = self._own_payloads.serve(self._channel)
                tasks.create_task(serving, name="payloads")
            await asyncio.wrap_future(self._engine.started)
            if self._process.config.run.kind == "collect":
                self._serving.set(INITIAL_VERSION)
            else:
                tasks.create_task(self._watch.receive_forever(), name="receive-weights")
                tasks.create_task(self._watch.load_forever(), name="load-weights")
            tasks.create_task(self._stream.lease_forever(), name="leases")
            tasks.create_task(self._stream.submit_forever(), name="rollouts")
            self._process.ready(engine=self._process.config.actor.engine)

    async def close(self) -> None:
        """Send what is finished, give back what is not, free the engine; bounded in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._watch.report_failed_load()
                await self._stream.give_back()
        self._receiver.close()
        if not await asyncio.to_thread(self._engine.close, _ENGINE_CLOSE_S):
            self._process.log.warning("the engine did not end in time")

    def _deliver(self, completion: SampledCompletion) -> None:
        self._loop.call_soon_threadsafe(self._stream.on_completion, completion)

    def _engine_failed(self, error: BaseException) -> None:
        def tell() -> None:
            if not self._engine_error.done():
                self._engine_error.set_exception(error)

        self._loop.call_soon_threadsafe(tell)

    async def _wait_engine_failed(self) -> None:
        await self._engine_error

    async def _export_metrics(self) -> None:
        metrics = self._process.metrics
        while True:
            now = self._engine.statistics
            busy_s, idle_s = self._reported
            metrics.inc("headrace_busy_seconds_total", now.busy_s - busy_s, stage="generate")
            metrics.inc("headrace_idle_seconds_total", now.idle_s - idle_s, stage="generate")
            metrics.set("headrace_running_sequences", now.num_running)
            blocked_s, told_s = self._channel.blocked_total_s, self._blocked_told_s
            metrics.inc("headrace_credit_wait_seconds_total", blocked_s - told_s)
            self._reported, self._blocked_told_s = (now.busy_s, now.idle_s), blocked_s
            await asyncio.sleep(1.0)
