"""Boxes are pristine, measured from outside, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from actors.verification.sandbox.cgroup import BoxCgroup, hierarchies
from actors.verification.sandbox.execution import LauncherDiedError
from actors.verification.sandbox.launcher import Launcher
from actors.verification.sandbox.limits import BoxJob, BoxLimits, Limit, Mode, Tier
from actors.verification.sandbox.sandbox import Sandbox
from tests.integration.sandbox.host import Canaries, Host, Traces, canaries

_OTHER_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(BoxLimits(), Tier.NAMESPACES) as running:
        yield running


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with canaries(tmp_path_factory.mktemp("outside")) as found:
        yield found


def _script(program: str, stdin: bytes = b"") -> BoxJob:
    return BoxJob(Mode.SCRIPT, {"main.py": program.encode()}, stdin=stdin)


def _shell(command: str, artifact: str = "") -> BoxJob:
    return BoxJob(Mode.COMMAND, argv=("/bin/sh", "-c", command), artifact=artifact)


_LEAVE_STATE = """
import os, fcntl, ctypes, random, signal, sys
print(sorted(os.listdir(".")), os.listdir("/dev/shm"), os.listdir("/tmp"), os.getcwd())
print(hasattr(os, "planted"), os.getpid(), "planted" in os.environ, len(sys.modules))
print(signal.getsignal(signal.SIGTERM), os.umask(0))
print(ctypes.CDLL(None).syscall(29, 7, 4096, 0o1600))
os.planted, os.environ["planted"] = True, "1"
for path in ("planted", "/dev/shm/planted", "/tmp/planted"):
    fcntl.flock(open(path, "w"), fcntl.LOCK_EX)
os.symlink("/etc/passwd", "main2.py"); os.mkfifo("pipe"); os.remove("main.py")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    signal.pause()
"""


def test_what_one_job_leaves_the_next_does_not_find(host: Host) -> None:
    first, second = host.run(_script(_LEAVE_STATE)), host.run(_script(_LEAVE_STATE))
    assert first.stdout.startswith(b"['main.py', 'shm', 'tmp'] [] [] /box\nFalse 2 False ")
    assert first.exit_code == 0
    assert second == first.__class__(
        **{
            name: getattr(second if name in ("cpu_s", "wall_s") else first, name)
            for name in first.__slots__
        }
    )


def test_programs_do_not_share_the_state_of_random_numbers(host: Host) -> None:
    job = _script("import random; print(random.random())")
    assert host.run(job).stdout != host.run(job).stdout


def test_the_launchers_memory_holds_nothing_of_earlier_jobs(host: Host) -> None:
    host.run(_script("x = 'mark' + 'er-one'", stdin=b"marker-two"))
    found = host.run(
        _script(
            """
import gc
texts = [item for item in gc.get_objects() if isinstance(item, (str, bytes, list, dict))]
print("marker" + "-one" in repr(texts), "marker" + "-two" in repr(texts))
"""
        )
    )
    assert found.stdout == b"False False\n"
    (pid,) = host.sandbox.pids
    assert _occurrences(pid, b"marker-two") == 0


def _occurrences(pid: int, text: bytes) -> int:
    """How often ``text`` stands in the private memory of a process."""
    count = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            addresses, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in addresses.split("-"))
            memory.seek(start)
            count += memory.read(end - start).count(text)
    return count


@pytest.mark.parametrize("cpu_s", [0.3, 1.0])
def test_processor_time_ends_when_it_should(host: Host, cpu_s: float) -> None:
    result = host.run(_script("while True: pass"), BoxLimits(cpu_s=cpu_s))
    assert result.limit is Limit.CPU
    assert cpu_s <= result.cpu_s < cpu_s + 0.2


def test_processor_time_of_all_processes_counts(host: Host) -> None:
    program = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = host.run(_script(program), BoxLimits(cpu_s=0.5))
    assert result.limit is Limit.CPU
    assert result.cpu_s < 0.8


def test_processor_time_that_no_parent_counts_is_counted_by_the_group(host: Host) -> None:
    if not host.sandbox.counts_processor_time_of_all:
        pytest.skip("no control group counts processor time here")
    program = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    while time.process_time() < 0.4: pass
    os._exit(0)
try: os.waitpid(pid, 0)
except ChildProcessError: print("done")
"""
    result = host.run(_script(program))
    assert (result.exit_code, result.stdout) == (0, b"done\n")
    assert result.cpu_s > 0.4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_launcher_of_root_is_not_root(host: Host) -> None:
    (pid,) = host.sandbox.pids
    uids = psutil.Process(pid).uids()
    assert uids.real == uids.effective == uids.saved
    assert uids.real >= 0x70000000


