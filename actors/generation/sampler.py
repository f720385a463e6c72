"""What an actor asks of a generation engine: token ids in, token ids and log-probabilities out.

A sampler is synchronous and belongs to one thread: ``submit`` and ``load_weights`` are called
between two ``step`` calls, so a weight load never meets a half-done decode step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from common.arrays import ExpertArray
from common.errors import DataError
from common.types import VersionSpan, WeightVersion
from common.weight_layout import WeightManifest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One completion to sample.

    ``temperature`` 0 is greedy decoding; its log-probabilities are those of temperature 1.
    Sampling ends after the first of ``stop_token_ids``, which stays in the completion, or after
    ``max_tokens``. Requests share cached prompt blocks only under an equal ``cache_salt``; None
    salts with the weight version that serves when the prompt enters the engine. A ``seed`` makes
    the draws independent of what else is running; None draws from the engine's generator, which
    is faster.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    cache_salt: str | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedExperts:
    """Which experts of a mixture computed N tokens in a row, from token ``start`` of the prompt on.

    ``experts`` is uint8 or, above 256 experts, uint16 [N, layers, top_k]; all decoder layers count.
    The last token of a completion is never computed and has no row.
    """

    experts: ExpertArray
    start: int
    num_experts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledCompletion:
    """A finished completion of L tokens.

    ``token_ids`` is int32 [L]; ``behavior_logprobs`` is float32 [L] in nats, under the
    distribution that was really sampled from (temperature applied). ``version_spans`` ascend and
    begin at token 0. ``finish_reason`` ``"abort"`` marks a request that the engine gave up.
    ``routing`` is there where the sampler was asked to record it.
    """

    request_id: str
    token_ids: npt.NDArray[np.int32]
    behavior_logprobs: npt.NDArray[np.float32]
    finish_reason: Literal["stop", "length", "abort"]
    version_spans: tuple[VersionSpan, ...]
    routing: RecordedExperts | None = None


class Sampler(Protocol):
    """A generation engine that can change its weights between two steps."""

    def submit(self, request: SampleRequest) -> None:
        """Queue ``request``; ``DataError`` where no engine of this size could ever serve it."""
        ...

    def abort(self, request_ids: Collection[str]) -> None:
        """Forget these requests; nothing is reported for them. Unknown ids are ignored."""
        ...

    def step(self) -> list[SampledCompletion]:
        """Decode one token for every running request and return the completions that finished.

        Returns at once when idle. Raises ``WeightLoadError`` while the engine is partial.
        """
        ...

    def load_weights(
        self, staged: Mapping[str, torch.Tensor], manifest: WeightManifest, version: WeightVersion
    ) -> None:
        """Load ``staged`` in place and prove it, keeping running requests and their KV cache.

        The proof reads the engine's own parameters back and compares their digests with
        ``manifest``. On any failure raises ``WeightLoadError`` and leaves the engine partial: it
        serves nothing until a later load has been proven.
        """
        ...

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probability (nats, temperature 1) of each token after the first, float32 [L - 1].

        Computed afresh, without reading cached prompt blocks. Running requests may advance
        meanwhile; what they finish is held back until the next ``step``.
        """
        ...

    def close(self) -> None:
        """Free the engine; further calls do nothing."""
        ...

    @property
    def num_running(self) -> int:
        """Requests submitted and neither reported nor aborted."""
        ...

    @property
    def serving_version(self) -> WeightVersion:
        """The version that was proven last."""
        ...

    @property
    def is_partial(self) -> bool:
        """True while the engine holds weights that were not proven."""
        ...


def check_request(request: SampleRequest, *, max_model_len: int, vocab_size: int) -> None:
    """Raise ``DataError`` unless a model of this size can serve ``request``."""
    num_prompt_tokens = len(request.prompt_token_ids)
    where = f"request {request.request_id}"
    if num_prompt_tokens == 0:
        raise DataError(f"{where}: a prompt needs at least one token, got none")
    if request.max_tokens < 1:
        raise DataError(f"{where}: max_tokens must be >= 1, got {request.max_tokens}")
    if not 0 <= request.temperature < float("inf"):
        raise DataError(f"{where}: temperature must be >= 0, got {request.temperature}")
    if num_prompt_tokens + request.max_tokens > max_model_len:
        raise DataError(
            f"{where}: prompt and completion must fit the context of {max_model_len} tokens, got "
            f"{num_prompt_tokens} + {request.max_tokens} (shorten the prompt or max_tokens)"
        )
    if not 0 <= min(request.prompt_token_ids) <= max(request.prompt_token_ids) < vocab_size:
        raise DataError(
            f"{where}: prompt token ids must lie in 0..{vocab_size - 1} (use the model's tokenizer)"
        )


def extend_spans(
    spans: tuple[VersionSpan, ...], num_tokens: int, version: WeightVersion
) -> tuple[VersionSpan, ...]:
    """Spans of a completion whose tokens from ``num_tokens`` on are sampled under ``version``."""
    kept = tuple(span for span in spans if span.start < num_tokens)
    if kept and kept[-1].version == version:
        return kept
    return (*kept, VersionSpan(start=num_tokens, version=version))
