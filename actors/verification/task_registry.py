"""What a child of :mod:`actors.verification.task_pool` imports before it takes its first job."""

from __future__ import annotations

import sys
from types import ModuleType

from actors.verification.judgement import Verifier
from actors.verification.task_score import judge_task
from common.reasoning_gym_catalog import dataset_names

# Two datasets use cellpylib to make their problems, none to score them. It imports matplotlib:
# two thirds of the start, and a font cache that a child without a home writes anew each time.
sys.modules.setdefault("cellpylib", ModuleType("cellpylib"))

VERIFIERS: dict[str, Verifier] = {"task": judge_task}

dataset_names()
