"""Tiny random models and the learner's side of a weight update, for sampler tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.torch.digest import describe_tensors
from common.types import WeightVersion
from common.weight_layout import WeightManifest

# Not a multiple of vLLM's vocabulary padding, so that padded rows are exercised as well.
VOCAB_SIZE = 61


def make_tiny_qwen2(model_dir: Path, *, tied: bool, num_kv_heads: int = 1, seed: int = 0) -> Any:
    """Save a two-layer float32 Qwen2 with random weights and return it as the learner's copy."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=num_kv_heads,
            head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    model = model.float().eval().requires_grad_(False)
    train_step(model, seed)
    model.save_pretrained(model_dir)
    return model


def make_tiny_mixture(model_dir: Path, kind: str, *, seed: int = 0) -> Any:
    """Save a two-layer float32 mixture of eight experts and return it as the learner's copy."""
    from transformers import AutoConfig, AutoModelForCausalLM

    experts = {
        "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 32, "head_dim": 32},
        "mixtral": {"num_local_experts": 8},
        "olmoe": {"num_experts": 8},
    }
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **experts[kind],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    train_step(model, seed)
    model.save_pretrained(model_dir)
    return model


@torch.no_grad()
def train_step(model: Any, seed: int) -> None:
    """Move every parameter, biases and norms included, as an optimizer step would.

    Consecutive seeds take the last move back first: after many steps the distribution is still
    broad, so that wrong weights show in the log-probabilities.
    """
    back, forth = (torch.Generator().manual_seed(s) for s in (seed, seed + 1))
    for parameter in model.parameters():
        parameter.sub_(torch.randn(parameter.shape, generator=back), alpha=0.03)
        parameter.add_(torch.randn(parameter.shape, generator=forth), alpha=0.03)


def publish(
    model: Any, policy_step: int
) -> tuple[dict[str, torch.Tensor], WeightManifest, WeightVersion]:
    """Staged tensors, manifest and version of the learner's weights as they are now.

    Under the names of files, in which the experts of a mixture are apart.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    staged = revert_weight_conversion(model, weights)
    version = WeightVersion(incarnation=0, policy_step=policy_step)
    return staged, WeightManifest(version=version, tensors=describe_tensors(staged)), version


@torch.no_grad()
def learner_logprobs(
    model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> npt.NDArray[np.float32]:
    """Teacher-forced log-probabilities (nats) of ``completion``, float32 [L], one plain forward."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
    targets = ids[0, len(prompt) :, None]
    logprobs: npt.NDArray[np.float32] = logits.log_softmax(-1).gather(-1, targets).view(-1).numpy()
    return logprobs


class CutOff(Mapping[str, torch.Tensor]):
    """Staged tensors whose reader fails after ``whole`` tensors."""

    def __init__(self, staged: Mapping[str, torch.Tensor], whole: int) -> None:
        self._staged = staged
        self._num_left = whole

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._num_left == 0:
            raise OSError("staging area went away")
        self._num_left -= 1
        return self._staged[name]

    def __contains__(self, name: object) -> bool:
        return name in self._staged

    def __iter__(self) -> Iterator[str]:
        return iter(self._staged)

    def __len__(self) -> int:
        return len(self._staged)
