"""By which conventions a final answer is found; what they find is in :mod:`common.answers`."""

from __future__ import annotations

from typing import Literal

Convention = Literal["answer-tag", "boxed", "final-answer", "last-number"]
"""Last ``<answer>`` block, ``\\boxed{}``, what follows "final answer is", or number."""

CONVENTIONS: tuple[Convention, ...] = ("answer-tag", "boxed", "final-answer")
"""Of a math task that says nothing. ``last-number`` must be asked for: any number would do."""

MARKED: tuple[Convention, ...] = ("answer-tag", "boxed")
"""The conventions that mark where the answer begins and ends: what most tasks ask for."""
