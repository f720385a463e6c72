"""What cannot work is refused before a run starts, and a number that is none is never a reward."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from actors.verification.judgement import Check, Judgement, VerifyJob
from actors.verification.models import directory
from actors.verification.models.backend import ModelBackend, ScoringJudge
from actors.verification.models.conversation import ConversationEncoder
from actors.verification.models.directory import check_classifier, check_packages
from actors.verification.models.runner import ModelRunner
from actors.verification.models.scorers import SafetyScorer
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import Float32Array
from common.errors import DataError, FatalError, ModelDirectoryError
from common.torch.scoring_model import ScoringModel
from common.types import VerdictStatus
from tests.unit.actors.verification.models.tiny_scorers import plain, save_scorer

_LIMITS = RunnerLimits(batch_tokens=64, queue_tokens=64, batch_s=1.0, load_s=1.0)
_JOB = VerifyJob(completion="x", checks=(Check(kind="safety", reference_json="{}"),), prompt="Q: ")


class _Answers(ModelRunner):
    """Answers every work with one number, without a process."""

    def __init__(self, value: float) -> None:
        super().__init__([], _LIMITS)
        self._value = value

    async def __aenter__(self) -> _Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing was started."""

    async def run(self, work: Work) -> Float32Array:
        """The number, for each wanted place."""
        return np.full((len(work.positions), 1), self._value, dtype=np.float32)


def _backend(model_dir: Path, value: float) -> ModelBackend:
    runner = _Answers(value)
    scorer = SafetyScorer(plain("safety", model_dir), ConversationEncoder(model_dir, "plain"))
    return ModelBackend({"safety": ScoringJudge("safety", scorer, runner)}, [runner])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_an_infrastructure_failure(
    reward_dir: Path, value: float
) -> None:
    async def judge() -> VerdictStatus | None:
        async with _backend(reward_dir, value) as backend:
            return (await backend.judge(_JOB)).failure

    assert asyncio.run(judge()) is VerdictStatus.INFRA_ERROR


def test_bad_data_is_a_judgement_about_the_task() -> None:
    class Refuses:
        async def __aenter__(self) -> Refuses:
            return self

        async def __aexit__(self, *_: object) -> None:
            """Nothing was started."""

        async def judge(self, job: VerifyJob, check: Check) -> Judgement:
            """Refuse."""
            raise DataError("malformed task: no gold")

    async def judge() -> tuple[Judgement, ...]:
        async with ModelBackend({"safety": Refuses()}, []) as backend:
            return (await backend.judge(_JOB)).judgements

    assert asyncio.run(judge()) == (Judgement.bad_input("malformed task: no gold"),)


def test_a_directory_without_its_weights_is_refused_at_the_start(tmp_path: Path) -> None:
    save_scorer(tmp_path)
    check_classifier(plain("safety", tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelDirectoryError, match=r"no safetensors \(save the model with"):
        check_classifier(plain("safety", tmp_path))


def test_a_machine_without_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(directory, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(FatalError, match=r"needs torch, not installed here \(install headrace"):
        check_packages()


def test_a_model_that_looks_back_less_far_than_it_reads_is_refused(tmp_path: Path) -> None:
    save_scorer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "use_sliding_window": True}))
    with pytest.raises(ModelDirectoryError, match=r"set verifier\.models\.max_tokens <= 64"):
        ScoringModel.load(tmp_path, "score", device="cpu", dtype="auto", max_tokens=65)
