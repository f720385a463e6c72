"""The collector's loop against a broker in memory, kills included."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from actors.collection.collector import check_collect, collect_groups, write_results
from actors.collection.samples import SampleLog
from common.arrays import RolloutArrays
from common.codec import Buffer, Decoded
from common.config import (
    CollectConfig,
    Config,
    ModelConfig,
    RewardWeight,
    RunConfig,
    VerifierConfig,
)
from common.errors import ConfigError, FatalError
from common.messages import Ack, CommitStep, FetchRollouts, Groups, PullGroups, Request, Rollouts
from common.text_tokenizer import TextTokenizer
from common.types import (
    RewardComponent,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
)
from tests.builders import prompt, rollout_header

_VOCABULARY = ["<eos>", "<answer>", "</answer>", "0", "1", "2", "3"]


class Killed(BaseException):
    """The collector dies here."""


class BrokerInMemory:
    """Hands out every group that is not committed; can kill the collector at a commit."""

    def __init__(self, groups: Sequence[VerifiedGroup]) -> None:
        self.open = {group.group_id: group for group in groups}
        self.pulls: list[PullGroups] = []
        self.kill_at_commit = -1
        self.num_commits = 0
        self.num_fetches = 0

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        if isinstance(message, PullGroups):
            self.pulls.append(message)
            given = list(self.open.values())[: message.max_groups]
            return Decoded(1, Groups(groups=tuple(given), exhausted=not given), [])
        if isinstance(message, FetchRollouts):
            return self._fetch(message)
        assert isinstance(message, CommitStep)
        if self.num_commits == self.kill_at_commit:
            raise Killed
        self.num_commits += 1
        for group_id in message.group_ids:
            del self.open[group_id]
        return Decoded(1, Ack(), [])

    def _fetch(self, message: FetchRollouts) -> Decoded:
        self.num_fetches += 1
        (group_id,) = {rollout_id.group_id for rollout_id in message.rollout_ids}
        headers = [item.rollout for item in self.open[group_id].rollouts]
        arrays = [
            RolloutArrays(
                np.zeros(3, np.int32),
                np.array([1, 3 + header.rollout_id.index, 2, 0], np.int32),
                np.zeros(4, np.float32),
            )
            for header in headers
        ]
        views = [view.cast("B") for item in arrays for view in item.frames()]
        return Decoded(1, Rollouts(rollouts=tuple(headers)), views)


def _group(group_id: int, size: int = 4) -> VerifiedGroup:
    return VerifiedGroup(
        group_id=group_id,
        prompt=prompt(group_id),
        deadline_step=0,
        rollouts=tuple(
            VerifiedRollout(
                rollout=rollout_header(group_id=group_id, index=index, num_completion=4),
                verdict=Verdict(
                    status=VerdictStatus.GRADED,
                    reward=float(index == 3),
                    components=(RewardComponent(name="accuracy", value=float(index == 3)),),
                ),
            )
            for index in range(size)
        ),
    )


def _tokenizer() -> TextTokenizer:
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(_VOCABULARY)}))
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, (0,), ())


def _config(tmp_path: Path) -> Config:
    return Config(
        run=RunConfig(directory=str(tmp_path), kind="collect"),
        model=ModelConfig(path="model"),
        collect=CollectConfig(output=str(tmp_path / "out"), num_prompts=40, samples_per_prompt=4),
    )


def _collect(broker: BrokerInMemory, log: SampleLog, num_prompts: int) -> None:
    asyncio.run(collect_groups(broker, _tokenizer(), log, num_prompts))


def test_all_groups_of_an_exhausted_source_are_written_and_committed(tmp_path: Path) -> None:
    broker = BrokerInMemory([_group(i) for i in range(40)])
    log = SampleLog(tmp_path / "samples.jsonl")
    _collect(broker, log, num_prompts=100)
    assert broker.open == {}
    assert [pull.policy_step for pull in broker.pulls] == [0, 1, 2, 3]
    groups = list(log.groups())
    assert [group[0].group_id for group in groups] == list(range(40))
    assert [sample.completion for sample in groups[7]] == [
        f"<answer>{value}</answer>" for value in range(4)
    ]
    assert [sample.answer for sample in groups[7]] == ["0", "1", "2", "3"]


def test_no_more_groups_are_pulled_than_asked_for(tmp_path: Path) -> None:
    broker = BrokerInMemory([_group(i) for i in range(40)])
    _collect(broker, SampleLog(tmp_path / "samples.jsonl"), num_prompts=20)
    assert [pull.max_groups for pull in broker.pulls] == [16, 4]
    assert len(broker.open) == 20


@pytest.mark.parametrize("kill_at_commit", [0, 1, 2])
def test_a_group_that_was_written_but_not_committed_is_not_counted_twice(
    tmp_path: Path, kill_at_commit: int
) -> None:
    broker = BrokerInMemory([_group(i) for i in range(40)])
    broker.kill_at_commit = kill_at_commit
    path = tmp_path / "samples.jsonl"
    with pytest.raises(Killed):
        _collect(broker, SampleLog(path), num_prompts=40)
    broker.kill_at_commit = -1
    log = SampleLog(path)
    assert log.num_groups == min(16 * (kill_at_commit + 1), 40)
    _collect(broker, log, num_prompts=41)
    assert broker.open == {}
    assert broker.num_fetches == 40
    assert sorted(group[0].group_id for group in log.groups()) == list(range(40))


def test_results_are_metrics_and_samples(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    _collect(BrokerInMemory([_group(i) for i in range(2)]), log, num_prompts=2)
    written = write_results(log, _config(tmp_path))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_bytes())
    assert metrics == written
    assert (metrics["pass_at_1"], metrics["pass_at"]["4"]) == (0.25, 1.0)
    assert (metrics["mean_length"], metrics["format_mean"]) == (4.0, None)
    assert metrics["weight_versions"] == ["0.0"]
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == log.path.read_bytes()


def test_a_run_without_groups_has_no_results(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    _collect(BrokerInMemory([]), log, num_prompts=2)
    with pytest.raises(FatalError, match="no group was collected"):
        write_results(log, _config(tmp_path))


def test_a_run_that_is_not_for_a_collector_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    check_collect(config)
    bad: list[tuple[Config, str]] = [
        (dataclasses.replace(config, run=RunConfig(directory="x")), "run.kind"),
        (dataclasses.replace(config, collect=CollectConfig()), "collect.output"),
        (
            dataclasses.replace(
                config, verifier=VerifierConfig(rewards=(RewardWeight(name="format"),))
            ),
            "verifier.rewards",
        ),
    ]
    for broken, key in bad:
        with pytest.raises(ConfigError, match=key):
            check_collect(broken)
