"""The supervisor with scripted children in the place of roles: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config import RunPaths
from common.errors import FatalError
from deploy.supervisor import run_lock

REPOSITORY = Path(__file__).resolve().parents[2]

DRIVER = """
import json, sys
from pathlib import Path
from common.config import RunPaths
from deploy.child_process import ProcessSpec
from deploy.restart_policy import RestartPolicy
from deploy.supervisor import Supervisor, stop_on_signals

root = Path(sys.argv[1])
specs = [
    ProcessSpec(name=name, role=name.partition("-")[0], is_consumer=name == "learner",
                argv=(sys.executable, "-c", source, str(root)))
    for name, source in json.loads((root / "children.json").read_text()).items()
]
policy = RestartPolicy(first_delay_s=0.05, max_failed_starts=3)
finished = lambda: (root / "finished").write_text("yes")
with stop_on_signals() as stop:
    outcome = Supervisor(specs, RunPaths(root), policy=policy, on_finished=finished).run(stop)
print(json.dumps({"exit_code": outcome.exit_code, "reason": outcome.reason}))
"""

SERVE = """
import json, os, sys, threading
from pathlib import Path
name = "{name}"
root = Path(sys.argv[1])
(root / "processes" / (name + ".json")).write_text(json.dumps({{"state": "ready"}}))
with open(root / (name + ".pids"), "a") as file:
    file.write(str(os.getpid()) + "\\n")
threading.Event().wait(60)
"""

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVE

GRANDPARENT = (
    """
