"""Programs tried by one reader for an hour; those of no other list, and honest ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from actors.verification.sandbox.limits import BoxLimits, Tier
from common.types import VerdictStatus
from tests.integration.sandbox.host import Host
from tests.integration.sandbox.hostile import FUNCTION, PROGRAM

_OUTPUT: dict[str, Any] = {"tests": [{"input": "1\n", "output": "8\n"}]}
_NEAR: dict[str, Any] = {"tests": [{"input": "1\n", "output": "8.0\n"}], "tolerance": 1e-6}
_OBJECT: dict[str, Any] = {
    "function": "f",
    "tests": [{"args": [x], "expected": {"a": x, "b": 0}} for x in (1, 2)],
}

_READS_PYTHON = """
import ast, sys
value = ast.literal_eval(open(sys.argv[2]).read())
print("accept" if value == [1, 2] else "reject")
"""
_QUOTES_THE_OUTPUT = """
import sys
said = open(sys.argv[2]).read().strip()
if not said.isdigit():
    sys.exit(said)
print("accept" if said == "8" else "reject")
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(BoxLimits(cpu_s=2.0, wall_s=4.0), Tier.NAMESPACES) as running:
        yield running


def _judged_by(checker: str) -> dict[str, Any]:
    return {"tests": [{"input": "", "output": ""}], "checker": checker}


@pytest.mark.parametrize(
    ("program", "checker"),
    [
        ("print('][')", _READS_PYTHON),
        ("print('(' * 500)", _READS_PYTHON),
        ("print('\\tx')", _READS_PYTHON),
        ("print('SyntaxError: invalid syntax')", _QUOTES_THE_OUTPUT),
        ("print('x\\nIndentationError')", _QUOTES_THE_OUTPUT),
    ],
)
def test_a_program_cannot_make_its_special_judge_look_malformed(
    host: Host, program: str, checker: str
) -> None:
    judgement = host.judge(program, _judged_by(checker))
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)
    assert "the checker failed on this output" in judgement.reason


def test_a_special_judge_that_is_no_program_is_still_a_malformed_task(host: Host) -> None:
    for checker in ("print('accept'", "return 1", "print(1)\0"):
        judgement = host.judge("print(1)", _judged_by(checker))
        assert (judgement.status, judgement.value) == (VerdictStatus.BAD_INPUT, None)
    assert host.judge("print([1, 2])", _judged_by(_READS_PYTHON)).value == 1.0


@pytest.mark.parametrize(
    "made",
    [
        "dict(a=x, b=0)",
        "collections.Counter({'a': x, 'b': 0})",
        "collections.OrderedDict(b=0, a=x)",
        "collections.defaultdict(int, a=x, b=0)",
    ],
)
def test_the_usual_dictionaries_are_dictionaries(host: Host, made: str) -> None:
    program = f"import collections\ndef f(x): return {made}"
    assert host.judge(program, _OBJECT).value == 1.0
    assert host.judge(program.replace("b", "c"), _OBJECT).value == 0.0


@pytest.mark.parametrize(
    ("program", "task"),
    [
        ("import enum\nclass E(enum.IntEnum): A = 8\ndef f(x): return E.A", FUNCTION),
        ("import fractions\ndef f(x): return fractions.Fraction(7 * x + 1)", FUNCTION),
        ("def f(x): return complex(7 * x + 1)", FUNCTION),
        ("async def f(x): return 7 * x + 1", FUNCTION),
        (
            "class D(dict):\n    def items(self): return [('a', 1), ('b', 0)]\n"
            "def f(x): return D()",
            _OBJECT,
        ),
        (
            "import collections\nclass C(collections.Counter):\n"
            "    def __eq__(self, o): return True\n"
            "def f(x): return C()",
            _OBJECT,
        ),
        (
            "import os, threading\n"
            "BODY = b'{\"value\": 8}'\n"
            "def late():\n"
            "    os.write(4, len(BODY).to_bytes(4, 'little') + BODY)\n"
            "def f(x):\n"
            "    threading.Timer(0.05, late).start()\n"
            "    return 7 * x + 1",
            FUNCTION,
        ),
        ("import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError", _OUTPUT),
        ("import os\nprint(8, flush=True)\nos._exit(1)", _OUTPUT),
        ("import os\nprint(8, flush=True)\nos.kill(os.getpid(), 15)", _OUTPUT),
        ("print('\\x1b[8m9\\x1b[0m8')", _OUTPUT),
        ("print('\\ufeff8')", _OUTPUT),
        ("print('\\n8')", _OUTPUT),
        ("print(8.0)", _OUTPUT),
        ("print('nan')", _NEAR),
        ("print('inf')", _NEAR),
        ("print('8.0 8.0')", _NEAR),
        ("print('8_0.0')", _NEAR),
        ("print('\\u00a08.0')", _NEAR),
        ("x = " + "(" * 5000 + ")" * 5000, PROGRAM),
        ("print(8)\0", _OUTPUT),
    ],
)
def test_a_program_that_only_seems_right_earns_nothing(
    host: Host, program: str, task: dict[str, Any]
) -> None:
    judgement = host.judge(program, task)
    assert judgement.value == 0.0
    host.assert_next_honest_job_is_right()


