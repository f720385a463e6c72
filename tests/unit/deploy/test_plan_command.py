"""``headrace plan`` as its user sees it: the page's figures, JSON, files that are wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from common.config_loader import load_config, to_toml
from common.errors import ConfigError, ModelDirectoryError
from deploy.plan_command import plan
from deploy.planning.cluster import Cluster, read_cluster
from tests.unit.deploy import plan_models as models

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n\$ headrace plan (.*?)\n(.*?)\n```", PAGE, flags=re.DOTALL)
RUN = "r1-zero-math.toml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples, beside the dimensions of Qwen2.5-7B, as the working directory."""
    for file in (ROOT / "examples").glob("*.toml"):
        shutil.copy(file, tmp_path)
    models.write_model(tmp_path / "models" / "base", models.QWEN25_7B)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan, arguments)


def printed(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("arguments", "expected"), BLOCKS, ids=["8 GPUs", "64 GPUs"])
def test_the_page_shows_what_the_command_prints(arguments: str, expected: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 0
    assert result.stdout.startswith(expected + "\n\nWarnings\n")
    for heading in ("A step", "Memory", "One publication", "Verifiers", "The same run file"):
        assert f"\n\n{heading}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.usefixtures("folder")
def test_the_figures_in_the_text_of_the_page_are_those_of_the_plan() -> None:
    small = printed(RUN, "--cluster", "cluster-8-h100.toml")
    large = printed(RUN, "--cluster", "cluster-64-h100.toml")
    assert small["lengths"]["tail_ratio"] == pytest.approx(3, abs=0.05)  # three times as long
    assert small["best"]["needed_lag"] == 4  # a bound of 4 costs nothing
    assert small["best"]["rollouts_per_step"] == 512
    shorter = large["best"]["step_s"] / small["best"]["step_s"]
    assert shorter == pytest.approx(0.84, abs=0.01)  # a sixth shorter
    row = next(scale for scale in large["scales"] if scale["gpus"] == 64)
    assert row["enough_groups"] == 512
    assert row["enough"]["busy_ratio"] == pytest.approx(0.97, abs=0.005)


def test_the_page_lists_every_key_of_a_cluster_file_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+\.\w+)` \| (\S+) \|", PAGE, flags=re.MULTILINE))
    expected = {
        f"{table}.{key}": value
        for table, keys in dataclasses.asdict(Cluster()).items()
        for key, value in keys.items()
    }
    assert list(rows) == list(expected)
    for key, value in expected.items():
        assert rows[key] == (value if isinstance(value, str) else f"{value:g}"), key


def test_a_plan_of_what_was_planned_asks_for_nothing_more(folder: Path) -> None:
    """Settings are those that the figures hold for: a file with them has the same plan."""
    first = printed(RUN, "--cluster", "cluster-8-h100.toml")
    assert first["settings"] == {
        "learner.activation_checkpointing": "full",
        "learner.num_ranks": 6,
        "weights.backend": "nccl",
        "actor.count": 2,
    }
    config = load_config(RUN, first["settings"])
    (folder / "planned.toml").write_text(to_toml(config))
    second = printed("planned.toml", "--cluster", "cluster-8-h100.toml")
    assert second["settings"] == {}
    assert second["best"] == first["best"] == second["as_written"]
    slower = printed("planned.toml", "--cluster", "cluster-8-h100.toml", "--mean-tokens", "1500")
    assert slower["best"]["step_s"] > first["best"]["step_s"]


@pytest.mark.usefixtures("folder")
def test_options_win_over_the_file_and_json_is_plain() -> None:
    found = printed(RUN, "--cluster", "cluster-8-h100.toml", "--gpus", "16", "--gpu", "B200")
    assert found["best"]["num_actors"] + found["best"]["num_ranks"] == 16
    assert found["cluster"]["gpu"]["memory_gb"] == 180
    assert [scale["gpus"] for scale in found["scales"]] == [8, 16, 64, 512, 4096, 10_000]
    assert found["model"]["parameters"] == 7_615_616_512


@pytest.mark.usefixtures("folder")
def test_what_does_not_go_together_is_warned_of() -> None:
    """Long answers, a small cache, a slow disk: each with the key that helps."""
    Path("slow.toml").write_text("[cluster]\ngpus = 64\ndisk_gb_per_s = 0.1\nmemory_gb = 30\n")
    text = " ".join(run(RUN, "--cluster", "slow.toml").stdout.split())
    assert "fewer than actor.max_num_seqs = 256 (set " in text
    assert "a publication takes 1" in text
    assert "(run.directory on a faster disk)" in text
    assert "the broker admits 1,536 rollouts at once" in text
    assert "limit publication" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cluster]\ngpus = 8\ngpu_per_node = 4\n", r":3: unknown key cluster\.gpu_per_node .*did"),
        ("\n[clutser]\n", r":2: unknown table \[clutser\] \(did you mean cluster\?\)"),
        ("[cluster]\ngpus = 1\n", r":2: cluster\.gpus must be >= 2, got 1 \(one engine"),
        ("[cluster]\ngpus = 8.5\n", r":2: cluster\.gpus: expected `int`, got `float`"),
        ("[assumed]\nmfu = 30\n", r":2: assumed\.mfu is a share and must be <= 1, got 30"),
        ("[assumed]\nmfu = nan\n", r":2: assumed\.mfu must be finite and > 0, got nan"),
        ("[workload]\nsigma = 0\n", r":2: workload\.sigma must be finite and > 0, got 0 \(0\.8 is"),
        ("[measured]\nload_s = -1\n", r":2: measured\.load_s must be finite and >= 0, got -1"),
        ('[cluster]\ngpu = "H20"\n', r"one of A100, H100, H200, B200, got 'H20' .*lack: tflops, m"),
        ("[cluster\n", r"not valid TOML"),
    ],
)
def test_a_wrong_cluster_file_names_line_rule_value_and_cure(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_cluster(file, {})
    assert str(raised.value).startswith(str(file))


def test_a_gpu_of_your_own_needs_all_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    own = {"tflops": 148, "memory_gb": 96, "memory_gb_per_s": 4000}
    links = {"nvlink_gb_per_s": 450, "host_gb_per_s": 64}
    lines = [f"{key} = {value}.0" for key, value in (own | links).items()]
    file.write_text("\n".join(["[cluster]", 'gpu = "H20"', *lines]))
    assert read_cluster(file, {}).gpu.memory_gb_per_s == 4000
    with pytest.raises(ConfigError, match=r"options: cluster\.gpus must be >= 2, got 0"):
        read_cluster(None, {"cluster.gpus": 0})
    with pytest.raises(ConfigError, match=r"no such file \(copy examples/cluster-8-h100\.toml"):
        read_cluster(tmp_path / "nowhere.toml", {})


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mean-tokens", "4000"), r"mean_tokens must be .* below actor\.max_tokens \(3072\)"),
        (("--prompt-tokens", "2000"), r"must fit model\.max_length \(4096\), got 2000 \+ 3072"),
        (("--gpu", "H20"), r"cluster\.gpu must be one of A100, H100, H200, B200, got 'H20'"),
    ],
)
def test_options_that_do_not_go_with_the_run_file_are_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    result = run(RUN, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert re.search(message, str(result.exception))


def test_a_run_without_a_learner_or_a_model_is_refused(folder: Path) -> None:
    (folder / "models" / "base" / "config.json").write_text("{")
    broken = run(RUN)
    assert isinstance(broken.exception, ModelDirectoryError)
    assert "is not valid JSON" in str(broken.exception)
    (folder / "models" / "base" / "config.json").unlink()
    gone = run(RUN)
    assert isinstance(gone.exception, ModelDirectoryError)
    assert "a plan needs the model's config.json, no weights" in str(gone.exception)


def test_the_command_has_help() -> None:
    assert isinstance(plan, click.Command)
    assert "starts nothing" in " ".join(run("--help").stdout.split())
