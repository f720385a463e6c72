"""Which experts vLLM computed each token with, for a learner that replays the routing.

vLLM returns the record by itself only from its second model runner, which needs Triton and so a
GPU. On a CPU the routers are listened to here, through the callback that vLLM has for the purpose;
what it reads of the runner is which row of a forward pass is which token of which request.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from actors.generation.sampler import RecordedExperts
from common.arrays import ExpertArray
from common.errors import ModelDirectoryError


class RoutingRecorder(Protocol):
    """Where a sampler gets the record of a finished request from."""

    def take(self, engine_id: str, completion: Any) -> RecordedExperts | None:
        """The record of one request, forgotten here; None where there is none."""
        ...

    def forget(self, engine_id: str) -> None:
        """Drop what was recorded for a request that nobody waits for."""
        ...


class NoRecorder:
    """Nothing is asked for."""

    def take(self, engine_id: str, completion: Any) -> RecordedExperts | None:
        """None."""
        return None

    def forget(self, engine_id: str) -> None:
        """Nothing to drop."""


class VllmRecorder:
    """vLLM's own record, which comes with the completion and begins with the prompt."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts

    def take(self, engine_id: str, completion: Any) -> RecordedExperts | None:
        """What the output brought."""
        experts = completion.routed_experts
        if experts is None or not len(experts):
            return None
        return RecordedExperts(experts=experts, start=0, num_experts=self._num_experts)

    def forget(self, engine_id: str) -> None:
        """vLLM keeps it itself."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """What one forward pass computed of a request."""

    start: int
    experts: ExpertArray
    """[N, layers, top_k]."""


class ListeningRecorder:
    """Listens to the routers of a model that this process runs, one forward pass at a time.

    Holds ``layers x top_k`` numbers for each token of the requests that run. Prompt tokens whose
    blocks were cached are not computed and have no record.
    """

    def __init__(self, model: torch.nn.Module, runner: Any) -> None:
        config = runner.vllm_config.model_config
        self._num_layers: int = config.get_total_num_hidden_layers()
        self._num_experts: int = config.get_num_experts()
        self._runner = runner
        self._by_layer: dict[int, torch.Tensor] = {}
        self._rows: dict[str, list[_Rows]] = {}
        for module in model.modules():
            runner_of_experts: Any = module
            router = getattr(runner_of_experts, "router", None)
            if router is not None and hasattr(router, "set_capture_fn"):
                keep = partial(self._by_layer.__setitem__, runner_of_experts.layer_id)
                router.set_capture_fn(keep)
        model.register_forward_hook(self._after_forward, with_kwargs=True)

    def take(self, engine_id: str, completion: Any) -> RecordedExperts | None:
        """All rows up to the last token that was computed, without a gap."""
        rows = self._rows.pop(engine_id, [])
        if not rows:
            return None
        end = max(part.start + len(part.experts) for part in rows)
        table = np.zeros((end, *rows[0].experts.shape[1:]), rows[0].experts.dtype)
        is_known = np.zeros(end, np.bool_)
        for part in rows:  # a preempted request is computed again: what came last was used
            table[part.start : part.start + len(part.experts)] = part.experts
            is_known[part.start : part.start + len(part.experts)] = True
        start = 0 if is_known.all() else end - int(np.argmin(is_known[::-1]))
        return RecordedExperts(experts=table[start:], start=start, num_experts=self._num_experts)

    def forget(self, engine_id: str) -> None:
        """Drop its rows."""
        self._rows.pop(engine_id, None)

    def _after_forward(self, _model: Any, _args: Any, inputs: dict[str, Any], _out: Any) -> None:
        """Sort the rows of this pass by request; passes that warm the engine up have none."""
        by_layer, requests = dict(self._by_layer), self._runner.input_batch.req_ids
        self._by_layer.clear()
        if not by_layer or not requests:
            return
        shape = next(iter(by_layer.values())).shape
        dtype = np.uint8 if self._num_experts <= 256 else np.uint16
        table = np.zeros((shape[0], self._num_layers, shape[1]), dtype)
        for layer, experts in by_layer.items():
            table[:, layer] = experts.numpy()
        borders = self._runner.query_start_loc.np[: len(requests) + 1].tolist()
        positions = inputs["positions"]
        for request, start, end in zip(requests, borders, borders[1:], strict=False):
            if end > start:
                rows = _Rows(int(positions[start]), table[start:end].copy())
                self._rows.setdefault(request, []).append(rows)


def routing_recorder(engine: Any, model: torch.nn.Module) -> RoutingRecorder:
    """What records for ``engine``, which was started to; raises :class:`ModelDirectoryError`."""
    config = engine.vllm_config.model_config
    if not config.is_moe:
        raise ModelDirectoryError(
            f"learner.router_replay needs a mixture of experts, got {config.model} (set "
            "learner.router_replay = false)"
        )
    if torch.cuda.is_available():
        return VllmRecorder(config.get_num_experts())
    executor = engine.engine_core.engine_core.model_executor
    return ListeningRecorder(model, executor.driver_worker.worker.model_runner)
