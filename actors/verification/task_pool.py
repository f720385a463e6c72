"""The backend of kind ``task``: children of their own, which import reasoning-gym when they start.

Importing it takes seconds. In a child that every kind shares, the first ``task`` would pay for that
out of its own time limit, and a right answer would be called too slow.
"""

from __future__ import annotations

from actors.verification.child import ChildLimits
from actors.verification.pool import VerifierPool
from common.config import PromptsConfig, VerifierConfig
from common.errors import FatalError
from common.reasoning_gym_catalog import GENERATOR_PREFIX, is_installed

REGISTRY = "actors.verification.task_registry"


def generated_kinds(prompts: PromptsConfig) -> tuple[str, ...]:
    """Kinds of task that the prompt sets of a run are known to have, besides the light ones.

    Started with the verifier, they cost no rollout a wait, and what is missing is said at once.
    """
    named = any(item.generator.startswith(GENERATOR_PREFIX) for item in prompts.all_sets)
    return ("task",) if named else ()


def task_pool(config: VerifierConfig) -> VerifierPool:
    """The pool for ``[verifier]``; raises :class:`FatalError` without the package."""
    if not is_installed():
        raise FatalError(
            "prompts of kind task need the package reasoning-gym, which is not installed here "
            "(pip install 'headrace[tasks]')"
        )
    limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes, REGISTRY)
    return VerifierPool(limits, config.num_workers)