import subprocess, sys
from pathlib import Path
source = (
    "import os, sys, threading; from common.lifecycle import die_with_parent; die_with_parent(); "
    "open(sys.argv[1] + '/grandchild.pids', 'w').write(str(os.getpid())); "
    "threading.Event().wait(60)"
)
subprocess.Popen([sys.executable, "-c", source, sys.argv[1]], start_new_session=True)
"""
    + SERVE
)


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    pause = threading.Event()
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        pause.wait(0.02)
    return value


def pids(root: Path, name: str) -> list[int]:
    file = root / f"{name}.pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def events(root: Path, event: str) -> list[dict[str, Any]]:
    lines = (root / "telemetry" / "supervisor.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["event"] == event]


class Running:
    """A supervisor process over scripted children."""

    def __init__(self, root: Path, children: dict[str, str]) -> None:
        sources = {name: source.format(name=name) for name, source in children.items()}
        (root / "children.json").write_text(json.dumps(sources))
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(root)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def first_pid(self, name: str) -> int:
        first: int = wait_until(lambda: pids(self.root, name))[0]
        return first

    def outcome(self, timeout_s: float = 20.0) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=timeout_s)
        result: dict[str, Any] = json.loads(output)
        return result


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Running]]:
    started: list[Running] = []

    def begin(children: dict[str, str]) -> Running:
        started.append(Running(tmp_path, children))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()


Start = Callable[[dict[str, str]], Running]


def test_the_end_of_the_learner_ends_the_run_and_stops_the_others(start: Start) -> None:
    running = start({"broker": SERVE, "learner": "print('done')"})
    assert running.outcome() == {"exit_code": 0, "reason": ""}
    assert (running.root / "finished").exists()
    assert not any(is_alive(pid) for pid in pids(running.root, "broker"))


def test_a_process_killed_with_9_is_restarted_and_the_run_goes_on(start: Start) -> None:
    running = start({"actor-0": SERVE, "learner": SERVE})
    first = running.first_pid("actor-0")
    learner = running.first_pid("learner")
    wait_until(lambda: (running.root / "telemetry" / "supervisor.jsonl").exists())
    os.kill(first, signal.SIGKILL)
    second = wait_until(lambda: pids(running.root, "actor-0")[1:])[0]
    assert second != first
    assert is_alive(second)
    assert is_alive(learner)
    assert [item["how"] for item in events(running.root, "ended")] == ["signal 9 (SIGKILL)"]


def test_a_process_that_never_starts_stops_the_run_with_its_last_error(start: Start) -> None:
    failing = "import sys; print('headrace: no memory left', file=sys.stderr); sys.exit(75)"
    running = start({"broker": SERVE, "actor-0": failing})
    outcome = running.outcome()
    assert outcome["exit_code"] == 1
    assert outcome["reason"].startswith("actor-0 ended 4 times within 600 s, 4 of them before")
    assert "last with exit code 75: no memory left (log: " in outcome["reason"]
    assert not any(is_alive(pid) for pid in pids(running.root, "broker"))


def test_a_fatal_error_stops_the_run_without_a_restart(start: Start) -> None:
    failing = "import sys; print('headrace: disk is full', file=sys.stderr); sys.exit(1)"
    running = start({"broker": SERVE, "learner": failing})
    outcome = running.outcome()
    assert outcome["exit_code"] == 1
    assert outcome["reason"].startswith("learner stopped with exit code 1: disk is full (log: ")
    assert len(events(running.root, "ended")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process(start: Start, number: signal.Signals) -> None:
    running = start({"broker": SERVE, "actor-0": SERVE, "learner": SERVE})
    children = [running.first_pid(name) for name in ("broker", "actor-0", "learner")]
    running.process.send_signal(number)
    assert running.outcome() == {"exit_code": 130, "reason": "interrupted"}
    assert not any(is_alive(pid) for pid in children)


@pytest.mark.slow
def test_a_process_that_ignores_signals_is_gone_within_ten_seconds(start: Start) -> None:
    running = start({"broker": SERVE, "actor-0": STUBBORN, "learner": SERVE})
    stubborn = running.first_pid("actor-0")
    begin_s = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.outcome()["exit_code"] == 130
    assert time.monotonic() - begin_s < 10.0
    assert not is_alive(stubborn)


def test_the_end_of_a_finished_run_does_not_wait_for_a_stubborn_process(start: Start) -> None:
    last = (
        "import sys, threading; from pathlib import Path; pause = threading.Event()\n"
        "while not (Path(sys.argv[1]) / 'actor-0.pids').exists(): pause.wait(0.02)"
    )
    running = start({"actor-0": STUBBORN, "learner": last})
    stubborn = running.first_pid("actor-0")
    begin_s = time.monotonic()
    assert running.outcome()["exit_code"] == 0
    assert time.monotonic() - begin_s < 4.0
    assert not is_alive(stubborn)


def test_a_second_signal_does_not_wait_for_a_stubborn_process(start: Start) -> None:
    running = start({"actor-0": STUBBORN, "learner": SERVE})
    stubborn = running.first_pid("actor-0")
    learner = running.first_pid("learner")
    begin_s = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: not is_alive(learner))
    running.process.send_signal(signal.SIGINT)
    running.outcome()
    assert time.monotonic() - begin_s < 4.0
    assert not is_alive(stubborn)


def test_nothing_survives_a_supervisor_that_is_killed_with_9(start: Start) -> None:
    running = start({"broker": SERVE, "actor-0": STUBBORN, "learner": GRANDPARENT})
    names = ("broker", "actor-0", "learner")
    children = [running.first_pid(name) for name in names]
    children += wait_until(lambda: pids(running.root, "grandchild"))
    assert all(is_alive(pid) for pid in children)
    running.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in children), 5.0)


def test_what_a_dead_process_left_in_its_group_is_killed(start: Start) -> None:
    leaving = textwrap.dedent("""
        import os, subprocess, sys
        from pathlib import Path
        sleep = "import threading; threading.Event().wait(60)"
        child = subprocess.Popen([sys.executable, "-c", sleep])
        with open(Path(sys.argv[1]) / "left.pids", "a") as file:
            file.write(str(child.pid) + "\\n")
        os.kill(os.getpid(), 9)
    """)
    running = start({"actor-0": leaving, "learner": SERVE})
    left = running.first_pid("left")
    wait_until(lambda: not is_alive(left), 5.0)


def test_two_supervisors_cannot_share_a_run_directory(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    with (
        run_lock(paths),
        pytest.raises(FatalError, match="in use by another supervisor"),
        run_lock(paths),
    ):
        pass
    with run_lock(paths):
        pass
