"""The backend of kind ``math-symbolic``: children of their own, which import sympy when they start.

In a child that every rule shares, the first such task would pay for that import out of its own time
limit, and a right answer would be called too slow.
"""

from __future__ import annotations

from actors.verification.child import ChildLimits
from actors.verification.pool import VerifierPool
from common.config import VerifierConfig
from common.errors import FatalError
from common.math_answer.symbolic import INSTALL, is_installed

REGISTRY = "actors.verification.symbolic_registry"


def symbolic_pool(config: VerifierConfig) -> VerifierPool:
    """The pool for ``[verifier]``; raises :class:`FatalError` without the package."""
    if not is_installed():
        raise FatalError(
            "math tasks whose gold answer must be worked out need math-verify, which is not "
            f"installed here ({INSTALL})"
        )
    limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes, REGISTRY)
    return VerifierPool(limits, config.num_workers)
