"""The consumer of a ``collect`` run: verified groups in, samples.jsonl and metrics.json out.

One group at a time: pull, make durable, commit. So after a kill a group is either in the file, and
skipped when it comes again, or not, and handed out again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.collection.metrics import summarize
from actors.collection.samples import SampleLog, samples_of
from common.answer_conventions import Convention
from common.arrays import RolloutArrays, arrays_from_frames, split_frames
from common.codec import Buffer, Decoded
from common.completions import decode_completion
from common.config import Config
from common.endpoints import read_endpoint
from common.errors import ConfigError, DecodeError, FatalError
from common.files import write_atomically
from common.lifecycle import Process
from common.messages import CommitStep, EndRun, FetchRollouts, Groups, PullGroups, Request, Rollouts
from common.payloads.client import PayloadClient, Wanted
from common.payloads.wiring import payload_client
from common.security import client_security
from common.text_tokenizer import TextTokenizer
from common.thoughts import InsideThought
from common.transport import Channel
from common.types import Role, VerifiedGroup

_MAX_GROUPS = 16
_PULL_WAIT_S = 2.0


class Requester(Protocol):
    """What the collector needs of :class:`common.transport.Channel`."""

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply."""
        ...


def check_collect(config: Config) -> None:
    """Raise :class:`ConfigError` unless ``config`` describes a run for a collector."""
    if config.run.kind != "collect":
        raise ConfigError(
            f'run.kind must be "collect" for a collector, got {config.run.kind!r} '
            "(a training run ends in the learner)"
        )
    if not config.collect.output:
        raise ConfigError(
            "collect.output must name the directory for metrics.json, got '' "
            '(for example output = "evaluation")'
        )
    if "accuracy" not in {term.name for term in config.verifier.rewards}:
        raise ConfigError(
            'verifier.rewards must contain "accuracy" in a collect run, got none '
            '(add {name = "accuracy"})'
        )


async def collect_groups(
    channel: Requester,
    tokenizer: TextTokenizer,
    log: SampleLog,
    num_prompts: int,
    payloads: PayloadClient | None = None,
    extract: tuple[Convention, ...] = (),
    inside_thought: InsideThought = "auto",
) -> None:
    """Fill ``log`` until it holds ``num_prompts`` groups or the prompts are used up.

    ``extract`` and ``inside_thought`` are those of ``[verifier]``. ``payloads`` fetches what is not
    with the broker. A group of which that lost a part is left out here and comes again.
    """
    policy_step = 0
    while log.num_groups < num_prompts:
        max_groups = min(_MAX_GROUPS, num_prompts - log.num_groups)
        pull = PullGroups(
            policy_step=policy_step, max_groups=max_groups, wait_s=_PULL_WAIT_S, held=()
        )
        reply = (await channel.request(pull)).message
        if not isinstance(reply, Groups):
            raise DecodeError(f"unexpected reply {type(reply).__name__} to PullGroups")
        done = []
        for group in reply.groups:
            if not log.holds(group.group_id, group.prompt.prompt_id):
                arrays = await _fetch_arrays(channel, group, payloads)
                if arrays is None:
                    continue
                completions = [
                    decode_completion(tokenizer, item, inside_thought) for item in arrays
                ]
                log.append(samples_of(group, completions, extract))
            done.append(group)
        if done:
            group_ids = tuple(group.group_id for group in done)
            commit = CommitStep(incarnation=0, policy_step=policy_step, group_ids=group_ids)
            await channel.request(commit)
            policy_step += 1
        elif reply.exhausted and not reply.groups:
            return


async def _fetch_arrays(
    channel: Requester, group: VerifiedGroup, payloads: PayloadClient | None
) -> list[RolloutArrays] | None:
    """The arrays of a group's rollouts, in order; None when some are lost."""
    if payloads is not None:
        return await _fetch_anywhere(payloads, group)
    rollout_ids = tuple(item.rollout.rollout_id for item in group.rollouts)
    decoded = await channel.request(FetchRollouts(rollout_ids=rollout_ids))
    if not isinstance(decoded.message, Rollouts):
        raise DecodeError(f"unexpected reply {type(decoded.message).__name__} to FetchRollouts")
    return split_frames(decoded.message.rollouts, decoded.frames)


async def _fetch_anywhere(
    payloads: PayloadClient, group: VerifiedGroup
) -> list[RolloutArrays] | None:
    found = await payloads.fetch([Wanted.of(item.rollout) for item in group.rollouts])
    arrays = []
    for item in found:
        if item is None:
            return None
        arrays.append(arrays_from_frames(item.frames))
    return arrays


def write_results(log: SampleLog, config: Config) -> dict[str, Any]:
    """Write metrics.json and samples.jsonl to ``collect.output``; returns the metrics."""
    versions: set[str] = set()
    prompts = []
    for group in log.groups():
        versions.update(sample.weight_version for sample in group)
        prompts.append([sample.score() for sample in group])
    if not prompts:
        raise FatalError(
            "no group was collected: every prompt was dropped or there was none "
            "(see the broker's log for dead-lettered groups)"
        )
    metrics = {
        "run_id": config.run.id,
        "model": config.model.path,
        "weight_versions": sorted(versions),
        "temperature": config.actor.temperature,
        "samples_per_prompt": config.collect.samples_per_prompt,
        "num_prompts_requested": config.collect.num_prompts,
        **summarize(prompts),
    }
    output = Path(config.collect.output)
    output.mkdir(parents=True, exist_ok=True)
    log.copy_to(output / "samples.jsonl")
    write_atomically(output / "metrics.json", json.dumps(metrics, indent=2).encode() + b"\n")
    return metrics


async def serve(process: Process) -> None:
    """Collect, write, end the run."""
    config = process.config
    check_collect(config)
    tokenizer = TextTokenizer.load(config.model.path)
    log = SampleLog(process.paths.samples)
    channel = await Channel.connect(
        role=Role.COLLECTOR,
        name=process.name,
        endpoint=read_endpoint(config, process.paths),
        security=client_security(config, Role.COLLECTOR, process.name),
    )
    payloads = payload_client(config, channel, Role.COLLECTOR, process.name)
    try:
        process.ready(num_groups=log.num_groups)
        await collect_groups(
            channel,
            tokenizer,
            log,
            config.collect.num_prompts,
            payloads,
            config.verifier.extract,
            config.verifier.inside_thought,
        )
        metrics = write_results(log, config)
        process.log.info(
            "collected",
            num_prompts=metrics["num_prompts"],
            pass_at_1=metrics["pass_at_1"],
            output=config.collect.output,
        )
        await channel.request(EndRun())
    finally:
        await payloads.close()
        await channel.close()
