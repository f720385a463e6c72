"""One thread a test process: on a busy machine two wait for each other longer than they compute."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> None:
    """As ``learner.num_threads`` does in a run."""
    torch.set_num_threads(1)
