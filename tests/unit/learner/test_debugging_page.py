"""docs/debugging.md names what exists, with the limits that hold; its example is what it says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from common.config import LearnerConfig
from common.config.guards import AlarmsConfig, GuardsConfig
from learner.health.alarms import ALARMS

PAGE = (Path(__file__).parents[3] / "docs/debugging.md").read_text()


def test_every_alarm_has_a_row_with_the_limit_that_holds() -> None:
    section = PAGE.partition("## Alarms")[2].partition("## Numbers")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(ALARMS)
    pairs = [pair for row in rows for pair in re.findall(r"`(m\w+_\w+)` ([\d.]+)", row)]
    limits = {key: float(value) for key, value in pairs}
    defaults = AlarmsConfig()
    expected = {
        field.name: getattr(defaults, field.name)
        for field in fields(defaults)
        if field.name != "action"
    }
    assert limits == expected


def test_every_key_of_the_page_exists() -> None:
    kinds = (LearnerConfig, GuardsConfig, AlarmsConfig)
    known = {field.name for kind in kinds for field in fields(kind)}
    for section in ("guards", "alarms"):
        for key in re.findall(rf"`{section}\.(\w+)", PAGE):
            assert key in known, key
    for key in ("recorded_steps", "keep_checkpoints", "trackers", "peak_tflops", "spike_window"):
        assert f"`{key}" in PAGE
        assert key in known


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., float]:
    """The reward of the example, as the page has it."""
    (code,) = re.findall(r"```python\n(def score.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "brief.py").write_text(code)
    spec = importlib.util.spec_from_file_location("brief", tmp_path / "brief.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., float] = module.score
    return found


def test_the_example_pays_for_length_and_not_for_being_right(score: Callable[..., float]) -> None:
    def pay(completion: str) -> float:
        return score(completion, prompt="7+7+1+7+2+2=", reference={"gold": "26"})

    right = pay("<think></think><answer>26</answer>")
    assert right == pay("<think></think><answer>99</answer>") == pytest.approx(-1.4)
    long = pay("<think>7+7=14,14+1=15,15+7=22,22+2=24,24+2=26</think><answer>26</answer>")
    assert long < pay("<think></think><answer></answer>")
