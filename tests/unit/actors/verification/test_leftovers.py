"""When a child holds too much of its earlier jobs to be given another."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from actors.verification.leftovers import Footprint, is_worn

_WITH_AND_WITHOUT_A_CHILD = """
import subprocess
from actors.verification.leftovers import Footprint
process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
print(Footprint.of_this_process().has_children)
process.communicate()
print(Footprint.of_this_process().has_children)
"""

_START = Footprint(num_threads=1, num_files=8, address_bytes=100)


@pytest.mark.parametrize(
    ("now", "worn"),
    [
        (_START, False),
        (Footprint(2, 8, 100), True),
        (Footprint(1, 20, 100), False),
        (Footprint(1, 21, 100), True),
        (Footprint(1, 8, 550), False),
        (Footprint(1, 8, 551), True),
        (Footprint(1, 3, 40), False),
        (Footprint(1, 8, 100, has_children=True), True),
    ],
)
def test_a_thread_or_half_of_what_was_free_is_too_much(now: Footprint, worn: bool) -> None:
    assert is_worn(now, _START, max_files=32, memory_limit_bytes=1000) is worn


def test_a_child_that_has_processes_from_the_start_may_keep_them() -> None:
    start = Footprint(1, 8, 100, has_children=True)
    assert not is_worn(start, start, max_files=32, memory_limit_bytes=1000)


def test_a_process_is_seen_until_it_was_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITH_AND_WITHOUT_A_CHILD],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]


def test_a_thread_a_file_and_memory_are_seen() -> None:
    before, end = Footprint.of_this_process(), threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    held = bytearray(64 << 20)
    with open("/dev/null", "rb"):
        after = Footprint.of_this_process()
    end.set()
    thread.join()
    assert after.num_threads == before.num_threads + 1
    assert after.num_files == before.num_files + 1
    assert after.address_bytes - before.address_bytes >= len(held)
