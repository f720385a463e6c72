"""The policy: any Hugging Face causal language model, sharded with FSDP2, reduced to log-probs.

The wrapper owns the head, so that FSDP's hooks see one forward that ends in two numbers a token:
the logits of a batch never exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from common.config import LearnerConfig
from common.errors import ModelDirectoryError
from common.torch.logprob_head import token_logprobs
from common.torch.pretrained import load_pretrained, read_model_config, refuse_long_windows
from learner.batches.batch import Microbatch
from learner.batches.layout import RoutingShape
from learner.models.attention import FLEX, choose_attention, packed_mask, plain_name
from learner.models.context_parallel import attention_over_ranks, own_places, refuse_other_layers
from learner.models.layer_execution import prepare_layers
from learner.models.lora import adapted_layers, adapters_off, add_adapters, is_adapter
from learner.models.mesh import ContextGroup, Mesh
from learner.models.router_replay import record_arguments, replay_routing
from learner.models.sharding import decoder_layers, free_gathered, shard_layers


class PolicyModel(nn.Module):
    """A causal language model whose forward returns log-probabilities of the completion tokens."""

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        *,
        float32_head: bool = False,
        context: ContextGroup | None = None,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.has_adapters = bool(adapted_layers(causal_lm))
        self._float32_head = float32_head
        self._context = context
        self._fused = _fused_names(causal_lm)
        self.routing: RoutingShape | None = None
        """Of a mixture whose routers follow records; None where they choose by themselves."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        borders: Tensor,
        positions: Tensor,
        target_ids: Tensor,
        temperature: float,
        experts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and entropy, float32 [T] nats; see ``Microbatch``."""
        backbone = self.causal_lm.base_model
        attention = str(self.causal_lm.config._attn_implementation)
        places = own_places(self._context, input_ids, position_ids, borders, positions)
        hidden = backbone(
            input_ids=places.input_ids,
            position_ids=places.position_ids,
            attention_mask=packed_mask(
                attention, places.borders, len(input_ids), places.row_length
            ),
            use_cache=False,
            **record_arguments(places.own_experts(experts)),
        ).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, places.positions)
        head = cast("nn.Linear", self.causal_lm.get_output_embeddings())
        logprobs, entropy = token_logprobs(
            chosen,
            head.weight,
            places.own(target_ids),
            temperature=temperature,
            head_bias=head.bias,
            float32=self._float32_head,
        )
        logprobs, entropy = places.whole(logprobs, entropy)
        return logprobs, entropy

    @property
    def vocab_size(self) -> int:
        """Ids below this exist."""
        return int(self.causal_lm.config.get_text_config().vocab_size)

    @property
    def attention_ratio(self) -> float:
        """Layers times attention width over parameters: see ``common.balance.sequence_cost``."""
        config = self.causal_lm.config.get_text_config()
        heads = int(config.num_attention_heads)
        width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        num_parameters = sum(int(weight.numel()) for weight in self.causal_lm.parameters())
        return int(config.num_hidden_layers) * width / num_parameters

    @property
    def hidden_attention_ratio(self) -> float:
        """What a place of a row costs more for each other place of it, if computed to be hidden.

        Flex attention skips those places, others do not: see ``common.packing.pack_rows``.
        """
        skips = plain_name(str(self.causal_lm.config._attn_implementation)) == FLEX
        return 0.0 if skips else 2 * self.attention_ratio

    def trained_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimizer changes and a checkpoint holds, tied weights once, in model order.

        All parameters, or with adapters only those.
        """
        for name, weight in self.causal_lm.named_parameters():
            if is_adapter(name) or not self.has_adapters:
                yield name, weight

    def frozen_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The base model under adapters; nothing where there are none."""
        for name, weight in self.causal_lm.named_parameters():
            if self.has_adapters and not is_adapter(name):
                yield name, weight

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole policy under the model's own names, tied weights once, in model order.

        What reference policies hold. A collective; sharded as the parameters are. Adapters are
        merged, one weight at a time; the others are the parameters themselves.
        """
        adapted = {f"{name}.weight": item for name, item in adapted_layers(self.causal_lm).items()}
        for name, weight in self.causal_lm.named_parameters():
            if not is_adapter(name):
                yield name, adapted[name].merged_weight() if name in adapted else weight

    def published_weights(self) -> Iterator[tuple[str, Tensor]]:
        """:meth:`merged_weights` under the names of Hugging Face files, for samplers and exports.

        A collective. What transformers fused on loading, the experts of a mixture, is whole on
        every rank, cut as in the files; the others are sharded as the parameters are.
        """
        for name, weight in self.merged_weights():
            if name in self._fused:
                value = weight.detach()
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                yield from revert_weight_conversion(self.causal_lm, {name: whole}).items()
            else:
                yield name, weight


