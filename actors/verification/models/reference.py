"""Reference log-probabilities for the KL term, computed beside the grading.

The learner computes them by default; with ``learner.reference = "verifier"`` verifiers do, and say
by which reference: DeepSeek-R1 replaces its reference by the latest policy every 400 steps (Nature
645, Methods), and what was computed with the old one is then computed again. The grading stays as
it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt

from actors.verification.grading import ReferenceLogprobs
from actors.verification.models.backend import batch_observer
from actors.verification.models.directory import check_packages
from actors.verification.models.frames import ModelSpec
from actors.verification.models.runner import ModelRunner
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import RolloutArrays
from common.config import Config
from common.config_loader import run_paths
from common.errors import DataError, InfraError
from common.metrics import Metrics
from common.types import (
    INITIAL_VERSION,
    RolloutHeader,
    WeightVersion,
)

TokenIds = npt.NDArray[np.integer]

REFERENCE_MODEL = "reference"


def reference_spec(
    path: str, weights: str, *, device: str, dtype: str, max_tokens: int
) -> ModelSpec:
    """The reference model of ``path``, whose later versions are under ``weights``."""
    return ModelSpec(
        name=REFERENCE_MODEL,
        path=path,
        head="logprobs",
        device=device,
        dtype=dtype,
        max_tokens=max_tokens,
        weights=weights,
    )


class ReferencePass:
    """Computes log-probabilities of completions under a reference policy."""

    def __init__(self, runner: ModelRunner) -> None:
        """``runner`` has the model of :func:`reference_spec`."""
        self._runner = runner

    async def compute(
        self,
        prompt: TokenIds,
        completion: TokenIds,
        version: WeightVersion,
        *,
        temperature: float,
        share: str = "",
    ) -> ReferenceLogprobs:
        """Log-probabilities of ``completion`` [L] after ``prompt`` [P] under ``version``.

        Rollouts of one ``share`` have the same prompt, which is then computed once. Raises
        :class:`DataError` without a prompt token, from which the first one would follow, and
        :class:`InfraError` when the model cannot answer.
        """
        if not len(completion):
            return ReferenceLogprobs(version, np.zeros(0, dtype=np.float32))
        if not len(prompt):
            raise DataError("a reference pass needs a prompt of at least 1 token, got 0")
        outputs = await self._runner.run(
            Work(
                model=REFERENCE_MODEL,
                token_ids=np.concatenate([prompt, completion]).astype(np.int32),
                positions=np.arange(len(completion), dtype=np.int32) + len(prompt) - 1,
                share=share or None,
                targets=completion.astype(np.int32),
                temperature=temperature,
                version=None if version == INITIAL_VERSION else version,
            )
        )
        if not np.isfinite(outputs).all():
            raise InfraError("the reference model answered with a number that is not finite")
        return ReferenceLogprobs(version, outputs[:, 0])

    async def of_rollout(
        self, header: RolloutHeader, arrays: RolloutArrays, version: WeightVersion
    ) -> ReferenceLogprobs:
        """As :meth:`compute`, for one rollout at the temperature that it was sampled at."""
        return await self.compute(
            arrays.prompt_token_ids,
            arrays.completion_token_ids,
            version,
            temperature=header.temperature,
            share=str(header.rollout_id.group_id),
        )


@contextlib.asynccontextmanager
async def reference_pass(config: Config, metrics: Metrics) -> AsyncIterator[ReferencePass]:
    """The reference pass of a run, in a process of its own; weights are loaded when first needed.

    Raises :class:`FatalError` without torch.
    """
    check_packages('learner.reference = "verifier"')
    spec = reference_spec(
        config.model.path,
        str(run_paths(config).references),
        device=config.verifier.reference_device,
        dtype=config.verifier.reference_dtype,
        max_tokens=config.model.max_length,
    )
    limits = RunnerLimits.under(config.verifier)
    async with ModelRunner([spec], limits, batch_observer(metrics)) as runner:
        yield ReferencePass(runner)
