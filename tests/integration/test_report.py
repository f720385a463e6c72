"""A report from made-up telemetry: the files, the figures on the page, hostile model output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import FatalError
from deploy.plot_style import DARK, LIGHT, render_svg
from deploy.plots import report_plots
from deploy.report import report, write_report
from deploy.report_data import pair_rollouts, read_report
from deploy.telemetry_records import RolloutRecord
from tests.unit.deploy.synthetic_run import NUM_STEPS, write_training

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
PLOTS = [
    "entropy",
    "idle-share",
    "pass-at-1",
    "policy-lag",
    "response-length",
    "reward",
    "sampler-kl",
    "tokens-per-second",
]


def test_a_run_gets_a_page_and_a_png_for_each_plot(tmp_path: Path) -> None:
    write_training(tmp_path)
    result = CliRunner().invoke(report, [str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "report.html")
    images = sorted((tmp_path / "plots").iterdir())
    assert [image.name for image in images] == [f"{name}.png" for name in PLOTS]
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_what_a_model_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    write_training(tmp_path, extra_completion=HOSTILE)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "onerror=alert" in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_training(tmp_path)
    page = write_report(tmp_path).read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,40})', page)
    assert len(sources) == 2 * len(PLOTS)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "url(" not in page


def test_the_conservation_table_accounts_for_every_group(tmp_path: Path) -> None:
    write_training(tmp_path)
    page = write_report(tmp_path).read_text()
    assert '<td>admitted</td><td class="number">864</td>' in page
    assert "run_end 60, zero_advantage 3" in page
    assert '<td>unaccounted for</td><td class="number">0</td>' in page


def test_early_and_late_answers_are_paired_by_the_nearest_prompt(tmp_path: Path) -> None:
    write_training(tmp_path)
    pairs = read_report(tmp_path).pairs
    prompts = [(pair.early.prompt, pair.late.prompt) for pair in pairs]
    assert prompts == [("7+2+9+4+1+8=", "7+2+9+4+1+7="), ("1+1+6+5+2+3=", "1+4+6+5+2+3=")]
    assert {pair.late.when for pair in pairs} == {f"step {NUM_STEPS - 1}"}


def test_a_run_with_one_step_has_no_late_answers_to_show() -> None:
    rollouts = [RolloutRecord(policy_step=0, prompt="1+1=", completion="2", num_tokens=1)] * 3
    assert pair_rollouts(rollouts) == []


def test_the_same_values_give_the_same_picture_and_the_themes_differ(tmp_path: Path) -> None:
    write_training(tmp_path)
    plot = report_plots(read_report(tmp_path))[0]
    assert render_svg(plot, LIGHT) == render_svg(plot, LIGHT)
    assert render_svg(plot, LIGHT) != render_svg(plot, DARK)


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="no training step is recorded there"):
        write_report(tmp_path)
