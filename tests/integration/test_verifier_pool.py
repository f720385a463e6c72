"""The pool with real child processes: clocks, kills, limits, replacement."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil
import pytest
import uvloop

from actors.verification.child import ChildLimits
from actors.verification.judgement import Check, JobReply, VerifyJob
from actors.verification.pool import VerifierPool
from common.errors import FatalError
from common.types import VerdictStatus

_GIB = 1 << 30
_HOSTILE = "tests.integration.hostile_verifiers"


def _job(kind: str, completion: str = "") -> VerifyJob:
    return VerifyJob(completion=completion, checks=(Check(kind=kind, reference_json="{}"),))


def _in_pool(
    work: Callable[[VerifierPool], Awaitable[None]],
    wall_limit_s: float = 10.0,
    workers: int = 1,
    jobs_ahead: int = 1,
) -> None:
    async def run() -> None:
        limits = ChildLimits(wall_limit_s, _GIB, _HOSTILE)
        async with VerifierPool(limits, workers, jobs_ahead=jobs_ahead) as pool:
            await work(pool)

    uvloop.run(asyncio.wait_for(run(), timeout=60.0))  # the loop that every role runs on


def _judge_once(kind: str, completion: str = "", wall_limit_s: float = 10.0) -> JobReply:
    replies: list[JobReply] = []

    async def work(pool: VerifierPool) -> None:
        replies.append(await pool.judge(_job(kind, completion)))

    _in_pool(work, wall_limit_s)
    return replies[0]


@pytest.mark.parametrize("kind", ["hang", "hold-the-interpreter"])
def test_an_endless_verification_is_killed_at_the_wall_limit_and_the_next_job_is_judged(
    kind: str,
) -> None:
    async def work(pool: VerifierPool) -> None:
        started = time.monotonic()
        reply = await pool.judge(_job(kind))
        assert reply.failure is VerdictStatus.LIMIT_EXCEEDED
        assert reply.reason == "wall limit of 0.3 s exceeded"
        assert 0.3 <= time.monotonic() - started < 5.0
        assert (await pool.judge(_job("right"))).judgements[0].value == 1.0
        assert pool.num_restarts == 1

    _in_pool(work, wall_limit_s=0.3)


def test_an_allocation_over_the_memory_limit_is_limit_exceeded() -> None:
    reply = _judge_once("allocate")
    assert (reply.failure, reply.reason) == (
        VerdictStatus.LIMIT_EXCEEDED,
        "memory limit exceeded",
    )


def test_a_child_that_always_dies_is_an_infra_error_after_one_retry() -> None:
    async def work(pool: VerifierPool) -> None:
        reply = await pool.judge(_job("kill-itself"))
        assert reply.failure is VerdictStatus.INFRA_ERROR
        assert reply.judgements == ()
        assert pool.num_restarts == 2
        assert (await pool.judge(_job("right"))).judgements[0].value == 1.0

    _in_pool(work)


def test_a_job_that_killed_two_children_costs_no_third_one() -> None:
    async def work(pool: VerifierPool) -> None:
        first = await pool.judge(_job("kill-itself"))
        again = await pool.judge(_job("kill-itself"))
        other = await pool.judge(_job("kill-itself", "another answer"))
        assert [reply.failure for reply in (first, again, other)] == [VerdictStatus.INFRA_ERROR] * 3
        assert again.reason == "this answer killed its verifier process before: not tried again"
        assert (pool.num_restarts, pool.num_quarantined) == (4, 2)

    _in_pool(work)


class LimitsOfABrokenMachine(ChildLimits):
    """No process starts while ``is_broken``."""

    is_broken = False

    def argv(self) -> list[str]:
        return ["/bin/false"] if type(self).is_broken else super().argv()


def test_a_job_is_not_blamed_for_a_child_that_cannot_start(tmp_path: Path) -> None:
    async def run() -> None:
        limits = LimitsOfABrokenMachine(10.0, _GIB, _HOSTILE)
        async with VerifierPool(limits, 1) as pool:
            LimitsOfABrokenMachine.is_broken = True
            reply = await pool.judge(_job("die-once", str(tmp_path / "died")))
            assert reply.failure is VerdictStatus.INFRA_ERROR
            assert reply.reason == "the verifier process died while it started"
            LimitsOfABrokenMachine.is_broken = False
            reply = await pool.judge(_job("die-once", str(tmp_path / "died")))
            assert reply.judgements[0].value == 1.0
            assert pool.num_quarantined == 0

    try:
        uvloop.run(asyncio.wait_for(run(), timeout=60.0))
    finally:
        LimitsOfABrokenMachine.is_broken = False


def test_a_job_whose_child_dies_once_is_judged_by_a_fresh_child(tmp_path: Path) -> None:
    reply = _judge_once("die-once", str(tmp_path / "died"))
    assert reply.failure is None
    assert reply.judgements[0].value == 1.0


def test_a_child_killed_from_outside_while_idle_is_replaced_unseen() -> None:
    async def work(pool: VerifierPool) -> None:
        (before,) = pool.pids
        child = psutil.Process(before)
        os.kill(before, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [child], 10)
        for _ in range(100):  # turns in which the loop learns that the pipes are closed
            await asyncio.sleep(0)
        assert (await pool.judge(_job("right"))).judgements[0].value == 1.0
        assert pool.pids != [before]

    _in_pool(work)


def test_a_child_killed_from_outside_in_mid_job_twice_is_an_infra_error() -> None:
    async def kill_whoever_runs(pool: VerifierPool, killed: set[int]) -> None:
        while len(killed) < 2:
            await asyncio.sleep(0.05)
            for pid in pool.pids:
                if pid not in killed and _cpu_ticks(pid) > 20:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    async def work(pool: VerifierPool) -> None:
        killed: set[int] = set()
        reply, _ = await asyncio.gather(pool.judge(_job("hang")), kill_whoever_runs(pool, killed))
        assert reply.failure is VerdictStatus.INFRA_ERROR
        assert len(killed) == 2

    _in_pool(work, wall_limit_s=30.0)


def test_what_a_verifier_prints_does_not_reach_the_reply_stream() -> None:
    async def work(pool: VerifierPool) -> None:
        for _ in range(3):
            assert (await pool.judge(_job("print-garbage"))).judgements[0].value == 1.0
        assert pool.num_restarts == 0

    _in_pool(work)


def test_a_bug_in_a_verifier_is_an_infra_error_and_names_itself() -> None:
    reply = _judge_once("raise")
    assert reply.failure is VerdictStatus.INFRA_ERROR
    assert reply.reason == "the verifier failed: KeyError: 'a bug'"


def test_a_value_that_is_not_finite_never_becomes_a_judgement() -> None:
    assert _judge_once("not-a-number").failure is VerdictStatus.INFRA_ERROR


def test_children_do_not_inherit_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    names = _judge_once("environment").judgements[0].reason.split(",")
    assert {"SECRET_TOKEN"}.isdisjoint(names)
    assert {"HOME", "LANG", "PATH"} <= set(names) <= {"HOME", "LANG", "PATH", "LC_CTYPE"}


def test_children_do_not_inherit_descriptors(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "wb") as secret:
        os.set_inheritable(secret.fileno(), True)
        reply = _judge_once("open-descriptors")
    assert reply.judgements[0].value == 6.0  # 0, 1, 2, the two pipes and the listing itself


def test_a_job_over_the_frame_cap_is_limit_exceeded_without_a_child() -> None:
    async def work(pool: VerifierPool) -> None:
        reply = await pool.judge(_job("right", "a" * (1 << 20) + "a"))
        assert reply.failure is VerdictStatus.LIMIT_EXCEEDED
        assert pool.num_restarts == 0

    _in_pool(work)


def test_a_cancelled_job_leaves_the_pool_usable() -> None:
    async def work(pool: VerifierPool) -> None:
        task = asyncio.create_task(pool.judge(_job("hang")))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await pool.judge(_job("right"))).judgements[0].value == 1.0

    _in_pool(work)


def test_many_jobs_keep_their_own_answers_over_several_children() -> None:
    async def work(pool: VerifierPool) -> None:
        kinds = ["right", "print-garbage", "raise"] * 20
        replies = await asyncio.gather(*(pool.judge(_job(kind)) for kind in kinds))
        failed = [reply.failure is VerdictStatus.INFRA_ERROR for reply in replies]
        assert failed == [kind == "raise" for kind in kinds]

    _in_pool(work, workers=2)


async def _statuses(pool: VerifierPool, kinds: Sequence[str]) -> list[VerdictStatus]:
    """How each of these jobs ended; they are all asked for before the first is judged."""
    jobs = (_job(kind, str(place)) for place, kind in enumerate(kinds))
    replies = await asyncio.gather(*map(pool.judge, jobs))
    return [reply.failure or reply.judgements[0].status for reply in replies]


@pytest.mark.parametrize(
    ("kind", "status", "num_ended"),
    [
        ("hang", VerdictStatus.LIMIT_EXCEEDED, 1),
        ("hold-the-interpreter", VerdictStatus.LIMIT_EXCEEDED, 1),
        ("allocate", VerdictStatus.LIMIT_EXCEEDED, 1),
        ("kill-itself", VerdictStatus.INFRA_ERROR, 2),
    ],
)
def test_of_jobs_sent_together_only_the_one_at_fault_pays(
    kind: str, status: VerdictStatus, num_ended: int
) -> None:
    async def work(pool: VerifierPool) -> None:
        kinds = ["right"] * 20
        kinds[3] = kinds[11] = kind
        ends = await _statuses(pool, kinds)
        assert ends == [VerdictStatus.GRADED if item == "right" else status for item in kinds]
        assert pool.num_restarts == 2 * num_ended

    _in_pool(work, wall_limit_s=0.5, jobs_ahead=8)


def test_jobs_behind_a_hanging_one_are_judged_by_the_other_child_long_before_its_limit() -> None:
    async def work(pool: VerifierPool) -> None:
        hanging = asyncio.create_task(pool.judge(_job("hang")))
        others = [asyncio.create_task(pool.judge(_job("right", str(i)))) for i in range(40)]
        await asyncio.gather(*others)
        assert not hanging.done()
        assert pool.num_restarts == 0
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)

    _in_pool(work, wall_limit_s=50.0, workers=2, jobs_ahead=8)


def test_every_one_of_many_hanging_jobs_is_found_within_its_own_limit() -> None:
    async def work(pool: VerifierPool) -> None:
        kinds = ["right", "hang"] * 3
        replies = await asyncio.gather(
            *(pool.judge(_job(kind, str(place))) for place, kind in enumerate(kinds))
        )
        assert [reply.failure for reply in replies] == [None, VerdictStatus.LIMIT_EXCEEDED] * 3
        assert all(0.3 <= reply.seconds < 1.3 for reply in replies[1::2])
        assert pool.num_restarts == 3

    _in_pool(work, wall_limit_s=0.3, jobs_ahead=8)


def test_a_job_that_nobody_waits_for_frees_its_child_and_costs_the_others_nothing() -> None:
    async def work(pool: VerifierPool) -> None:
        (pid,) = pool.pids
        before = _cpu_ticks(pid)
        hanging = asyncio.create_task(pool.judge(_job("hang")))
        others = asyncio.create_task(_statuses(pool, ["right"] * 5))
        while _cpu_ticks(pid) < before + 5:
            await asyncio.sleep(0.01)
        hanging.cancel()
        assert await others == [VerdictStatus.GRADED] * 5
        assert pool.num_restarts == 1

    _in_pool(work, wall_limit_s=70.0, jobs_ahead=8)


def test_leaving_the_pool_ends_its_children() -> None:
    pids: list[int] = []

    async def work(pool: VerifierPool) -> None:
        pids.extend(pool.pids)

    _in_pool(work, workers=2)
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_pool_that_cannot_start_says_which_setting_to_look_at() -> None:
    async def run() -> None:
        async with VerifierPool(ChildLimits(1.0, 1 << 20, "no.such.registry"), 1):
            pass

    with pytest.raises(FatalError, match=r"verifier\.memory_limit_bytes = 1048576"):
        asyncio.run(run())


_HANGING_PARENT = """
import asyncio
from actors.verification.child import ChildLimits
from actors.verification.judgement import Check, VerifyJob
from actors.verification.pool import VerifierPool

