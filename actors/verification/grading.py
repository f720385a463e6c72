"""One leased rollout -> its verdict and the reference log-probabilities that were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog

from common.arrays import Float32Array, RolloutArrays
from common.errors import DataError, InfraError
from common.messages import RolloutLease
from common.types import Prompt, ReferenceHeader, RolloutHeader, Verdict, WeightVersion

Judge = Callable[[Prompt, RolloutArrays], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class ReferenceLogprobs:
    """Log-probability of each completion token under the reference, temperature applied."""

    version: WeightVersion
    logprobs: Float32Array
    """[L] nats."""

    @property
    def header(self) -> ReferenceHeader:
        """The record that describes the frame."""
        return ReferenceHeader(reference_version=self.version, num_tokens=len(self.logprobs))

    def frame(self) -> memoryview:
        """The raw little-endian array, without a copy."""
        return np.ascontiguousarray(self.logprobs, dtype="<f4").data


@dataclass(frozen=True, slots=True)
class GradedRollout:
    """A verdict, and the reference log-probabilities beside it."""

    verdict: Verdict
    reference: ReferenceLogprobs | None = None


class RolloutReference(Protocol):
    """What grading needs of :class:`~actors.verification.models.reference.ReferencePass`."""

    async def of_rollout(
        self, header: RolloutHeader, arrays: RolloutArrays, version: WeightVersion
    ) -> ReferenceLogprobs:
        """Log-probabilities of the completion under the reference ``version``."""
        ...


class Grader:
    """Judges, and computes the reference beside it; neither waits for the other."""

    def __init__(
        self,
        judge: Judge,
        reference: RolloutReference | None,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """``reference`` is None in a run whose learner computes its own."""
        self._judge = judge
        self._reference = reference
        self._log = log

    async def grade(self, lease: RolloutLease, arrays: RolloutArrays) -> GradedRollout:
        """What ``lease`` asks for; a rollout that has its verdict is not judged again.

        A reference that could not be computed costs no verdict: the broker leases the rollout once
        more, for the reference alone. Raises :class:`InfraError` or :class:`DataError` when that
        fails.
        """
        version = lease.reference_version
        if lease.verdict is not None:
            if version is None:
                return GradedRollout(lease.verdict)
            return GradedRollout(lease.verdict, await self._compute(lease, arrays, version))
        if version is None or self._reference is None:
            return GradedRollout(await self._judge(lease.prompt, arrays))
        verdict, reference = await asyncio.gather(
            self._judge(lease.prompt, arrays), self._try(lease, arrays, version)
        )
        return GradedRollout(verdict, reference if verdict.status.is_judged else None)

    async def _try(
        self, lease: RolloutLease, arrays: RolloutArrays, version: WeightVersion
    ) -> ReferenceLogprobs | None:
        try:
            return await self._compute(lease, arrays, version)
        except (InfraError, DataError) as error:
            self._log.warning("no reference log-probabilities", error=str(error))
            return None

    async def _compute(
        self, lease: RolloutLease, arrays: RolloutArrays, version: WeightVersion
    ) -> ReferenceLogprobs:
        if self._reference is None:
            raise DataError(
                'a rollout came for its reference, but learner.reference is not "verifier" here '
                "(start every role from one configuration)"
            )
        return await self._reference.of_rollout(lease.rollout, arrays, version)
