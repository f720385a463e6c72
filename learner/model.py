"""The policy: any Hugging Face causal language model, sharded with FSDP2, reduced to log-probs.

The wrapper owns the head, so that FSDP's hooks see one forward that ends in two numbers a token:
the logits of a batch never exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from common.config import LearnerConfig
from common.errors import ModelDirectoryError
from common.torch.logprob_head import token_logprobs
from common.torch.pretrained import load_pretrained, read_model_config, refuse_long_windows
from learner.activation_checkpointing import checkpoint_layers
from learner.batch import Microbatch
from learner.mesh import Mesh


class PolicyModel(nn.Module):
    """A causal language model whose forward returns log-probabilities of the completion tokens."""

    def __init__(self, causal_lm: PreTrainedModel, *, float32_head: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._float32_head = float32_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        target_ids: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and entropy, float32 [T] nats; see ``Microbatch``."""
        backbone = self.causal_lm.base_model
        hidden = backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, positions)
        head = cast("nn.Linear", self.causal_lm.get_output_embeddings())
        return token_logprobs(
            chosen,
            head.weight,
            target_ids,
            temperature=temperature,
            head_bias=head.bias,
            float32=self._float32_head,
        )

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

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under their canonical Hugging Face names, tied ones once, in model order."""
        yield from self.causal_lm.named_parameters()


def load_policy(
    directory: Path, mesh: Mesh, *, max_length: int, settings: LearnerConfig | None = None
) -> PolicyModel:
    """Load and shard the model in ``directory``: float32 weights, on GPU computed in bfloat16.

    ``settings`` say how it is computed: type of the head, activation checkpointing.
    Raises :class:`ModelDirectoryError` for a directory that is no such model.
    """
    config = read_model_config(directory, key="model.path")
    _refuse_other_logits(config, directory)
    refuse_long_windows(config, directory, max_length, key="model.max_length")
    causal_lm = load_pretrained(
        AutoModelForCausalLM, directory, config, key="model.path", kind="causal language model"
    )
    # eval: dropout would make policy and behavior log-probabilities differ at lag 0
    settings = settings or LearnerConfig()
    policy = PolicyModel(causal_lm, float32_head=settings.head_dtype == "float32")
    policy = policy.eval().to(mesh.device)
    checkpoint_layers(
        _decoder_layers(causal_lm),
        settings.activation_checkpointing,
        every=settings.activation_checkpoint_every,
    )
    return _sharded(policy, mesh)


def run_policy(
    policy: PolicyModel, microbatch: Microbatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [T] of the completion tokens of ``microbatch``."""
    logprobs, entropy = policy(
        microbatch.input_ids,
        microbatch.position_ids,
        microbatch.attention_mask,
        microbatch.positions,
        microbatch.target_ids,
        temperature,
    )
    return logprobs, entropy


@torch.no_grad()
def evaluate_policy(policy: PolicyModel, microbatch: Microbatch, temperature: float) -> Tensor:
    """Log-probabilities [T] without a gradient; a collective over all ranks."""
    logprobs, _ = run_policy(policy, microbatch, temperature)
    # Without a backward pass nothing frees the gathered root: the next forward would find it stale.
    if isinstance(policy, FSDPModule):
        policy.reshard()
    return logprobs


def _sharded(policy: PolicyModel, mesh: Mesh) -> PolicyModel:
    """Shard by decoder layer, then the rest; one CPU rank is left as it is."""
    if mesh.data_axis is None:
        return policy
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    precision = bfloat16 if mesh.device.type == "cuda" else MixedPrecisionPolicy()
    for layer in _decoder_layers(policy.causal_lm):
        fully_shard(layer, mesh=mesh.data_axis, mp_policy=precision)
    fully_shard(policy, mesh=mesh.data_axis, mp_policy=precision, reshard_after_forward=False)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # gradients are unnormalised sums over all tokens of all ranks, divided once per step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled reductions
    return policy


def _decoder_layers(causal_lm: PreTrainedModel) -> list[nn.Module]:
    """Instances of the classes that the model itself says must not be split."""
    names = set(causal_lm._no_split_modules or ())
    return [module for module in causal_lm.modules() if type(module).__name__ in names]


def _refuse_other_logits(config: PretrainedConfig, directory: Path) -> None:
    """Models whose logits are not what the log-probability head computes."""
    text = config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, key, None) not in (None, 1, 1.0):
            raise ModelDirectoryError(
                f"{directory}: models with {key} are not supported (use a model whose logits are "
                "a plain linear map, such as Qwen2, Qwen3 or Llama)"
            )
