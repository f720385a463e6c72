"""Each hostile program gets the verdict it deserves, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from actors.verification.sandbox.limits import BoxLimits, Tier
from tests.integration.sandbox.host import Canaries, Host, Traces, canaries
from tests.integration.sandbox.hostile import ALL, COMPILING, Hostile


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(BoxLimits(), Tier.NAMESPACES) as running:
        yield running


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with canaries(tmp_path_factory.mktemp("outside")) as found:
        yield found


def _check(host: Host, outside: Canaries, hostile: Hostile) -> None:
    before = Traces.of(host)
    judgement = host.judge(hostile.program, hostile.task)
    assert hostile.reason in judgement.reason
    assert (judgement.status, judgement.value) == (hostile.status, hostile.value)
    assert judgement.reason.isprintable()
    assert Traces.of(host) == before
    outside.assert_intact()
    host.assert_next_honest_job_is_right()


@pytest.mark.parametrize("hostile", ALL, ids=lambda item: item.row)
def test_a_hostile_program_gets_its_verdict_and_leaves_no_trace(
    host: Host, outside: Canaries, hostile: Hostile
) -> None:
    _check(host, outside, hostile)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", COMPILING, ids=lambda item: item.row)
def test_a_compiler_under_attack_is_in_the_same_sandbox(
    host: Host, outside: Canaries, hostile: Hostile
) -> None:
    _check(host, outside, hostile)


def test_the_launcher_does_not_grow_with_what_its_programs_allocate(host: Host) -> None:
    (pid,) = host.sandbox.pids
    host.assert_next_honest_job_is_right()
    before = psutil.Process(pid).memory_info().rss
    for hostile in ALL:
        if hostile.row.startswith("12"):
            host.judge(hostile.program, hostile.task)
    assert psutil.Process(pid).memory_info().rss - before < 2 << 20
