"""The policy: any Hugging Face causal language model, sharded with FSDP2, reduced to log-probs.

The wrapper owns the head, so that FSDP's hooks see one forward that ends in two numbers a token:
the logits of a batch never exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from common.errors import ModelDirectoryError
from common.torch.logprob_head import token_logprobs
from learner.batch import Microbatch
from learner.mesh import Mesh


class PolicyModel(nn.Module):
    """A causal language model whose forward returns log-probabilities of the completion tokens."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

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
            chosen, head.weight, target_ids, temperature=temperature, head_bias=head.bias
        )

    @property
    def vocab_size(self) -> int:
        """Ids below this exist."""
        return int(self.causal_lm.config.get_text_config().vocab_size)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under their canonical Hugging Face names, tied ones once, in model order."""
        yield from self.causal_lm.named_parameters()


def load_policy(directory: Path, mesh: Mesh, *, max_length: int) -> PolicyModel:
    """Load and shard the model in ``directory``: float32 weights, on GPU computed in bfloat16.

    Raises :class:`ModelDirectoryError` for a directory that is no such model.
    """
    config = _read_config(directory)
    _refuse_unsupported(config, directory, max_length)
    disable_progress_bar()
    try:
        causal_lm, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelDirectoryError(
            f"{directory}: the model cannot be loaded: {_first_line(error)} "
            "(model.path must hold config.json and safetensors of a causal language model)"
        ) from None
    if loading["missing_keys"]:  # transformers would train them from random values
        missing = sorted(loading["missing_keys"])
        raise ModelDirectoryError(
            f"{directory}: {len(missing)} weights are missing, first {missing[0]} (copy the model "
            "directory again)"
        )
    # eval: dropout would make policy and behavior log-probabilities differ at lag 0
    policy = PolicyModel(causal_lm).eval().to(mesh.device)
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


def _read_config(directory: Path) -> PretrainedConfig:
    if not (directory / "config.json").is_file():
        raise ModelDirectoryError(
            f"{directory}: no config.json (model.path must name a Hugging Face model directory)"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelDirectoryError(
            f"{directory}/config.json: {_first_line(error)} (use a model type that the installed "
            "transformers knows)"
        ) from None
    return config


def _refuse_unsupported(config: PretrainedConfig, directory: Path, max_length: int) -> None:
    """Models whose logits or attention are not what the packed forward computes."""
    text = config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, key, None) not in (None, 1, 1.0):
            raise ModelDirectoryError(
                f"{directory}: models with {key} are not supported (use a model whose logits are "
                "a plain linear map, such as Qwen2, Qwen3 or Llama)"
            )
    sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) or 0
    if sliding and max_length > window:
        raise ModelDirectoryError(
            f"{directory}: model.max_length = {max_length} is beyond the attention window of "
            f"{window} tokens, which packing does not model (set model.max_length <= {window})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
