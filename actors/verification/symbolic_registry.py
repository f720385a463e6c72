"""What a child of :mod:`actors.verification.symbolic_pool` imports before its first job."""

from __future__ import annotations

from actors.verification.judgement import Verifier
from actors.verification.math.symbolic import judge_symbolic
from common.math_answer.symbolic import read_symbolic
from common.references.math import SYMBOLIC_KIND

VERIFIERS: dict[str, Verifier] = {SYMBOLIC_KIND: judge_symbolic}

read_symbolic("2")  # imports math-verify and builds the tables of its parser
