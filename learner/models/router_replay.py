"""Router replay: a token is trained through the experts that computed it when it was sampled.

In a mixture of experts two engines that agree to the last bits may still send a token to different
experts, and then disagree by far more. Rollout routing replay (Ma et al., arXiv 2510.11370, section
3) takes the sampler's choice of experts over; the weights of the chosen experts are computed anew
from the learner's own router, softmax over all experts and then over the chosen ones where the
model does so, so that the router learns. Where nothing was recorded, the router chooses. GSPO
(Zheng et al., arXiv 2507.18071, section 5.3) replays the old policy's routing for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import ModelDirectoryError
from learner.batches.layout import RoutingShape

_ARGUMENT = "replayed_experts"
"""Under this name the record travels to the decoder layers, and so to their recomputation."""


class _Record:
    """What the router of one layer is told while that layer is computed."""

    experts: Tensor | None = None
    """[rows * length, top_k]; -1 leaves a place to the router."""


def replay_routing(layers: Sequence[nn.Module], directory: Path) -> RoutingShape:
    """Make the routers of ``layers`` follow a record where one is given, in place.

    Forward methods are wrapped before anything else wraps them: a layer that is computed again is
    called with the same record again. Raises :class:`ModelDirectoryError` for a model without
    routers that this can be done with.
    """
    shapes = set()
    for number, layer in enumerate(layers):
        record = _Record()
        for router in _routers(layer):
            router.register_forward_hook(partial(_follow, record))
            shapes.add((int(router.top_k), int(router.num_experts)))
        layer.forward = partial(_with_record, layer.forward, record, number)
    if len(shapes) != 1:
        raise ModelDirectoryError(
            "learner.router_replay needs a mixture of experts whose layers are alike, routed by "
            f"{', '.join(sorted(_WEIGHTS))}, got {directory} (set learner.router_replay = false)"
        )
    ((top_k, num_experts),) = shapes
    return RoutingShape(len(layers), top_k, num_experts)


def record_arguments(experts: Tensor | None) -> dict[str, Tensor]:
    """What the model is to be called with so that its layers find ``experts``."""
    return {} if experts is None else {_ARGUMENT: experts}


def _with_record(
    forward: Callable[..., Any], record: _Record, number: int, *args: Any, **kwargs: Any
) -> Any:
    experts = kwargs.pop(_ARGUMENT, None)
    record.experts = None if experts is None else experts[:, number]
    try:
        return forward(*args, **kwargs)
    finally:
        record.experts = None


def _follow(
    record: _Record, router: nn.Module, _args: object, chosen: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as they are, weights and numbers of the experts by the record."""
    if record.experts is None:
        return chosen
    logits, _, own = chosen
    recorded = record.experts.to(own.dtype)
    experts = recorded.where(recorded >= 0, own)
    return logits, _WEIGHTS[type(router).__name__](router, logits, experts), experts


def _softmax_weights(router: Any, logits: Tensor, experts: Tensor) -> Tensor:
    """Weights [T, k] of a router whose scores are a softmax over all experts."""
    weights = logits.float().softmax(-1).gather(-1, experts)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(logits.dtype)


def _sigmoid_weights(router: Any, logits: Tensor, experts: Tensor) -> Tensor:
    """Weights [T, k] of DeepSeek-V3 (arXiv 2412.19437, eq. 12 to 16), whose bias only chooses."""
    weights = logits.sigmoid().gather(-1, experts)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * float(router.routed_scaling_factor)


_WEIGHTS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "DeepseekV3TopkRouter": _sigmoid_weights,
    "MixtralTopKRouter": _softmax_weights,
    "OlmoeTopKRouter": _softmax_weights,
    "Qwen2MoeTopKRouter": _softmax_weights,
    "Qwen3MoeTopKRouter": _softmax_weights,
}
"""By class of the router in transformers: what it weighs the experts with."""


def _routers(layer: nn.Module) -> list[Any]:
    return [module for module in layer.modules() if type(module).__name__ in _WEIGHTS]
