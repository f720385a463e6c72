"""docs/broker.md names what shows each of its promises: all of that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos.broker.plan import CAMPAIGNS

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "broker.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))
PLANNED_ROWS = (*range(1, 10), *range(17, 26), *range(32, 39))


def rows(first: str, num_cells: int) -> list[list[str]]:
    """Cells of the table rows with so many cells of which the first matches."""
    found = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in found]
    return [row for row in cells if len(row) == num_cells and re.fullmatch(first, row[0])]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (REPOSITORY / path).exists()
    if test:
        assert re.search(rf"^def {test}\(", (REPOSITORY / path).read_text("utf-8"), re.MULTILINE)


def test_every_named_campaign_exists_and_every_campaign_is_named() -> None:
    shown = (*rows(r"G\d+", 3), *rows(r"\d+", 4))
    cells = [row[-1] for row in shown if "campaign" in row[-1]]
    lists = re.findall(r"campaigns? ((?:`[a-z-]+`(?:, | and )?)+)", " ".join(cells))
    assert set(re.findall(r"`([a-z-]+)`", " ".join(lists))) == set(CAMPAIGNS)


def test_every_guarantee_and_every_planned_fault_says_what_shows_it() -> None:
    guarantees, faults = rows(r"G\d+", 3), rows(r"\d+", 4)
    assert [row[0] for row in guarantees] == [f"G{number}" for number in range(1, 11)]
    assert [row[0] for row in faults] == [str(number) for number in PLANNED_ROWS]
    assert all("`" in row[-1] for row in (*guarantees, *faults))
