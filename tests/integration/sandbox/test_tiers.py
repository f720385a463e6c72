"""The self-test believes what it sees, and refuses to go on without a sandbox."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.verification.sandbox import landlock, self_test, syscalls
from actors.verification.sandbox.limits import BoxLimits, Limit, Tier
from actors.verification.sandbox.self_test import choose_tier, find_weakness
from common.errors import FatalError
from tests.integration.sandbox.host import Canaries, Host, Traces, canaries
from tests.integration.sandbox.hostile import PROGRAM, SOLVE
from tests.integration.sandbox.test_boxes import _script

_OTHER_PYTHON = "/usr/bin/python3"
_EITHER = "of time: which, depends on whether a control group counts it"
_needs_landlock = pytest.mark.skipif(
    syscalls.landlock_abi() < landlock.ABI_WITH_SCOPES or not Path(_OTHER_PYTHON).exists(),
    reason="needs Landlock and an interpreter that other users may read",
)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with canaries(tmp_path_factory.mktemp("outside")) as found:
        yield found


@pytest.fixture(scope="module")
def filtered() -> Iterator[Host]:
    with Host(BoxLimits(), Tier.FILTERS, _OTHER_PYTHON) as running:
        yield running


def test_namespaces_hold_on_this_machine() -> None:
    report = choose_tier(BoxLimits())
    assert (report.tier, report.line) == (Tier.NAMESPACES, "sandbox of tier T2")


@_needs_landlock
def test_filters_hold_where_namespaces_do_not() -> None:
    assert find_weakness(Tier.FILTERS, BoxLimits(), _OTHER_PYTHON) == ""


def test_attacks_get_through_where_there_is_no_sandbox() -> None:
    weakness = find_weakness(Tier.NONE, BoxLimits(), _OTHER_PYTHON)
    for attack in ("connects to tcp", "reads files outside", "reads users", "traces itself"):
        assert attack in weakness


def test_without_a_tier_that_holds_nothing_is_run() -> None:
    with pytest.raises(FatalError, match=r"no sandbox holds .* verifier.unsafe_no_sandbox = true"):
        choose_tier(BoxLimits(), candidates=(Tier.NONE,), interpreter=_OTHER_PYTHON)


def test_to_go_on_without_a_sandbox_must_be_asked_for_and_is_always_said() -> None:
    report = choose_tier(
        BoxLimits(), candidates=(Tier.NONE,), interpreter=_OTHER_PYTHON, unsafe_no_sandbox=True
    )
    assert report.tier is Tier.NONE
    assert report.line.startswith("UNSAFE: programs run WITHOUT A SANDBOX")


def test_an_interpreter_that_does_not_start_is_no_proof_of_safety() -> None:
    assert "cannot start" in find_weakness(Tier.NAMESPACES, BoxLimits(), "/bin/false")


def test_a_program_that_does_not_answer_is_no_proof_of_safety(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silent = tmp_path / "attacks.py"
    silent.write_text("import os; os._exit(0)")
    monkeypatch.setattr(self_test, "_ATTACKS", silent)
    assert "did not run" in find_weakness(Tier.NAMESPACES, BoxLimits())


@_needs_landlock
@pytest.mark.parametrize(
    ("program", "limit"),
    [
        (SOLVE, None),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", _EITHER),
        ("while True: pass", Limit.CPU),
        ("import time; time.sleep(1e9)", Limit.WALL),
        ("import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\n" + SOLVE, None),
        ("import os\nfor _ in range(1200): os.mkdir('d'); os.chdir('d')\n" + SOLVE, None),
        ("open('x', 'w').write('x'); open('/dev/null', 'w')\n" + SOLVE, None),
    ],
    ids=["honest", "fork bomb", "loop", "sleep", "daemon", "deep folders", "file"],
)
def test_filters_alone_leave_nothing_behind(
    filtered: Host, outside: Canaries, program: str, limit: Limit | str | None
) -> None:
    before = Traces.of(filtered)
    wall_s = 1.5 if limit in (Limit.WALL, _EITHER) else 10.0
    result = filtered.run(_script(program, stdin=b"1\n"), BoxLimits(cpu_s=0.5, wall_s=wall_s))
    assert result.stdout == (b"" if limit else b"8\n")
    assert result.limit in ((Limit.CPU, Limit.WALL) if limit == _EITHER else (limit,))
    assert Traces.of(filtered) == before
    outside.assert_intact()
    assert filtered.judge(SOLVE, PROGRAM).value == 1.0


_ORDINARY_USER = 61234
_AS_ORDINARY_USER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from actors.verification.sandbox.limits import BoxLimits, Tier
from actors.verification.sandbox.self_test import find_weakness
print(os.getuid(), repr(find_weakness(Tier(sys.argv[2]), BoxLimits())))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test is already run by an ordinary user")
@pytest.mark.parametrize("tier", ["T2", pytest.param("T1", marks=_needs_landlock)])
def test_an_ordinary_user_has_the_same_sandbox(tier: str) -> None:
    root = Path(__file__).parents[3]
    if not root.stat().st_mode & 0o005 or not Path(_OTHER_PYTHON).exists():
        pytest.skip("another user can read neither this repository nor an interpreter")
    done = subprocess.run(
        [_OTHER_PYTHON, "-B", "-c", _AS_ORDINARY_USER, str(root), tier],
        user=_ORDINARY_USER,
        group=_ORDINARY_USER,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{_ORDINARY_USER} ''\n", "")
    assert [p.pid for p in psutil.process_iter() if p.uids().real == _ORDINARY_USER] == []
