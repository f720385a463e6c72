from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.config_loader import load_config
from common.keys_cli import make_keys
from deploy.check_command import check, input_problems, read_num_parameters
from deploy.derived_numbers import count_parameters, derived_numbers, format_bytes

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def write_model(folder: Path, shapes: dict[str, list[int]]) -> Path:
    folder.mkdir()
    tensors = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def write_run(folder: Path, model: Path, *, max_policy_lag: int = 3) -> Path:
    run = folder / "run.toml"
    run.write_text(
        f"""
        [run]
        directory = "out"
        [model]
        path = "{model}"
        [prompts]
        generator = "chain-addition"
        [learner]
        max_policy_lag = {max_policy_lag}
        groups_per_step = 10
        group_size = 4
        """
    )
    return run


def test_a_good_run_file_is_printed_whole_and_reads_back_the_same(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"a": [2, 3], "b": [4]})
    run = write_run(tmp_path, model)
    result = CliRunner().invoke(check, [str(run)])
    assert result.exit_code == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(result.stdout)
    assert load_config(printed) == load_config(run)
    assert tomllib.loads(result.stdout)["learner"]["checkpoint_every"] == 10


def test_the_derived_numbers_follow_from_the_settings(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path, tmp_path))
    values = {number.name: number.value for number in derived_numbers(config, 1_000_000)}
    assert values["worst-case policy lag"] == "3 steps"
    assert values["rollouts per step"] == "40"
    assert values["outstanding groups, at most"] == "40"
    assert values["completion tokens per step, at most"] == "40,960"
    assert values["one weight version"] == "3.81 MiB"
    assert values["training state of one learner rank"] == "15.3 MiB"


def test_a_missing_model_and_prompt_file_are_both_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(check, [str(EXAMPLES / "r1-zero-math.toml")])
    assert result.exit_code == 1
    assert "model.path: no such directory" in result.stderr
    assert "math.jsonl: no such file" in result.stderr


@pytest.mark.parametrize("name", ["local-cpu.toml", "r1-zero-math.toml"])
def test_the_examples_are_valid_up_to_the_missing_files(name: str) -> None:
    result = CliRunner().invoke(check, [str(EXAMPLES / name)])
    assert "# What follows from it:" in result.stdout
    assert all("no such" in line for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("", "local sockets in a directory that only this user can enter"),
        (
            '[broker]\nendpoint = "tcp://h:1"\n[security]\nkeys = "keys"\n',
            "encrypted and authenticated by the CURVE keys in",
        ),
        (
            '[broker]\nendpoint = "tcp://h:1"\nallow_plaintext_tcp = true\n',
            "NOT PROTECTED, plaintext TCP",
        ),
    ],
)
def test_it_says_what_is_protected_and_what_is_not(
    tmp_path: Path, settings: str, line: str
) -> None:
    file = write_run(tmp_path, tmp_path)
    file.write_text(file.read_text() + settings)
    result = CliRunner().invoke(check, [str(file)])
    assert f"#   broker and payload stores: {line}" in result.stdout
    assert "weights: NOT PROTECTED, a process group of torch.distributed" in result.stdout


def test_keys_that_others_can_read_are_named(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", [("broker", ""), ("actor", "")])
    (tmp_path / "keys" / "actor.key_secret").chmod(0o644)
    file = write_run(tmp_path, tmp_path)
    file.write_text(file.read_text() + '[security]\nkeys = "keys"\n')
    result = CliRunner().invoke(check, [str(file)])
    assert result.exit_code == 1
    assert "actor.key_secret has mode 0644: others can read it (chmod 600" in result.stderr


def test_a_model_without_weights_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"a": [1]})
    (model / "model.safetensors").unlink()
    result = CliRunner().invoke(check, [str(write_run(tmp_path, model))])
    assert result.exit_code == 1
    assert "lacks *.safetensors (save the model with save_pretrained" in result.stderr


def test_parameters_are_counted_from_the_headers_alone(tmp_path: Path) -> None:
    assert read_num_parameters(write_model(tmp_path / "model", {"a": [2, 3], "b": [4]})) == 10
    broken = write_model(tmp_path / "broken", {})
    (broken / "model.safetensors").write_bytes(b"\xff" * 16)
    assert read_num_parameters(broken) is None


def test_a_header_without_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor a has no shape"):
        count_parameters({"a": {"dtype": "F32"}})


def test_sizes_have_three_digits_and_a_binary_unit() -> None:
    assert format_bytes(512) == "512 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_bytes(5 * 1024**4) == "5 TiB"


def test_a_truncated_or_garbled_model_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(whole)
    config = load_config(write_run(tmp_path, model))
    assert input_problems(config) == []
    (model / "model.safetensors").write_bytes(whole[:-1])
    (model / "tokenizer.json").write_text("{")
    problems = [str(problem) for problem in input_problems(config)]
    assert len(problems) == 2
    assert "tokenizer.json is not valid JSON" in problems[0]
    assert "model.safetensors is not complete safetensors" in problems[1]


def write_prompts(path: Path, size: int) -> None:
    lines = (
        json.dumps({"prompt_id": f"p{n}", "prompt": "x", "task": "arithmetic", "gold": 1})
        for n in range(size)
    )
    path.write_text("\n".join(lines))


def test_the_size_share_and_epochs_of_each_prompt_set_are_printed(tmp_path: Path) -> None:
    run = write_run(tmp_path, write_model(tmp_path / "model", {"a": [1]}))
    write_prompts(tmp_path / "math.jsonl", 50)
    sets = """
        [[prompts.sets]]
        name = "math"
        file = "math.jsonl"
        weight = 3.0
        [[prompts.sets]]
        name = "sums"
        generator = "chain-addition"
        """
    run.write_text(run.read_text().replace('[prompts]\n        generator = "chain-addition"', sets))
    result = CliRunner().invoke(check, [str(run)])
    assert result.exit_code == 0, result.output
    assert "prompt set math: 50 prompts, 0.75 of the draws, 15 epochs a run" in result.stdout
    assert "prompt set sums: endless, 0.25 of the draws (chain-addition)" in result.stdout
    assert "run out" not in result.stdout


def test_prompts_that_run_out_before_the_run_ends_are_said_to(tmp_path: Path) -> None:
    run = write_run(tmp_path, write_model(tmp_path / "model", {"a": [1]}))
    write_prompts(tmp_path / "math.jsonl", 50)
    text = run.read_text().replace(
        'generator = "chain-addition"', 'file = "math.jsonl"\nepochs = 4'
    )
    run.write_text(text)
    result = CliRunner().invoke(check, [str(run)])
    assert result.exit_code == 0, result.output
    assert "prompts run out: after 200 of 1,000" in result.stdout
