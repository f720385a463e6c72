"""The engine thread: order of work, and that unproven weights never serve."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch

from actors.generation.engine_thread import EngineThread, check_canary
from actors.generation.sampler import SampledCompletion, SampleRequest
from actors.generation.weight_agent import StagedWeights, StagingBuffer
from common.errors import DataError, InfraError, ModelDirectoryError, WeightLoadError
from common.weight_layout import Canary, WeightManifest
from tests.builders import version
from tests.scripted_sampler import POISON_TOKEN, ScriptedSampler

_WAIT_S = 10.0
_CANARY = Canary(token_ids=((3, 4, 5), (6, 7)), logprobs=((-0.5, -0.5), (-0.5,)), tolerance=1e-3)


class Engine:
    """An engine thread on a scripted sampler, with what it handed out."""

    def __init__(self) -> None:
        self.sampler = ScriptedSampler(version(0))
        self.completions: queue.SimpleQueue[SampledCompletion] = queue.SimpleQueue()
        self.error: Future[BaseException] = Future()
        self.thread = EngineThread(
            lambda: self.sampler, self.completions.put, self.error.set_result
        )

    def next_completion(self) -> SampledCompletion:
        return self.completions.get(timeout=_WAIT_S)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.thread.start()
    engine.thread.started.result(_WAIT_S)
    yield engine
    engine.sampler.gate.set()
    assert engine.thread.close(_WAIT_S)


def _request(name: str, *prompt_token_ids: int) -> SampleRequest:
    return SampleRequest(request_id=name, prompt_token_ids=prompt_token_ids, max_tokens=4)


def _staged(policy_step: int, canary: Canary | None = _CANARY) -> StagedWeights:
    at = version(policy_step)
    return StagedWeights(
        version=at,
        manifest=WeightManifest(version=at, tensors=(), canary=canary),
        tensors={"weight": torch.ones(2)},
        source="pull",
        transfer_s=0.1,
        buffer=StagingBuffer(),
    )


def test_requests_come_back_with_the_version_that_sampled_them(engine: Engine) -> None:
    engine.thread.submit([_request("a", 7), _request("b", 8)]).result(_WAIT_S)
    done = [engine.next_completion(), engine.next_completion()]
    assert [(item.request_id, item.token_ids.tolist()) for item in done] == [
        ("a", [7, 1]),
        ("b", [8, 1]),
    ]
    assert {item.version_spans[0].version for item in done} == {version(0)}


def test_a_group_with_one_impossible_request_is_refused_as_a_whole(engine: Engine) -> None:
    engine.sampler.gate.clear()
    refused = engine.thread.submit([_request("a", 7), _request("b", POISON_TOKEN)])
    with pytest.raises(DataError, match="poison"):
        refused.result(_WAIT_S)
    engine.thread.submit([_request("c", 9)]).result(_WAIT_S)
    engine.sampler.gate.set()
    assert engine.next_completion().request_id == "c"
    assert engine.sampler.aborted == ["a", "b"]


def test_an_aborted_request_is_not_delivered(engine: Engine) -> None:
    engine.sampler.gate.clear()
    engine.thread.submit([_request("a", 7), _request("b", 8)]).result(_WAIT_S)
    engine.thread.abort(["a"]).result(_WAIT_S)
    engine.sampler.gate.set()
    assert engine.next_completion().request_id == "b"


def test_the_canary_is_scored_right_after_the_load_and_before_any_step(engine: Engine) -> None:
    engine.sampler.gate.clear()
    engine.thread.submit([_request("a", 7)]).result(_WAIT_S)
    stall_s = engine.thread.load(_staged(1)).result(_WAIT_S)
    engine.sampler.gate.set()
    assert engine.next_completion().version_spans[-1].version == version(1)
    calls = engine.sampler.calls
    loaded = calls.index("load")
    assert calls[loaded : loaded + 3] == ["load", "score", "score"]
    assert engine.thread.statistics.stall_s == stall_s > 0


def test_a_load_that_fails_once_is_repeated_from_staging(engine: Engine) -> None:
    engine.sampler.num_load_failures = 1
    staged = _staged(1)
    engine.thread.load(staged).result(_WAIT_S)
    assert engine.sampler.loads == [staged.tensors, staged.tensors]
    engine.thread.submit([_request("a", 7)]).result(_WAIT_S)
    assert engine.next_completion().version_spans[0].version == version(1)


def test_a_load_that_fails_twice_ends_the_engine_and_nothing_is_served(engine: Engine) -> None:
    engine.sampler.gate.clear()
    engine.thread.submit([_request("a", 7)]).result(_WAIT_S)
    engine.sampler.num_load_failures = 2
    loading = engine.thread.load(_staged(1))
    with pytest.raises(WeightLoadError, match="3 loaded tensors differ"):
        loading.result(_WAIT_S)
    assert isinstance(engine.error.result(_WAIT_S), WeightLoadError)
    with pytest.raises(InfraError, match="the engine has ended"):
        engine.thread.submit([_request("b", 8)]).result(_WAIT_S)
    assert engine.completions.empty()
    assert "step" not in engine.sampler.calls[engine.sampler.calls.index("load") :]


def test_a_canary_that_disagrees_ends_the_engine_without_a_second_load(engine: Engine) -> None:
    engine.sampler.gate.clear()
    engine.thread.submit([_request("a", 7)]).result(_WAIT_S)
    engine.sampler.logprob = -0.6
    with pytest.raises(WeightLoadError, match=r"differ by 0\.1 nats"):
        engine.thread.load(_staged(1)).result(_WAIT_S)
    assert isinstance(engine.error.result(_WAIT_S), WeightLoadError)
    assert len(engine.sampler.loads) == 1
    assert engine.completions.empty()
    assert engine.thread.close(_WAIT_S)
    assert engine.sampler.is_closed


@pytest.mark.parametrize(("logprob", "agrees"), [(-0.5009, True), (-0.502, False)])
def test_the_canary_allows_its_tolerance_and_no_more(logprob: float, agrees: bool) -> None:
    sampler = ScriptedSampler(version(0))
    sampler.logprob = logprob
    if agrees:
        assert check_canary(sampler, _CANARY) == pytest.approx(0.0009, abs=1e-6)
    else:
        with pytest.raises(WeightLoadError, match="canary_tolerance"):
            check_canary(sampler, _CANARY)


def test_a_canary_that_is_not_a_number_disagrees() -> None:
    sampler = ScriptedSampler(version(0))
    sampler.logprob = float("nan")
    with pytest.raises(WeightLoadError, match="nan nats"):
        check_canary(sampler, _CANARY)


def test_weights_without_a_canary_are_proven_by_digests_alone(engine: Engine) -> None:
    engine.thread.load(_staged(4, canary=None)).result(_WAIT_S)
    assert engine.sampler.serving_version == version(4)
    assert "score" not in engine.sampler.calls


def test_an_engine_that_breaks_while_decoding_fails_whoever_still_waits(engine: Engine) -> None:
    engine.sampler.step_error = InfraError("the engine must give finite log-probabilities")
    engine.thread.submit([_request("a", 7)])
    error = engine.error.result(_WAIT_S)
    assert "finite" in str(error)
    assert engine.thread.close(_WAIT_S)
    assert engine.sampler.is_closed


def test_a_model_that_cannot_be_built_is_told_through_started() -> None:
    def build() -> ScriptedSampler:
        raise ModelDirectoryError("no weights here")

    error: Future[BaseException] = Future()
    thread = EngineThread(build, lambda _: None, error.set_result)
    thread.start()
    with pytest.raises(ModelDirectoryError, match="no weights here"):
        thread.started.result(_WAIT_S)
    assert isinstance(error.result(_WAIT_S), ModelDirectoryError)
    assert thread.close(_WAIT_S)


def test_an_engine_that_was_never_started_closes() -> None:
    sampler = ScriptedSampler(version(0))
    assert EngineThread(lambda: sampler, lambda _: None, lambda _: None).close(0.0)
