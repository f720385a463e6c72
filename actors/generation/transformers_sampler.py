"""The light sampler: batched decoding on plain transformers, for tests and hosts without vLLM.

Requests are served in waves: a wave takes what waits, shrinks as completions finish, and the next
begins when it is empty. Slower than vLLM's continuous admission, and a few lines instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actors.generation.model_directory import read_tensor_shapes
from actors.generation.sampler import (
    SampledCompletion,
    SampleRequest,
    check_request,
    extend_spans,
)
from actors.generation.weight_proof import (
    LoadedWeights,
    check_layout,
    check_names,
    prove_loaded,
    staged_tensors,
)
from common.errors import InfraError, ModelDirectoryError, WeightLoadError
from common.types import VersionSpan, WeightVersion
from common.weight_layout import WeightManifest


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersOptions:
    """How to build the light sampler; ``max_num_seqs`` is the largest wave."""

    model_dir: Path
    max_model_len: int
    dtype: str = "float32"
    max_num_seqs: int = 64
    seed: int = 0


@dataclass(slots=True)
class _Row:
    """One running request of the wave."""

    request: SampleRequest
    version_spans: tuple[VersionSpan, ...]
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def finish_reason(self) -> str | None:
        if self.token_ids[-1] in self.request.stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) == self.request.max_tokens else None

    def completion(self, finish_reason: Any) -> SampledCompletion:
        return SampledCompletion(
            request_id=self.request.request_id,
            token_ids=np.asarray(self.token_ids, np.int32),
            behavior_logprobs=np.asarray(self.logprobs, np.float32),
            finish_reason=finish_reason,
            version_spans=self.version_spans,
        )


@dataclass(slots=True)
class _Batch:
    """Model inputs of the wave: ``input_ids`` [B, T] not yet in ``cache``, ``mask`` [B, all]."""

    input_ids: torch.Tensor
    mask: torch.Tensor
    cache: Any = None


class TransformersSampler:
    """``Sampler`` on a transformers causal language model, on the CPU.

    Raises ``FatalError`` where the model directory cannot be served.
    """

    def __init__(self, options: TransformersOptions, version: WeightVersion) -> None:
        self._options = options
        self._model = _load_model(options)
        self._weights = _model_weights(self._model)
        check_layout(self._weights, read_tensor_shapes(options.model_dir), options.model_dir)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._waiting: dict[str, SampleRequest] = {}
        self._rows: list[_Row] = []
        self._batch: _Batch | None = None
        self._version = version
        self._is_partial = False

    @property
    def num_running(self) -> int:
        """Requests submitted and neither reported nor aborted."""
        return len(self._waiting) + len(self._rows)

    @property
    def serving_version(self) -> WeightVersion:
        """The version that was proven last."""
        return self._version

    @property
    def is_partial(self) -> bool:
        """True while the model holds weights that were not proven."""
        return self._is_partial

    def submit(self, request: SampleRequest) -> None:
        """Queue ``request`` for the next wave; ``DataError`` where the model could not serve it."""
        running = {row.request.request_id for row in self._rows}
        if request.request_id in self._waiting or request.request_id in running:
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        check_request(
            request,
            max_model_len=self._options.max_model_len,
            vocab_size=self._model.config.vocab_size,
        )
        self._waiting[request.request_id] = request

    def abort(self, request_ids: Collection[str]) -> None:
        """Forget these requests; nothing is reported for them. Unknown ids are ignored."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)
        self._keep([row.request.request_id not in request_ids for row in self._rows])

    @torch.inference_mode()
    def step(self) -> list[SampledCompletion]:
        """Decode one token for every request of the wave; return the completions that finished."""
        self._refuse_if_partial()
        if self._batch is None:
            self._start_wave()
        if self._batch is None:
            return []
        token_ids, logprobs = self._sample(self._forward(self._batch))
        self._append_tokens(self._batch, token_ids, logprobs)
        reasons = [row.finish_reason() for row in self._rows]
        completions = [
            row.completion(reason)
            for row, reason in zip(self._rows, reasons, strict=True)
            if reason
        ]
        self._keep([reason is None for reason in reasons])
        return completions

    @torch.inference_mode()
    def load_weights(
        self, staged: Mapping[str, torch.Tensor], manifest: WeightManifest, version: WeightVersion
    ) -> None:
        """Copy ``staged`` into the live parameters and prove it; the wave keeps its KV cache."""
        self._is_partial = True
        if manifest.version != version:
            raise WeightLoadError(f"manifest of {manifest.version} does not describe {version}")
        check_names(self._weights, manifest)
        try:
            for name, tensor in staged_tensors(staged, manifest):
                self._weights.tensors[self._weights.holder(name) or name].copy_(tensor)
        except WeightLoadError:
            raise
        except Exception as error:
            raise WeightLoadError(f"loading weights {version} failed: {error!r}") from error
        prove_loaded(self._weights, manifest)
        for row in self._rows:
            row.version_spans = extend_spans(row.version_spans, len(row.token_ids), version)
        self._version = version
        self._is_partial = False

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probability (nats, temperature 1) of each token after the first, float32 [L - 1]."""
        self._refuse_if_partial()
        ids = torch.tensor([token_ids])
        logprobs = self._model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        scored: npt.NDArray[np.float32] = logprobs.gather(-1, ids[0, 1:, None]).view(-1).numpy()
        return scored

    def close(self) -> None:
        """Nothing to free beyond the object itself."""

    def _refuse_if_partial(self) -> None:
        if self._is_partial:
            raise WeightLoadError(
                f"the model holds weights that were not proven (last proven: {self._version}); "
                "load a complete version before serving"
            )

    def _start_wave(self) -> None:
        names = list(self._waiting)[: self._options.max_num_seqs]
        requests = [self._waiting.pop(name) for name in names]
        spans = extend_spans((), 0, self._version)
        self._rows = [_Row(item, spans, self._generator_of(item)) for item in requests]
        if requests:
            self._batch = _left_padded([item.prompt_token_ids for item in requests])

    def _generator_of(self, request: SampleRequest) -> torch.Generator:
        if request.seed is None:
            return self._generator
        return torch.Generator().manual_seed(request.seed)

    def _forward(self, batch: _Batch) -> torch.Tensor:
        """Next-token logits [B, V] in float32; moves the batch's inputs into its cache."""
        positions = (batch.mask.cumsum(-1) - 1).clamp_min(0)[:, -batch.input_ids.shape[1] :]
        output = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        batch.cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _sample(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one token a row; returns token ids [B] and their behavior log-probs [B]."""
        temperatures = torch.tensor([row.request.temperature for row in self._rows])
        is_greedy = temperatures == 0
        logprobs = (logits / temperatures.masked_fill(is_greedy, 1.0)[:, None]).log_softmax(-1)
        if not logprobs.isfinite().any(-1).all() or logprobs.isnan().any():
            raise InfraError(f"weights {self._version} give log-probabilities that are not finite")
        drawn = torch.cat(
            [
                torch.multinomial(probabilities, 1, generator=row.generator)
                for probabilities, row in zip(logprobs.exp(), self._rows, strict=True)
            ]
        )
        token_ids = torch.where(is_greedy, logits.argmax(-1), drawn)
        return token_ids, logprobs.gather(-1, token_ids[:, None]).view(-1)

    def _append_tokens(
        self, batch: _Batch, token_ids: torch.Tensor, logprobs: torch.Tensor
    ) -> None:
        for row, token_id, logprob in zip(
            self._rows, token_ids.tolist(), logprobs.tolist(), strict=True
        ):
            row.token_ids.append(token_id)
            row.logprobs.append(logprob)
        ones = torch.ones_like(token_ids)[:, None]
        batch.input_ids = token_ids[:, None]
        batch.mask = torch.cat([batch.mask, ones], dim=1)

    def _keep(self, is_kept: list[bool]) -> None:
        """Drop the other rows from the wave and from its cache."""
        if self._batch is None or all(is_kept):
            return
        indices = torch.tensor([i for i, kept in enumerate(is_kept) if kept], dtype=torch.long)
        self._rows = [self._rows[i] for i in indices.tolist()]
        if not self._rows:
            self._batch = None
            return
        self._batch.input_ids = self._batch.input_ids[indices]
        self._batch.mask = self._batch.mask[indices]
        if self._batch.cache is not None:
            self._batch.cache.batch_select_indices(indices)


def _left_padded(prompts: Sequence[Sequence[int]]) -> _Batch:
    width = max(len(prompt) for prompt in prompts)
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return _Batch(input_ids=torch.tensor(ids), mask=torch.tensor(mask))


def _load_model(options: TransformersOptions) -> Any:
    read_tensor_shapes(options.model_dir)
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            options.model_dir, dtype=getattr(torch, options.dtype), local_files_only=True
        )
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelDirectoryError(
            f"transformers must be able to load {options.model_dir}: {reason} "
            "(check the architecture, or save the model again with save_pretrained)"
        ) from error
    return model.eval().requires_grad_(False)


def _model_weights(model: torch.nn.Module) -> LoadedWeights:
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    owners = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: owners[p.data_ptr()] for name, p in every if name not in tensors}
    return LoadedWeights(tensors, tied)
