"""What judges checks, and which kinds each: one row of :data:`BACKENDS`.

Rules run in the pool of killable children. What needs more than that, a sandbox or a model, is a
:class:`Backend` of its own, imported when the first check of one of its kinds is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, cast

from actors.verification.judgement import JobReply, VerifyJob
from common.errors import FatalError
from common.references.math import SYMBOLIC_KIND
from common.reward_terms import MODEL_TERMS
from common.user_rewards import FUNCTION_KIND


class Backend(Protocol):
    """What judges checks of some kinds; an asynchronous context manager, entered once.

    Entering raises :class:`FatalError` when it cannot work here. Entered and left by one task.
    """

    async def __aenter__(self) -> object:
        """Start: after this, jobs may come."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and end every process that was started."""
        ...

    async def judge(self, job: VerifyJob) -> JobReply:
        """One judgement for each check, in order, or a typed failure; never raises for content.

        May be called from any number of tasks.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendSource:
    """A backend that can be had: the kinds that it answers, and how to make it."""

    name: str
    kinds: frozenset[str]
    open: Callable[..., Backend]
    """Called with the ``[verifier]`` section, and the metrics where ``takes_metrics``."""
    needs_prompt: bool = False
    """Send the prompt and the token ids as well."""
    takes_metrics: bool = False
    """It has metrics of its own."""
    jobs_at_once: int = 1
    """Jobs that keep it busy, where it does not say so by a ``num_workers``."""


def imported(where: str) -> Callable[..., Backend]:
    """A factory that imports ``module:callable`` when it is called.

    The factory raises :class:`FatalError` where a module that it needs is not installed.
    """

    def open_backend(*arguments: object) -> Backend:
        module_name, _, attribute = where.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise FatalError(
                f"this kind of check needs {error.name}, which is not installed here "
                "(install headrace with what the reward needs, or remove the reward)"
            ) from None
        return cast("Backend", getattr(module, attribute)(*arguments))

    return open_backend


RULES = BackendSource("rules", frozenset(), imported("actors.verification.pool:rule_pool"))
"""Where every kind goes that no other backend names."""

BACKENDS: tuple[BackendSource, ...] = (
    BackendSource(
        "code", frozenset({"code"}), imported("actors.verification.code.judge:code_judge")
    ),
    BackendSource(
        "models",
        MODEL_TERMS,
        imported("actors.verification.models.backend:model_backend"),
        needs_prompt=True,
        takes_metrics=True,
        jobs_at_once=64,
    ),
    BackendSource(
        "symbolic",
        frozenset({SYMBOLIC_KIND}),
        imported("actors.verification.symbolic_pool:symbolic_pool"),
    ),
    BackendSource(
        "tasks", frozenset({"task"}), imported("actors.verification.task_pool:task_pool")
    ),
    BackendSource(
        "functions",
        frozenset({FUNCTION_KIND}),
        imported("actors.verification.user_reward_pool:user_rewards"),
        needs_prompt=True,
    ),
)
"""Backends besides the rules."""


def known_kinds() -> frozenset[str]:
    """Every kind of check that some backend answers."""
    from actors.verification.registry import VERIFIERS

    return frozenset(VERIFIERS).union(*(source.kinds for source in BACKENDS))