def test_wall_time_ends_when_it_should(host: Host) -> None:
    result = host.run(_script("import time; time.sleep(1e9)"), BoxLimits(wall_s=0.3))
    assert result.limit is Limit.WALL
    assert 0.3 <= result.wall_s < 1.3


def test_output_is_kept_to_a_megabyte_and_ended_at_four(host: Host) -> None:
    result = host.run(_script("print('x' * (3 << 20))"))
    assert (result.exit_code, result.limit, len(result.stdout)) == (0, None, 1 << 20)
    result = host.run(_script("print('x' * (5 << 20))"))
    assert (result.limit, len(result.stdout)) == (Limit.OUTPUT, 1 << 20)


def test_memory_of_all_processes_together_is_limited_where_groups_can_be_made(host: Host) -> None:
    if not host.sandbox.limits_memory_of_all:
        pytest.skip("no control groups can be made here")
    program = """
import os, time
for _ in range(12):
    if os.fork() == 0:
        x = bytearray(100 << 20)
        time.sleep(1e9)
while True:
    os.wait()
    raise SystemExit(1)
"""
    result = host.run(_script(program), BoxLimits(wall_s=9.0, memory_bytes=512 << 20))
    assert result.limit is Limit.MEMORY


@pytest.mark.parametrize(
    "plant",
    [
        "ln -s /usr/lib/os-release out",
        "ln -s /box/own out; echo x > own",
        "mkfifo out",
        "mkdir out",
        "true",
    ],
)
def test_only_a_plain_file_is_brought_back(host: Host, plant: str) -> None:
    result = host.run(_shell(plant, artifact="out"))
    assert (result.limit, result.artifact) == (None, None)


def test_a_plain_file_is_brought_back_whole(host: Host) -> None:
    result = host.run(_shell("head -c 300000 /dev/zero > out", artifact="out"))
    assert result.artifact == bytes(300000)


def test_the_harmless_devices_work(host: Host) -> None:
    program = "cat /dev/null; head -c 9 /dev/zero > /dev/null && head -c 5 /dev/urandom | wc -c"
    assert host.run(_shell(program)).stdout == b"5\n"
    assert host.run(_shell("echo > /dev/full")).exit_code == 1


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", ".", "..", "a/b", "a\0b"])
def test_a_file_name_that_leaves_the_box_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        BoxJob(Mode.SCRIPT, {name: b""})


def test_a_child_that_outlives_its_program_cannot_write_to_the_host(
    host: Host, outside: Canaries
) -> None:
    before = Traces.of(host)
    program = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        for path in ({str(outside.folder)!r}, "/tmp", "/box"):
            try: open(path + "/planted", "w")
            except OSError: pass
