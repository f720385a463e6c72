"""The grace period of a learner that is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from common.clock import ManualClock
from learner.health.preemption import ECHO_S, StopCounter

STOPPING = """
import signal, sys, threading
from learner.health import preemption
preemption.ECHO_S = 0.0
reasons = []
grace = preemption.GracePeriod({grace_s}, reasons.append)
grace.handle_signals()
print("up", flush=True)
for _ in range(1000):
    threading.Event().wait(0.02)
    if reasons and {ends}:
        grace.close()
        sys.exit(0)
"""


def test_echoes_of_one_request_are_no_second_request() -> None:
    clock = ManualClock()
    stops = StopCounter(clock)
    assert not stops.count()
    clock.advance(ECHO_S)
    assert not stops.count()
    clock.advance(0.1)
    assert stops.count()


def _stopped(grace_s: float, *, ends: bool, num_signals: int = 1) -> tuple[int, str]:
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPING.format(grace_s=grace_s, ends=ends)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    for _ in range(num_signals):
        child.send_signal(signal.SIGTERM)
        signal.sigtimedwait([], 0.1)  # two at once would be one
    _, errors = child.communicate(timeout=30)
    return child.returncode, errors


@pytest.mark.parametrize(
    ("grace_s", "ends", "num_signals", "code", "said"),
    [
        (20.0, True, 1, 0, ""),
        (0.2, False, 1, 75, "learner.stop_grace_s = 0.2 is over"),
        (20.0, False, 2, 75, "asked to stop a second time"),
    ],
)
def test_a_stop_ends_in_time_or_hard_and_asks_to_be_started_again(
    grace_s: float, ends: bool, num_signals: int, code: int, said: str
) -> None:
    assert_code, errors = _stopped(grace_s, ends=ends, num_signals=num_signals)
    assert assert_code == code
    assert said in errors
