"""A user's own reward in real killable children: values, reasons, and all that goes wrong."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actors.verification.dispatch import Dispatcher
from actors.verification.judgement import Judgement, VerifyJob
from actors.verification.reward import plan_checks
from actors.verification.user_reward_pool import user_rewards
from common.config import RewardWeight, VerifierConfig
from common.errors import FatalError
from common.types import Prompt, VerdictStatus
from common.user_rewards import function_problems, with_function
from tests.integration.user_reward_runs import verdicts_on

DOCUMENT = Path(__file__).parents[2] / "docs" / "writing-a-reward.md"

# The trial's completion is answered with a number, so that the trial passes.
_HOSTILE = """
import os

OK = "<answer>2</answer>"

def score(completion, *, prompt, reference):
    if OK in completion:
        return 0.25
    text = completion
    if text == "pair":
        return 0.5, "half"
    if text == "inputs":
        return 1.0, f"{prompt}|{sorted(reference.items())}"
    if text == "bool":
        return True
    if text == "negative":
        return -3
    if text == "none":
        return None
    if text == "text":
        return "1.0"
    if text == "nan":
        return float("nan")
    if text == "inf":
        return float("inf")
    if text == "huge":
        return 10 ** 400
    if text == "reason":
        return 1.0, 7
    if text == "triple":
        return 1.0, "a", "b"
    if text == "raise":
        return reference["gold"]["missing"]
    if text == "exit":
        raise SystemExit(0)
    if text == "hang":
        while True:
            pass
    if text == "memory":
        return len(bytearray(1 << 40))
    if text == "die":
        os._exit(0)
    if text == "print":
        print("x" * 100000)
        return 1.0
    if text == "surrogate":
        return 1.0, "\\ud800"
    raise AssertionError(text)
