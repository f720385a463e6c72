"""A pretrained model that answers packed rows: scores of a classifier's head, or log-probs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from common.errors import ModelDirectoryError, WeightLoadError, WeightTransferError
from common.torch.attention import attention_implementation, packed_attention_mask
from common.torch.logprob_head import token_logprobs
from common.torch.pretrained import load_pretrained, read_model_config, refuse_long_windows
from common.torch.weight_files import (
    check_digests,
    read_manifest,
    read_tensors,
    version_directory,
)
from common.types import WeightVersion

_CLASSIFIERS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}


class ScoringModel:
    """One model on one device, in evaluation mode, without gradients."""

    def __init__(self, model: Any, device: torch.device, attention: str) -> None:
        self._model = model.eval().requires_grad_(False).to(device)
        self._attention = attention
        self.device = device
        self.version: WeightVersion | None = None

    @classmethod
    def load(
        cls, directory: Path, head: str, *, device: str, dtype: str, max_tokens: int
    ) -> ScoringModel:
        """Load ``directory`` for the ``head`` ``score`` or ``logprobs``.

        ``device`` and ``dtype`` may be ``auto``. Raises :class:`ModelDirectoryError` for what is no
        such model, and for one whose weights are not all there.
        """
        place = resolve_device(device)
        key = "verifier.models.path"
        config = read_model_config(directory, key=key)
        refuse_long_windows(config, directory, max_tokens, key="verifier.models.max_tokens")
        attention = attention_implementation(place)
        model = load_pretrained(
            AutoModelForCausalLM if head == "logprobs" else _classifier_class(config, directory),
            directory,
            config,
            key=key,
            kind="causal language model" if head == "logprobs" else "causal classifier",
            dtype=resolve_dtype(dtype, place),
            attn_implementation=attention,
        )
        if head != "logprobs" and not isinstance(getattr(model, "score", None), nn.Linear):
            raise ModelDirectoryError(
                f"{directory}: {type(model).__name__} has no linear head named score (use a "
                "classifier on a causal backbone, such as Qwen2ForSequenceClassification)"
            )
        return cls(model, place, attention)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters on the device."""
        return sum(weight.nbytes for weight in self._model.parameters())

    @torch.inference_mode()
    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor, branch_ids: Tensor
    ) -> Tensor:
        """Final hidden states [R * L, H] of packed rows [R, L]; no document sees another."""
        mask = packed_attention_mask(document_ids, branch_ids, self._attention)
        hidden: Tensor = self._model.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return hidden.flatten(0, 1)

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Outputs of the classifier's head, float32 [N, labels], for hidden states [N, H]."""
        outputs: Tensor = self._model.score(hidden)
        return outputs.float()

    @torch.inference_mode()
    def logprobs(self, hidden: Tensor, target_ids: Tensor, temperature: float) -> Tensor:
        """Log-probability of each target, float32 [N] nats, for hidden states [N, H]."""
        head = self._model.get_output_embeddings()
        found, _ = token_logprobs(
            hidden, head.weight, target_ids, temperature=temperature, head_bias=head.bias
        )
        return found

    @torch.no_grad()
    def use_version(self, root: Path, version: WeightVersion) -> None:
        """Replace all weights by the published ``version`` under ``root``, once it is proven.

        Fail-closed: raises :class:`WeightTransferError`, and keeps the old weights whole, unless
        every tensor of the model is there with the digest of the manifest.
        """
        if self.version == version:
            return
        directory = version_directory(root, version)
        manifest = read_manifest(directory)
        if manifest.version != version:
            raise WeightTransferError(f"{directory} says that it holds {manifest.version}")
        staged = {spec.name: tensor for spec, tensor in read_tensors(directory, manifest)}
        check_digests(staged, manifest)
        own = dict(self._model.named_parameters())
        differing = sorted(
            name
            for name in own.keys() | staged.keys()
            if name not in own or name not in staged or own[name].shape != staged[name].shape
        )
        if differing:
            raise WeightTransferError(
                f"{directory} does not fit the model: {len(differing)} tensors differ, first "
                f"{differing[0]}"
            )
        self.version = None
        for name, weight in own.items():
            weight.copy_(staged[name])
        self.version = version


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one.

    Raises :class:`WeightLoadError` for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WeightLoadError(
            f"verifier.models.device {name!r} is not there, this machine has "
            f"{torch.cuda.device_count()} GPUs (use auto)"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The element type called ``name``; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _classifier_class(config: Any, directory: Path) -> Any:
    """The class that the model directory itself names."""
    for architecture in config.architectures or ():
        for ending, auto_class in _CLASSIFIERS.items():
            if architecture.endswith(ending):
                return auto_class
    raise ModelDirectoryError(
        f"{directory}/config.json: architectures must name a sequence or token classifier, got "
        f"{config.architectures} (save the model as a classifier, such as "
        "Qwen2ForSequenceClassification)"
    )
