from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config_loader import load_config
from common.errors import FatalError
from deploy.eval_command import evaluation_config, prepare_directory
from deploy.evaluation import metrics_table, read_metrics
from tests.unit.deploy.synthetic_run import write_evaluation


def write_run(folder: Path, prompts: str = 'generator = "chain-addition"') -> Path:
    run = folder / "run.toml"
    run.write_text(
        f'[run]\ndirectory = "out"\nid = "math"\n[model]\npath = "model"\n[prompts]\n{prompts}\n'
    )
    return run


def test_an_evaluation_is_the_same_run_with_a_collector_on_held_out_problems(
    tmp_path: Path,
) -> None:
    config = evaluation_config(
        write_run(tmp_path), Path("/m"), num_prompts=7, samples=3, out=tmp_path / "e"
    )
    assert config.run.kind == "collect"
    assert config.run.id == "math-eval"
    assert config.run.directory == str(tmp_path / "e")
    assert config.collect.output == str(tmp_path / "e" / "results")
    assert config.model.path == "/m"
    assert (config.collect.num_prompts, config.collect.samples_per_prompt) == (7, 3)
    assert config.prompts.split == "held-out"


def test_without_options_the_model_and_the_numbers_of_the_run_file_hold(tmp_path: Path) -> None:
    config = evaluation_config(write_run(tmp_path, 'file = "held-out.jsonl"'))
    assert config.model.path == str(tmp_path / "model")
    assert config.collect.num_prompts == 512
    assert config.run.directory == str(tmp_path / "out" / "evaluation")
    assert config.prompts.split == "train"


def test_the_derived_run_file_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = evaluation_config(write_run(tmp_path), out=tmp_path / "e")
    assert load_config(prepare_directory(config, resume=False)) == config


def test_two_evaluations_never_share_a_folder_by_accident(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    config = evaluation_config(run, out=tmp_path / "e")
    prepare_directory(config, resume=False)
    with pytest.raises(FatalError, match="already holds an evaluation"):
        prepare_directory(config, resume=False)
    prepare_directory(config, resume=True)
    other = evaluation_config(run, samples=9, out=tmp_path / "e")
    with pytest.raises(FatalError, match="an evaluation with other settings"):
        prepare_directory(other, resume=True)


def test_the_table_shows_pass_at_1_with_its_interval_and_the_vote(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 0.912, 42.6, 16)
    assert metrics_table(read_metrics(tmp_path)).splitlines() == [
        "problems     512 x 16 answers",
        "pass@1       0.912  (95 % interval 0.892 to 0.932)",
        "maj@16       0.962",
        "mean length  42.6 tokens",
    ]


def test_missing_or_broken_metrics_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="the evaluation did not finish"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"num_prompts": 3}))
    with pytest.raises(FatalError, match="cannot be read"):
        read_metrics(tmp_path)


def test_an_evaluation_of_prompt_sets_takes_held_out_problems_of_each_generator(
    tmp_path: Path,
) -> None:
    sets = """
    [[prompts.sets]]
    name = "sums"
    generator = "chain-addition"
    weight = 2.0
    [[prompts.sets]]
    name = "math"
    file = "math.jsonl"
    [learner]
    dynamic_sampling = true
    """
    config = evaluation_config(write_run(tmp_path, sets))
    sums, math = config.prompts.all_sets
    assert (sums.split, sums.weight) == ("held-out", 2.0)
    assert (math.split, math.file) == ("train", str(tmp_path / "math.jsonl"))
    assert not config.learner.dynamic_sampling