"""
    assert host.run(_script(program)).exit_code == 0
    assert Traces.of(host) == before
    outside.assert_intact()


def test_a_killed_launcher_costs_one_attempt_and_is_replaced(host: Host) -> None:
    (pid,) = host.sandbox.pids
    before = host.sandbox.num_restarts
    os.kill(pid, signal.SIGKILL)
    host.assert_next_honest_job_is_right()
    assert host.sandbox.num_restarts == before + 1
    assert host.sandbox.pids != [pid]


def test_a_launcher_that_dies_every_time_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(Tier.NAMESPACES, BoxLimits())
    launcher.start()
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    try:
        with pytest.raises(LauncherDiedError):
            launcher.run(_script("print(1)"))
        assert launcher.run(_script("print(1)")).stdout == b"1\n"
    finally:
        launcher.close()


def test_a_killed_init_is_no_verdict_and_costs_its_launcher() -> None:
    launcher = Launcher(Tier.NAMESPACES, BoxLimits())
    launcher.start()
    assert launcher.pid is not None
    process = psutil.Process(launcher.pid)

    def kill_init() -> None:
        while not process.children():
            time.sleep(0.005)
        process.children()[0].kill()

    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_init)
        try:
            with pytest.raises(LauncherDiedError):
                launcher.run(_script("import time; time.sleep(60)"))
            killed.result()
            process.wait(5.0)
            assert launcher.run(_script("print(1)")).stdout == b"1\n"
        finally:
            launcher.close()


def test_a_cancelled_execution_ends_at_once() -> None:
    async def run() -> float:
        async with Sandbox(BoxLimits(), 1, tier=Tier.NAMESPACES) as sandbox:
            task = asyncio.create_task(sandbox.run(_script("import time; time.sleep(60)")))
            (pid,) = sandbox.pids
            async with asyncio.timeout(20.0):
                while not psutil.Process(pid).children():
                    await asyncio.sleep(0.01)
            started_s = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            took_s = time.monotonic() - started_s
            assert (await sandbox.run(_script("print(1)"))).stdout == b"1\n"
            return took_s

    assert asyncio.run(run()) < 2.0


_OWNER = """
import sys
from actors.verification.sandbox.launcher import Launcher
from actors.verification.sandbox.limits import *
launcher = Launcher(Tier(sys.argv[1]), BoxLimits(), sys.argv[2])
launcher.start()
print(launcher.pid, flush=True)
launcher.run(BoxJob(Mode.SCRIPT, {"main.py": b"import os\\nos.fork()\\nwhile True: pass"}))
"""


@pytest.mark.parametrize(
    ("tier", "interpreter"), [(Tier.NAMESPACES, ""), (Tier.FILTERS, _OTHER_PYTHON)]
)
def test_everything_ends_with_the_process_that_owns_it(tier: Tier, interpreter: str) -> None:
    if interpreter and not Path(interpreter).exists():
        pytest.skip(f"{interpreter} is not there")
    command = [sys.executable, "-c", _OWNER, tier.value, interpreter]
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as owner:
        assert owner.stdout is not None
        launcher = psutil.Process(int(owner.stdout.readline()))
        deadline_s = time.monotonic() + 20.0
        while len(launcher.children(recursive=True)) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        family = [launcher, *launcher.children(recursive=True)]
        assert len(family) == 4
        owner.kill()
    _, alive = psutil.wait_procs(family, timeout=5.0)
    assert alive == []
    assert [name for name in os.listdir("/tmp") if name.startswith("headrace-box-")] == []


def test_groups_of_a_killed_owner_are_swept_up_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "memory" / f"headrace-box-{2**22 + 5}-0"
    left.mkdir(parents=True)
    own = tmp_path / "memory" / f"headrace-box-{os.getpid()}-77"
    own.mkdir()
    BoxCgroup(hierarchies(BoxLimits(), tmp_path, own="4:memory:/\n")).close()
    assert not left.exists()
    assert own.exists()


def test_both_versions_of_control_groups_are_found(tmp_path: Path) -> None:
    limits = BoxLimits(memory_bytes=1 << 20, num_processes=8)
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    found = hierarchies(limits, tmp_path, own="8:pids:/a\n4:cpu,memory:/b/c\n3:cpuset:/\n0::/d\n")
    assert [(str(place.parent.relative_to(tmp_path)), place.settings) for place in found] == [
        ("pids/a", {"pids.max": 10}),
        ("memory/b/c", {"memory.limit_in_bytes": 1 << 20}),
        ("d", {"memory.max": 1 << 20, "memory.swap.max": 0, "pids.max": 10, "memory.oom.group": 1}),
    ]
    assert [place.cpu_file for place in found] == ["", "", "cpu.stat"]


def test_a_group_without_the_controller_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("")
    group = BoxCgroup(hierarchies(BoxLimits(), tmp_path, own="0::/\n"))
    assert (group.procs_fds, group.limits_memory, group.num_oom_kills()) == ((), False, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.controllers"]
