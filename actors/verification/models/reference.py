"""Reference log-probabilities for the KL term, computed beside the grading.

The learner computes them by default. A verifier that has a GPU to spare can do so instead, and says
by which reference: DeepSeek-R1 replaces its reference by the latest policy every 400 steps (Nature
645, Methods), and what was computed against the old one must then be computed again. The grading
stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from actors.verification.models.frames import ModelSpec
from actors.verification.models.runner import ModelRunner
from actors.verification.models.work import Work
from common.arrays import Float32Array
from common.errors import DataError
from common.types import Count, Record, Verdict, WeightVersion

TokenIds = npt.NDArray[np.integer]

REFERENCE_MODEL = "reference"


class ReferenceHeader(Record, frozen=True):
    """What travels beside the verdict; float32 [num_tokens] log-probabilities in nats follow.

    ``reference_version`` names the weights that computed them.
    """

    reference_version: WeightVersion
    num_tokens: Count

    def frame_bytes(self) -> tuple[int]:
        """Exact byte length of the frame that must follow."""
        return (4 * self.num_tokens,)


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

    @classmethod
    def from_frame(cls, header: ReferenceHeader, frame: memoryview) -> ReferenceLogprobs:
        """Read them back; raises :class:`DataError` for another length or impossible values."""
        logprobs = np.frombuffer(frame, dtype="<f4")
        if logprobs.nbytes != header.frame_bytes()[0]:
            raise DataError(f"{logprobs.size} reference log-probs for {header.num_tokens} tokens")
        if logprobs.size and not (np.isfinite(logprobs).all() and logprobs.max() <= 1e-3):
            raise DataError("reference_logprobs must be finite and at most 0")
        return cls(header.reference_version, logprobs)


@dataclass(frozen=True, slots=True)
class GradedRollout:
    """A verdict, and the reference log-probabilities beside it."""

    verdict: Verdict
    reference: ReferenceLogprobs | None = None


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
    """Computes log-probabilities under the reference that is valid at the time."""

    def __init__(self, runner: ModelRunner, version: WeightVersion) -> None:
        """``version`` is that of the model directory; others are read from published weights."""
        self._runner = runner
        self._initial = version
        self.version = version
        """The reference that results must carry; set it when the reference is replaced."""

    async def compute(
        self, prompt: TokenIds, completion: TokenIds, *, temperature: float, share: str = ""
    ) -> ReferenceLogprobs:
        """Log-probabilities of ``completion`` [L >= 1] after ``prompt`` [P >= 1].

        Rollouts of one ``share`` have the same prompt, which is then computed once. Raises
        :class:`ModelProcessError`.
        """
        version = self.version
        outputs = await self._runner.run(
            Work(
                model=REFERENCE_MODEL,
                token_ids=np.concatenate([prompt, completion]).astype(np.int32),
                positions=np.arange(len(completion), dtype=np.int32) + len(prompt) - 1,
                share=share or None,
                targets=completion.astype(np.int32),
                temperature=temperature,
                version=None if version == self._initial else version,
            )
        )
        return ReferenceLogprobs(version, outputs[:, 0])

    async def refresh(
        self,
        graded: GradedRollout,
        prompt: TokenIds,
        completion: TokenIds,
        *,
        temperature: float,
        share: str = "",
    ) -> GradedRollout:
        """The same grading with log-probabilities of the valid reference; these if they are so."""
        if graded.reference is not None and graded.reference.version == self.version:
            return graded
        reference = await self.compute(prompt, completion, temperature=temperature, share=share)
        return replace(graded, reference=reference)
