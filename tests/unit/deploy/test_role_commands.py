from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common.config import (
    ActorConfig,
    Config,
    LearnerConfig,
    ModelConfig,
    PromptsConfig,
    RunConfig,
    VerifierConfig,
)
from deploy.child_process import ProcessSpec, child_environment
from deploy.role_commands import process_specs


def config_of(*, kind: str = "train", num_ranks: int = 1, stop_grace_s: float = 25.0) -> Config:
    return Config(
        run=RunConfig(directory="/run", kind="collect" if kind == "collect" else "train"),
        model=ModelConfig(path="/model"),
        prompts=PromptsConfig(generator="chain-addition"),
        actor=ActorConfig(count=2, num_threads=3),
        verifier=VerifierConfig(count=2),
        learner=LearnerConfig(num_ranks=num_ranks, num_threads=4, stop_grace_s=stop_grace_s),
    )


def specs_of(config: Config) -> dict[str, ProcessSpec]:
    return {spec.name: spec for spec in process_specs(config, Path("/a.toml"), master_port=4711)}


def test_a_training_run_starts_every_role_and_ends_with_the_learner() -> None:
    specs = specs_of(config_of())
    names = ["broker", "verifier-0", "verifier-1", "actor-0", "actor-1", "learner"]
    assert list(specs) == names
    assert [name for name, spec in specs.items() if spec.is_consumer] == ["learner"]
    command = (sys.executable, "-m", "common.cli", "actor", "/a.toml", "--name", "actor-1")
    assert specs["actor-1"].argv == command


def test_a_collecting_run_ends_with_the_collector() -> None:
    specs = specs_of(config_of(kind="collect"))
    assert "learner" not in specs
    assert specs["collector"].is_consumer


def test_a_learner_gets_its_grace_to_end_however_many_ranks_it_has() -> None:
    for num_ranks in (1, 2):
        specs = specs_of(config_of(num_ranks=num_ranks))
        assert specs["learner"].stop_s > LearnerConfig().stop_grace_s
        assert specs["broker"].stop_s == specs["actor-0"].stop_s == 0


def test_each_role_gets_its_threads_and_never_calls_home() -> None:
    specs = specs_of(config_of())
    threads = {name: spec.env["OMP_NUM_THREADS"] for name, spec in specs.items()}
    assert threads["broker"] == threads["verifier-0"] == "1"
    assert threads["actor-0"] == "3"
    assert threads["learner"] == "4"
    for spec in specs.values():
        assert spec.env["HF_HUB_OFFLINE"] == "1"
        assert spec.env["VLLM_NO_USAGE_STATS"] == "1"


def test_one_rank_is_started_with_the_environment_that_torchrun_would_set() -> None:
    learner = specs_of(config_of())["learner"]
    assert not learner.runs_under_torchrun
    expected = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "4711"}
    assert {key: learner.env[key] for key in expected} == expected


def test_several_ranks_run_under_torchrun_and_die_with_it() -> None:
    learner = specs_of(config_of(num_ranks=2))["learner"]
    assert learner.runs_under_torchrun
    assert "RANK" not in learner.env
    argv = " ".join(learner.argv)
    assert "-m torch.distributed.run --nnodes 1 --nproc-per-node 2" in argv
    assert "--master-addr 127.0.0.1 --master-port 4711" in argv
    assert "exec_with_parent.py 0 " in argv
    assert argv.endswith("-m common.cli learner /a.toml --name learner")


def test_torchrun_waits_for_ranks_that_it_asked_to_stop_as_long_as_their_grace() -> None:
    learner = specs_of(config_of(num_ranks=2, stop_grace_s=89.5))["learner"]
    assert learner.stop_s == 90.5
    assert learner.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "91"


def test_children_always_write_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in child_environment({})
    assert child_environment({"A": "1"})["A"] == "1"


def test_gpus_are_divided_between_learner_and_actors() -> None:
    specs = process_specs(config_of(), Path("/a.toml"), master_port=1, gpus=["0", "1", "2"])
    seen = {spec.name: spec.env.get("CUDA_VISIBLE_DEVICES") for spec in specs}
    assert seen["learner"] == "0"
    assert (seen["actor-0"], seen["actor-1"]) == ("1", "2")
    assert seen["broker"] is None


def test_an_evaluation_gives_every_gpu_to_actors() -> None:
    config = config_of(kind="collect")
    specs = process_specs(config, Path("/a.toml"), master_port=1, gpus=["0", "1"])
    seen = {spec.name: spec.env.get("CUDA_VISIBLE_DEVICES") for spec in specs}
    assert (seen["actor-0"], seen["actor-1"], seen["collector"]) == ("0", "1", None)
