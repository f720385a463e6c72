"""The configuration page says what the code says."""

from __future__ import annotations

from deploy.config_reference import DOCUMENT, render


def test_the_page_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run python -m deploy.config_reference"


def test_every_setting_has_a_line_of_explanation() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.rstrip("| ").endswith("`")] == []
