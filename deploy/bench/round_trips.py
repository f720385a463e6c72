"""Times round trips at a pace: what a benchmark of latency does to its subject and its baseline."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import zmq


def round_trips(
    socket: zmq.Socket[bytes],
    messages: list[list[bytes]],
    pace: tuple[float, int],
    receive: Callable[[], int],
) -> list[float]:
    """Seconds of each round trip; ``pace`` is the pause after each, and how many there are at once.

    ``receive`` waits for a message and returns how many round trips it ends: the oldest ones.
    """
    seconds: list[float] = []
    (pause_s, num_lanes), start_s = pace, time.perf_counter()
    due_s = deque(start_s + lane * pause_s / num_lanes for lane in range(num_lanes))
    sent_s: deque[float] = deque()
    waiting = deque(messages)
    while len(seconds) < len(messages):
        now_s = time.perf_counter()
        if waiting and due_s and due_s[0] <= now_s:
            due_s.popleft()
            sent_s.append(now_s)
            socket.send_multipart(waiting.popleft())
        elif not sent_s:
            time.sleep(max(due_s[0] - now_s, 0.0))  # the offered load is a pace
        elif socket.poll(_poll_ms(due_s[0] - now_s) if waiting and due_s else None):
            num_ended, now_s = receive(), time.perf_counter()
            seconds.extend(now_s - sent_s.popleft() for _ in range(num_ended))
            due_s.extend([now_s + pause_s] * num_ended)
    return seconds


def _poll_ms(seconds: float) -> int:
    return max(math.ceil(1000 * seconds), 0)
