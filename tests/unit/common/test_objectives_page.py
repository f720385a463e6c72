"""The tables of docs/objectives.md are true: keys exist, mean something, and make the presets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from common.config import Config, LearnerConfig, LossConfig, ModelConfig, RunConfig
from common.learner_presets import PRESETS
from common.loss_config_rules import loss_rules

PAGE = Path(__file__).parents[3] / "docs" / "objectives.md"


def rows(heading: str) -> dict[str, list[str]]:
    """First column -> the others, of the table whose first heading this is."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    table = {}
    for line in lines:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        table[first] = others
    return table


def keys(cell: str) -> dict[str, object]:
    """`key = value` pairs of a cell."""
    found: dict[str, object] = {}
    for item in re.findall(r"`([^`]+)`", cell):
        key, _, value = item.partition(" = ")
        found[key] = tomllib.loads(f"value = {value}")["value"]
    return found


OBJECTIVES = {name: keys(cells[-1]) for name, cells in rows("objective").items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_keys_of_an_objective_exist_and_go_together(name: str) -> None:
    loss = msgspec.convert(OBJECTIVES[name], LossConfig, strict=True)
    config = Config(
        run=RunConfig(directory="out"),
        model=ModelConfig(path="base"),
        learner=LearnerConfig(loss=loss),
    )
    assert {key: getattr(loss, key) for key in OBJECTIVES[name]} == OBJECTIVES[name]
    assert list(loss_rules(config)) == []


def test_no_two_objectives_are_the_same() -> None:
    settings = [msgspec.convert(found, LossConfig) for found in OBJECTIVES.values()]
    assert len(set(settings)) == len(settings) >= 15


def test_the_table_of_presets_is_what_they_put() -> None:
    described = {
        name: {f"learner.loss.{key}": value for key, value in OBJECTIVES[objective].items()}
        | keys(cell)
        for name, (objective, cell) in rows("preset").items()
    }
    assert described == PRESETS
