from __future__ import annotations

from pathlib import Path

from deploy.log_tail import last_error_line, read_tail, torchrun_exit_code

TORCHRUN_SUMMARY = """\
headrace: checkpoint 7 is incomplete (delete it)
E0728 10:00:00.000000 77 site-packages/torch/distributed/elastic/multiprocessing/api.py:882] failed
Traceback (most recent call last):
  File "run.py", line 936, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
common.cli FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_10:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -15 (pid: 11)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_10:00:00
  rank      : 0 (local_rank: 0)
  exitcode  : -9 (pid: 10)
  error_file: <N/A>
============================================================
"""


def test_an_error_raised_on_purpose_is_preferred_to_later_noise() -> None:
    tail = "headrace: model.path: no such directory\nWARNING: error while closing a queue\n"
    assert last_error_line(tail) == "model.path: no such directory"


def test_a_structured_error_is_read_as_its_message() -> None:
    tail = '{"event": "READY"}\n{"event": "engine lost", "reason": "oom", "level": "error"}\nbye\n'
    assert last_error_line(tail) == "engine lost: oom"


def test_a_traceback_is_reported_by_its_last_line() -> None:
    tail = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no such token\n'
    assert last_error_line(tail) == "ValueError: no such token"


def test_without_any_error_the_newest_line_is_reported() -> None:
    assert last_error_line("one\ntwo\n\n") == "two"
    assert last_error_line("") == ""


def test_the_summary_of_torchrun_is_passed_over() -> None:
    assert last_error_line(TORCHRUN_SUMMARY) == "checkpoint 7 is incomplete (delete it)"


def test_a_traceback_of_a_rank_is_reported_without_its_prefix() -> None:
    said = "[rank0]: Traceback\n[rank0]:   File x\n[rank0]: RuntimeError: no such op\n"
    summary = TORCHRUN_SUMMARY.partition("\n")[2]
    assert last_error_line(said + summary) == "RuntimeError: no such op"


def test_the_exit_code_of_the_first_failed_rank_is_found() -> None:
    assert torchrun_exit_code(TORCHRUN_SUMMARY) == -9
    assert torchrun_exit_code("Killed\n") is None


def test_a_torchrun_that_was_asked_to_stop_may_be_started_again() -> None:
    ends = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15"
    assert torchrun_exit_code(f"Traceback (most recent call last):\n{ends}\n") == 75
    assert torchrun_exit_code(f"{ends}\n{TORCHRUN_SUMMARY}") == -9, "of an earlier life"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    log.write_text("x" * 100_000 + "\nlast\n")
    assert read_tail(log).endswith("x\nlast\n")
    assert len(read_tail(log)) == 65536
    assert read_tail(tmp_path / "absent.log") == ""