class AdaptersOff:
    """A policy with its adapters switched off: the initial policy, without a second copy of it."""

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy


def load_policy(
    directory: Path,
    mesh: Mesh,
    *,
    max_length: int,
    settings: LearnerConfig | None = None,
    seed: int = 0,
) -> PolicyModel:
    """Load and shard the model in ``directory``: float32 weights, on GPU computed in bfloat16.

    ``settings`` say how it is computed and what of it is trained, ``seed`` is that of the first
    adapters. Raises :class:`ModelDirectoryError` for a directory that is no such model, and
    :class:`ConfigError` for what cannot be computed on this machine.
    """
    config = read_model_config(directory, key="model.path")
    _refuse_other_logits(config, directory)
    refuse_long_windows(config, directory, max_length, key="model.max_length")
    refuse_other_layers(config, directory, mesh.context)
    settings = settings or LearnerConfig()
    causal_lm = load_pretrained(
        AutoModelForCausalLM,
        directory,
        config,
        key="model.path",
        kind="causal language model",
        attn_implementation=attention_over_ranks(
            choose_attention(settings.attention, mesh.device), mesh.context
        ),
    )
    if settings.lora.rank:
        add_adapters(causal_lm, settings.lora, seed=seed)
    # eval: dropout would make policy and behavior log-probabilities differ at lag 0
    policy = PolicyModel(
        causal_lm, float32_head=settings.head_dtype == "float32", context=mesh.context
    )
    policy = policy.eval().to(mesh.device)
    layers = decoder_layers(causal_lm)
    if settings.router_replay:
        policy.routing = replay_routing(layers, directory)
    prepare_layers(layers, settings)
    shard_layers(policy, layers, mesh, offload=settings.offload_optimizer)
    return policy


def run_policy(
    policy: PolicyModel, microbatch: Microbatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [T] of the completion tokens of ``microbatch``."""
    logprobs, entropy = policy(
        microbatch.input_ids,
        microbatch.position_ids,
        microbatch.borders,
        microbatch.positions,
        microbatch.target_ids,
        temperature,
        microbatch.experts if policy.routing else None,
    )
    return logprobs, entropy


@torch.no_grad()
def evaluate_policy(
    policy: PolicyModel | AdaptersOff, microbatch: Microbatch, temperature: float
) -> Tensor:
    """Log-probabilities [T] without a gradient; a collective over all ranks."""
    if isinstance(policy, AdaptersOff):
        with adapters_off(policy.policy):
            # like a reference with a model of its own, it routes as it would itself
            free = replace(microbatch, experts=None)
            return evaluate_policy(policy.policy, free, temperature)
    logprobs, _ = run_policy(policy, microbatch, temperature)
    free_gathered(policy)
    return logprobs


def _fused_names(causal_lm: PreTrainedModel) -> frozenset[str]:
    """Parameters that are several tensors, or have another name, in Hugging Face files."""
    weights = {name: weight.detach() for name, weight in causal_lm.named_parameters()}
    return frozenset(
        name
        for name, weight in weights.items()
        if not is_adapter(name)
        and list(revert_weight_conversion(causal_lm, {name: weight.to("meta")})) != [name]
    )


def _refuse_other_logits(config: PretrainedConfig, directory: Path) -> None:
    """Models whose logits are not what the log-probability head computes."""
    text = config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, key, None) not in (None, 1, 1.0):
            raise ModelDirectoryError(
                f"{directory}: models with {key} are not supported (use a model whose logits are "
                "a plain linear map, such as Qwen2, Qwen3 or Llama)"
            )
