"""docs/rewards.md says what the code does: its tables are read and run here."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from actors.verification.format_reward import judge_format
from actors.verification.hacking_monitor import Alarm
from actors.verification.judgement import JobReply, Judgement
from actors.verification.language import judge_language
from actors.verification.reward import compose_verdict, terms_for
from common.config import VerifierConfig
from common.metrics import METRICS
from common.reward_terms import PRESETS, TERMS, resolved, term_options
from common.task_reference import REFERENCES
from common.types import Prompt, VerdictStatus

_DOCS = Path(__file__).parents[4] / "docs"
_PAGE = (_DOCS / "rewards.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return _PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _rows(text: str, first_cell: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``first_cell``; ``\\|`` is a bar inside a cell."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.replace("\\|", "|").strip() for cell in cells])
    return rows


def _code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _format_cases(template: str) -> list[tuple[str, str, str]]:
    tables = _section("Format").split("The template `special-token`")
    table = tables[0] if template == "r1-zero" else "The template" + tables[1]
    return [
        (template, cells[1].strip("`").replace("\\n", "\n"), cells[2])
        for cells in _rows(table, "case")
    ]


@pytest.mark.parametrize(
    ("template", "completion", "value"),
    [*_format_cases("r1-zero"), *_format_cases("special-token")],
)
def test_the_format_table_is_what_the_verifier_does(
    template: str, completion: str, value: str
) -> None:
    reference = msgspec.json.encode({"template": template}).decode()
    assert judge_format(completion, reference).value == float(value)


def test_both_format_tables_are_read_whole() -> None:
    assert len(_format_cases("r1-zero")) == 10
    assert len(_format_cases("special-token")) == 8


def test_the_table_of_statuses_is_complete() -> None:
    names = [_code(cells[0])[0] for cells in _rows(_PAGE, "status")]
    assert names == [status.value for status in VerdictStatus]


def test_the_table_of_terms_is_complete() -> None:
    names = [name for cells in _rows(_section("The total"), "term") for name in _code(cells[0])]
    assert names == list(TERMS)


def test_the_table_of_presets_says_which_terms_judge_which_data() -> None:
    for preset, reasoning, general in _rows(_section("The total"), "preset"):
        terms = PRESETS[_code(preset)[0]]
        names = {
            task: {
                term.name
                for term in terms_for(terms, Prompt(prompt_id="p", text="", task=task))
                if not (task == "helpful" and term.name == "accuracy")
            }
            for task in ("math", "helpful")
        }
        assert names == {"math": set(_code(reasoning)), "helpful": set(_code(general))}
    assert len(_rows(_section("The total"), "preset")) == len(PRESETS)


def test_the_three_totals_of_the_smaller_weight() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", _section("The total"), re.DOTALL)
    terms = _config(example).rewards
    totals = [
        compose_verdict(
            terms, JobReply(judgements=tuple(Judgement.graded(value) for value in values))
        ).reward
        for values in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
    ]
    assert totals == [0.2, 1.0, 1.2]
    assert "worth 0.2, 1 and 1.2" in " ".join(_PAGE.split())


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", _PAGE, re.DOTALL))
def test_every_example_is_a_valid_section(example: str) -> None:
    config = resolved(_config(example))
    assert all(term.kind or term_options(term) for term in config.rewards)


def test_the_options_of_shaping_and_their_defaults_are_the_codes() -> None:
    for name, told, _ in _rows(_section("Length and repetition"), "term"):
        kind = TERMS[_code(name)[0]]
        defaults = {item.name: item.default for item in msgspec.structs.fields(kind)}
        listed = re.findall(r"`(\w+)`(?: (-?[\d.]+))?", told)
        assert [option for option, _ in listed] == list(defaults)
        for option, value in listed:
            expected = defaults[option]
            assert (float(value) if value else msgspec.NODEFAULT) == expected


def test_the_tasks_and_the_pages_that_are_named_exist() -> None:
    names = [name for cells in _rows(_section("Tasks"), "task") for name in _code(cells[0])]
    assert set(names) <= set(REFERENCES)
    assert len(names) >= 10
    pages = re.findall(r"\]\(([\w-]+\.md)", _PAGE)
    assert [page for page in pages if not (_DOCS / page).is_file()] == []


def test_the_table_of_alarms_is_complete_and_names_settings_that_exist() -> None:
    rows = _rows(_section("Reward hacking"), "alarm")
    assert [_code(cells[0])[0] for cells in rows] == [alarm.value for alarm in Alarm]
    settings = {item.name for item in dataclasses.fields(VerifierConfig().monitor)}
    named = {word for cells in rows for word in _code(cells[1]) if "_" in word}
    assert named == settings - {"action", "window", "proxy", "truth"}


def test_the_metrics_that_are_named_exist() -> None:
    known = {spec.name for spec in METRICS}
    named = set(re.findall(r"headrace_\w+", _PAGE))
    assert len(named) >= 6
    assert named <= known


@pytest.mark.parametrize(
    ("thought", "target", "share"),
    [
        ("Nous calculons la somme", "en", 1.0),  # one script
        ("計算", "zh-Hans", 1.0),
        ("", "en", 0.0),
        ("12 + 3", "en", 0.0),
        ("```\nnous calculons\n``` 是", "zh", 1.0),  # code is written with Latin letters
        ("```\n日本語\n``` yes", "en", 0.25),  # and with no others
    ],
)
def test_what_the_language_rule_can_and_cannot_do(thought: str, target: str, share: float) -> None:
    reference = msgspec.json.encode({"target": target}).decode()
    assert judge_language(f"<think>{thought}</think>", reference).value == share


def _config(example: str) -> VerifierConfig:
    return msgspec.convert(tomllib.loads(example)["verifier"], VerifierConfig, strict=True)
