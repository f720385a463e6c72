"""Task kind -> verifier. Adding a kind is one file and one line here.

A child process imports this table, so what it names must import fast: no numpy, no torch.
"""

from __future__ import annotations

from actors.verification.arithmetic import judge_arithmetic
from actors.verification.choice import judge_choice
from actors.verification.countdown import judge_countdown
from actors.verification.format_reward import judge_format
from actors.verification.judgement import Verifier
from actors.verification.language import judge_language
from actors.verification.math.verifier import judge_math
from actors.verification.task_score import judge_task

VERIFIERS: dict[str, Verifier] = {
    "arithmetic": judge_arithmetic,
    "choice": judge_choice,
    "countdown": judge_countdown,
    "format": judge_format,
    "language": judge_language,
    "math": judge_math,
    "task": judge_task,
}
