"""Hostile neighbours change no honest verdict and leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.sandbox.campaign import run_campaign


@pytest.mark.slow
def test_a_fifth_of_the_jobs_may_be_hostile() -> None:
    findings = asyncio.run(run_campaign(300))
    assert findings.num_hostile > 40
    assert findings.num_honest > 250
    assert (findings.wrong_verdicts, findings.left_behind) == ([], [])
    assert findings.num_restarts == 0
