"""Task data of the broker: seeded problem generators by name.

``GENERATORS`` streams training prompts, ``HELD_OUT`` lists evaluation prompts and ``CORPORA``
writes cold-start pairs; a task has the same name in all of them that it is in.
:mod:`broker.tasks.finding` looks them up, with those of reasoning-gym.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.tasks import chain_addition, countdown
from broker.tasks.problem import Problem

PromptGenerator = Callable[[int, int], Problem]
HeldOutGenerator = Callable[[int, int], list[Problem]]
CorpusGenerator = Callable[..., list[tuple[str, str]]]
"""Of seed, count, share of long answers, and the options of the task."""

GENERATORS: dict[str, PromptGenerator] = {
    chain_addition.TASK_NAME: chain_addition.prompt_at,
    countdown.TASK_NAME: countdown.prompt_at,
}
HELD_OUT: dict[str, HeldOutGenerator] = {
    chain_addition.TASK_NAME: chain_addition.held_out,
    countdown.TASK_NAME: countdown.held_out,
}
CORPORA: dict[str, CorpusGenerator] = {chain_addition.TASK_NAME: chain_addition.corpus}

__all__ = ["CORPORA", "GENERATORS", "HELD_OUT", "Problem"]
