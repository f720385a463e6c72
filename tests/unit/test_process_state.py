"""What one test does to the process of all is undone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
import structlog
import torch
import torch._dynamo.config

from tests.process_state import ProcessState


def _spoil(directory: Path) -> None:
    os.environ["HEADRACE_LEFT_BEHIND"] = "1"
    os.environ["PATH"] = "/nowhere"
    os.environ.pop("HOME", None)
    os.chdir(directory)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    logging.getLogger().setLevel(logging.CRITICAL)
    structlog.configure(processors=[], cache_logger_on_first_use=True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch._dynamo.config.disable = True


def test_all_that_a_test_changed_is_as_it_was(tmp_path: Path) -> None:
    before = ProcessState()
    _spoil(tmp_path)
    assert ProcessState() != before
    before.restore()
    assert ProcessState() == before


def test_a_compiler_whose_switch_was_deleted_has_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``monkeypatch`` leaves it: this module answers for settings that it does not hold."""
    before = ProcessState()
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    monkeypatch.undo()
    assert not hasattr(torch._dynamo.config, "disable")
    before.restore()
    assert torch._dynamo.config.disable is False


@pytest.mark.parametrize("turn", ["first", "second"])
def test_the_next_test_sees_none_of_it(turn: str, tmp_path: Path) -> None:
    """Each of the two would see what the other left."""
    assert "HEADRACE_LEFT_BEHIND" not in os.environ
    assert Path.cwd() != Path("/")
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert not torch._dynamo.config.disable
    _spoil(tmp_path)
    os.chdir("/")
