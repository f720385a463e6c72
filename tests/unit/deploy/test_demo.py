from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config_loader import load_config
from common.errors import FatalError
from deploy.demo import finish, prepare_folder, write_configs
from deploy.demo_config import DemoPaths
from deploy.demo_stages import StageLedger, StageResult, demo_stages
from tests.unit.deploy.synthetic_run import MAX_POLICY_LAG, NUM_STEPS, write_demo

REQUIRED_KEYS = {
    "pass_at_1_before",
    "pass_at_1_after",
    "maj_at_16_after",
    "mean_length_before",
    "mean_length_after",
    "steps",
    "max_policy_lag",
    "observed_max_lag",
    "groups",
    "weight_syncs",
    "weight_proofs_failed",
    "tokens_per_second",
    "engine",
    "wall_seconds",
}


def finished_demo(root: Path) -> DemoPaths:
    paths = write_demo(root)
    write_configs(paths, seed=1, num_steps=NUM_STEPS)
    ledger = StageLedger.open(paths, 1, NUM_STEPS)
    for stage in demo_stages(paths, 1, NUM_STEPS):
        ledger.add(stage.name, StageResult(seconds=10.0, peak_rss_bytes=3 << 30, is_done=True))
    return paths


def test_the_summary_has_every_promised_key_and_the_figures_of_the_run(tmp_path: Path) -> None:
    paths = finished_demo(tmp_path)
    finish(paths, seed=1, num_steps=NUM_STEPS)
    summary = json.loads(paths.summary.read_bytes())
    assert summary.keys() >= REQUIRED_KEYS
    assert summary["pass_at_1_before"] == 0.451
    assert summary["pass_at_1_after_ci95"] == [0.892, 0.932]
    assert summary["maj_at_16_after"] == pytest.approx(0.962)
    assert summary["steps"] == NUM_STEPS
    assert summary["observed_max_lag"] == summary["max_policy_lag"] == MAX_POLICY_LAG
    assert summary["groups"]["admitted"] == 864
    assert summary["weight_syncs"] == 24
    assert summary["tokens_per_second"] == pytest.approx(4000, rel=0.1)
    assert summary["idle_ratio"]["actor"] == pytest.approx(0.03, abs=1e-3)
    assert summary["busy_ratio"]["learner"] == pytest.approx(0.55, abs=1e-3)
    assert summary["peak_memory_bytes"] == 3 << 30
    assert summary["wall_seconds"] == 60.0
    assert summary["engine"].startswith("vllm ")
    assert summary["seed"] == 1
    assert (tmp_path / "report.html").exists()


def test_stages_are_headrace_commands_in_order(tmp_path: Path) -> None:
    stages = demo_stages(DemoPaths(tmp_path), seed=3, num_steps=9)
    commands = [stage.argv[3] for stage in stages]
    assert commands == ["task", "tiny-model", "sft", "eval", "run", "eval"]
    assert stages[0].argv[-4:] == ("--seed", "3", "--out", str(tmp_path / "corpus.jsonl"))
    assert str(tmp_path / "train" / "model") in stages[5].argv


def test_the_run_files_of_the_demo_are_valid(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path)
    write_configs(paths, seed=3, num_steps=9)
    train = load_config(tmp_path / "train.toml")
    assert train.learner.num_steps == 9
    assert train.run.seed == 3
    assert train.model.path == str(paths.sft_model)
    assert load_config(tmp_path / "sft.toml").sft.output == str(paths.sft_model)


def test_attempts_at_a_stage_add_up_and_survive_the_process(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path)
    ledger = StageLedger.open(paths, 1, 25)
    ledger.add("train", StageResult(seconds=30.0, peak_rss_bytes=9))
    assert not ledger.is_done("train")
    ledger.add("train", StageResult(seconds=12.0, peak_rss_bytes=5, is_done=True))
    again = StageLedger.open(paths, 1, 25)
    assert again.is_done("train")
    assert again.results["train"] == StageResult(42.0, 9, True)
    assert not again.is_done("eval-after")


def test_a_demo_is_not_resumed_with_other_arguments(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path)
    StageLedger.open(paths, 1, 25).save()
    with pytest.raises(FatalError, match="holds a demo with seed 1 and 25 steps, not seed 2"):
        StageLedger.open(paths, 2, 25)


def test_a_finished_demo_is_refused_unless_forced_or_resumed(tmp_path: Path) -> None:
    paths = finished_demo(tmp_path)
    paths.summary.write_text("{}")
    with pytest.raises(FatalError, match=r"holds a finished demo .*--force to start anew"):
        prepare_folder(paths, resume=False, force=False)
    prepare_folder(paths, resume=True, force=False)
    assert paths.summary.exists()
    prepare_folder(paths, resume=False, force=True)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_names_resume_as_the_cure(tmp_path: Path) -> None:
    paths = finished_demo(tmp_path)
    with pytest.raises(FatalError, match="holds an interrupted demo .--resume to go on"):
        prepare_folder(paths, resume=False, force=False)


def test_a_folder_with_foreign_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FatalError, match="holds other files"):
        prepare_folder(DemoPaths(tmp_path), resume=False, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