"""


def _config(tmp_path: Path, source: str, **limits: float) -> VerifierConfig:
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    term = RewardWeight(name="mine", module="mine.py:score", weight=2.0)
    return VerifierConfig(rewards=(with_function(term, tmp_path),), **limits)  # type: ignore[arg-type]


def test_the_value_is_weighted_and_the_reason_told(tmp_path: Path) -> None:
    names = ["pair", "inputs", "bool", "negative", "print", "surrogate"]
    verdicts = verdicts_on(_config(tmp_path, _HOSTILE), names)
    assert [verdict.reward for verdict in verdicts] == [1.0, 2.0, 2.0, -6.0, 2.0, 2.0]
    assert {verdict.status for verdict in verdicts} == {VerdictStatus.GRADED}
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons == ["half", "1+1=|[('gold', '2')]", "", "", "", "?"]


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("none", "returned NoneType, not a number"),
        ("text", "returned str, not a number"),
        ("nan", "returned nan, not a finite number"),
        ("inf", "returned inf, not a finite number"),
        ("huge", "returned no number: OverflowError"),
        ("reason", "returned a reason that is int, not text"),
        ("triple", "returned tuple, not a number"),
        ("raise", r"raised TypeError: .*\(mine.py, line 33\)"),
        ("exit", r"raised SystemExit: 0 \(mine.py"),
        ("die", "died in mid-job"),
    ],
)
def test_a_broken_reward_is_a_failure_and_never_a_number(
    completion: str, reason: str, tmp_path: Path
) -> None:
    broken, after = verdicts_on(_config(tmp_path, _HOSTILE), [completion, "pair"])
    assert (broken.status, broken.reward) == (VerdictStatus.INFRA_ERROR, None)
    assert re.search(reason, broken.reason), broken.reason
    assert after.reward == 1.0


@pytest.mark.parametrize("completion", ["hang", "memory"])
def test_what_exceeds_the_limits_is_worth_0_and_costs_only_itself(
    completion: str, tmp_path: Path
) -> None:
    config = _config(tmp_path, _HOSTILE, wall_limit_s=1.0)
    exceeded, after = verdicts_on(config, [completion, "pair"])
    assert (exceeded.status, exceeded.reward) == (VerdictStatus.LIMIT_EXCEEDED, 0.0)
    assert after.reward == 1.0


_HEAD = "def score(completion, *, prompt, reference):\n    "


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module\n" + _HEAD + "return 1.0", "No module named 'no_such_module'"),
        (
            "1 / 0\n" + _HEAD + "return 1.0",
            r"ZeroDivisionError: division by zero \(mine.py, line 1",
        ),
        ("exit(3)\n" + _HEAD + "return 1.0", "cannot be loaded: SystemExit: 3"),
        (_HEAD + "return None", "returned NoneType, not a number"),
        (_HEAD + "return float('nan')", "returned nan"),
        (_HEAD + "while True: pass", "wall limit of 1 s exceeded"),
        (_HEAD + "return bytearray(1 << 40)", "memory limit exceeded"),
        (_HEAD + "return 1.0\nscore = 3", "score is int, not a function"),
    ],
)
def test_a_reward_that_cannot_work_stops_the_run_at_its_start(
    source: str, reason: str, tmp_path: Path
) -> None:
    config = _config(tmp_path, source, wall_limit_s=1.0)

    async def run() -> None:
        async with user_rewards(config):
            raise AssertionError("the trial passed")

    with pytest.raises(FatalError, match="the trial of .*mine.py:score failed: ") as raised:
        asyncio.run(run())
    assert re.search(reason, str(raised.value)), str(raised.value)
    assert "docs/writing-a-reward.md" in str(raised.value)


def test_a_reward_that_only_misses_a_field_of_the_made_up_task_may_start(tmp_path: Path) -> None:
    source = _HEAD + "return float(reference['numbers'][0])"
    config = _config(tmp_path, source)

    async def run() -> bool:
        async with user_rewards(config):
            return True

    assert asyncio.run(run())


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 0.75")
    source = "from neighbour_of_mine import VALUE\n" + _HEAD + "return VALUE"
    (verdict,) = verdicts_on(_config(tmp_path, source), ["anything"])
    assert verdict.reward == 1.5


def test_the_reward_of_the_document_works_as_it_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    source = next(block for block in blocks if "def score" in block)
    config = _config(tmp_path, source)
    assert function_problems(config.rewards) == []
    right = "<think>one two</think><answer>2</answer>"
    long = "<think>" + "word " * 500 + "</think><answer>2</answer>"
    wrong = "<think></think><answer>3</answer>"
    rewards = [verdict.reward for verdict in verdicts_on(config, [right, long, wrong, ""])]
    assert rewards == [2.0, 1.4, 0.0, 0.0]


def test_a_malformed_task_is_bad_input_and_not_the_functions_fault(tmp_path: Path) -> None:
    config = _config(tmp_path, _HOSTILE)
    prompt = Prompt(prompt_id="p", text="?", task="arithmetic", reference_json="[1]")

    async def run() -> Judgement:
        async with Dispatcher(config) as dispatcher:
            checks = plan_checks(config.rewards, prompt)
            reply = await dispatcher.judge(VerifyJob(completion="pair", checks=checks))
            return reply.judgements[0]

    judgement = asyncio.run(run())
    assert judgement.status is VerdictStatus.BAD_INPUT
    assert judgement.value is None


def test_the_fields_of_a_check_are_those_that_the_term_and_the_task_have(tmp_path: Path) -> None:
    config = _config(tmp_path, _HOSTILE)
    prompt = Prompt(prompt_id="p", text="?", task="arithmetic", reference_json='{"gold":"2"}')
    (check,) = plan_checks(config.rewards, prompt)
    assert check.kind == "function"
    module = f"{tmp_path}/mine.py:score"
    assert json.loads(check.reference_json) == {"gold": "2", "reward_function": module}


_RUN = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "chain-addition"
[verifier]
rewards = [{ name = "accuracy" }, { name = "brief", module = "rewards/brief.py:score" }]
"""


def test_a_reward_can_be_tried_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(_RUN)
    (tmp_path / "rewards").mkdir()
    example = DOCUMENT.parents[1] / "examples" / "rewards" / "brief.py"
    (tmp_path / "rewards" / "brief.py").write_bytes(example.read_bytes())
    lines = [
        {"id": 1, "completion": "<think>a</think><answer>2</answer>", "gold": "2"},
        {"id": 2, "completion": "word " * 700 + "</think><answer>3</answer>", "gold": "2"},
    ]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "common.cli", "verify", "--kind", "arithmetic"),
            *("--config", str(tmp_path / "run.toml"), "--rewards", "accuracy,brief=0.5"),
        ],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = map(json.loads, ran.stdout.splitlines())
    assert (first["status"], first["reward"]) == ("graded", 1.5)
    assert second["components"] == {"accuracy": 0.0, "brief": 0.5}
    assert (second["reward"], second["reason"]) == (0.25, "500 words too many")