async def main():
    limits = ChildLimits(600.0, 1 << 30, "tests.integration.hostile_verifiers")
    async with VerifierPool(limits, 1) as pool:
        print(pool.pids[0], flush=True)
        await pool.judge(VerifyJob(completion="", checks=(Check(kind="hang", reference_json=""),)))

asyncio.run(main())
"""


def test_a_child_in_an_endless_loop_dies_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HANGING_PARENT], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert _comes_true(lambda: _cpu_ticks(child_pid) > 20)
        os.kill(parent.pid, signal.SIGKILL)
    assert _comes_true(lambda: _is_gone(child_pid))


def _comes_true(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
    return False


def _is_gone(pid: int) -> bool:
    """True once ``pid`` has ended; an ended process nobody waits for stays a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _cpu_ticks(pid: int) -> int:
    """Processor time of ``pid`` in ticks of 10 ms, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[13]) + int(fields[14])


_HEAVY_IMPORTS = """
import sys
import actors.verification.child, actors.verification.registry
print(sorted({"asyncio", "numpy", "tokenizers", "torch", "zmq"} & set(sys.modules)))
"""


def test_a_child_imports_nothing_heavy() -> None:
    finished = subprocess.run(
        [sys.executable, "-I", "-c", _HEAVY_IMPORTS], capture_output=True, timeout=30, check=True
    )
    assert finished.stdout == b"[]\n"