@pytest.mark.parametrize(
    ("program", "task"),
    [
        ("print('8\\r')", _OUTPUT),
        ("print('8  \\n\\n')", _OUTPUT),
        ("# -*- coding: latin-1 -*-\nprint(8)", _OUTPUT),
        ("f = lambda x: 7 * x + 1", FUNCTION),
        ("def f(x, y=1): return 7 * x + y", FUNCTION),
        ("def f(x):\n    print('noise' * 1000)\n    return 7 * x + 1", FUNCTION),
        (
            "import os\ndef f(x):\n    if os.fork(): os.wait(); os._exit(0)\n    return 7 * x + 1",
            FUNCTION,
        ),
    ],
)
def test_an_unusual_program_that_is_right_earns_the_reward(
    host: Host, program: str, task: dict[str, Any]
) -> None:
    assert host.judge(program, task).value == 1.0


_LIST: dict[str, Any] = {"function": "f", "tests": [{"args": [3], "expected": [3, 6]}]}
_TWO_SUM: dict[str, Any] = {
    "function": "twoSum",
    "tests": [
        {"args": [[2, 7, 11], 9], "expected": [0, 1]},
        {"args": [[3, 2, 4], 6], "expected": [1, 2]},
    ],
}
_SOLUTION = """
class Solution:
    def __init__(self):
        self.seen = defaultdict(list)
    def twoSum(self, nums: List[int], target: int) -> Optional[List[int]]:
        for i, n in enumerate(nums):
            if self.seen[target - n]:
                return [self.seen[target - n][0], i]
            self.seen[n].append(i)
"""


@pytest.mark.parametrize("made", ["P(x, 2 * x)", "Q(x, 2 * x)", "collections.deque([x, 2 * x])"])
def test_named_tuples_and_deques_are_what_they_hold(host: Host, made: str) -> None:
    program = (
        "import collections, typing\n"
        "P = collections.namedtuple('P', 'a b')\n"
        "class Q(typing.NamedTuple):\n    a: int\n    b: int\n"
        f"def f(x): return {made}"
    )
    assert host.judge(program, _LIST).value == 1.0
    assert host.judge(program.replace("2 * x", "x"), _LIST).value == 0.0


@pytest.mark.parametrize(
    "made",
    [
        "type('P', (tuple,), {})((x, 2 * x))",
        "type('P', (tuple,), {'__eq__': lambda *a: True})((x, 2 * x))",
        "type('D', (collections.deque,), {})([x, 2 * x])",
        "type('P', (collections.namedtuple('P', 'a b'),), {})(x, 2 * x)",
        "range(x, 3 * x, x)",
        "array.array('i', [x, 2 * x])",
    ],
)
def test_other_classes_are_no_values(host: Host, made: str) -> None:
    program = f"import array, collections\ndef f(x): return {made}"
    judgement = host.judge(program, _LIST)
    assert judgement.value == 0.0
    assert "a value of type" in judgement.reason


def test_a_method_of_a_fresh_solution_is_called_as_on_leetcode(host: Host) -> None:
    assert host.judge(_SOLUTION, _TWO_SUM).value == 1.0
    assert host.judge(_SOLUTION + "\ndef twoSum(a, b): return []", _TWO_SUM).value == 0.0
    assert host.judge(_SOLUTION.replace("twoSum", "two_sum"), _TWO_SUM).value == 0.0
    kept = _SOLUTION.replace("self.seen = defaultdict(list)", "pass").replace(
        "class Solution:", "class Solution:\n    seen = defaultdict(list)"
    )
    assert host.judge(kept, _TWO_SUM).value == 0.0  # what a class keeps is its own affair


@pytest.mark.parametrize(
    "program",
    [
        "class Solution:\n    def __getattr__(self, name): return lambda *a: [0, 1]",
        "class Meta(type):\n    def __getattr__(self, name): return lambda *a: AlwaysEqual()\n"
        "class AlwaysEqual(list):\n    def __eq__(self, other): return True\n"
        "class Solution(metaclass=Meta): pass",
        "class Solution:\n    def __new__(self): import os; os._exit(0)\n"
        "    def twoSum(self, a, b): return [0, 1]",
        "Solution = [0, 1]",
        "class Solution:\n    twoSum = [0, 1]",
    ],
)
def test_a_solution_that_only_seems_one_earns_nothing(host: Host, program: str) -> None:
    assert host.judge(program, _TWO_SUM).value == 0.0
    host.assert_next_honest_job_is_right()


_CPP: dict[str, Any] = {
    "language": "cpp",
    "tests": [{"input": f"{x}\n", "output": f"{7 * x + 1}\n"} for x in (1, 2)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "#include <cstdio>\n#include <unistd.h>\n"
        '__attribute__((constructor)) void f() { puts("8"); fflush(stdout); _exit(0); }\n'
        "int main() {}",
        '#if __has_include("/etc/shadow")\n#error it is there\n#endif\n'
        '#include <cstdio>\nint main() { puts("8"); }',
        '#include "/dev/zero"\nint main() {}',
        'asm(".fill 0x7fffffff");\nint main() {}',
        'int x asm("main") = 5;',
        '#include <cstdlib>\nint main() { return system("echo 8"); }',
    ],
)
def test_a_program_that_only_compiles_earns_nothing(host: Host, program: str) -> None:
    judgement = host.judge(program, _CPP)
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)
    assert "it is there" not in judgement.reason
    host.assert_next_honest_job_is_right()
