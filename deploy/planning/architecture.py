"""What a Hugging Face ``config.json`` says of a model's size. Pure but for reading the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ModelDirectoryError

DENSE = ("llama", "mistral", "qwen2", "qwen3")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
_QKV_BIAS = ("qwen2", "qwen2_moe")
_HEAD_NORMS = ("qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder of ``num_layers`` equal layers, dense or with experts. Counts are of parameters."""

    model_type: str
    num_layers: int
    hidden: int
    """Width of the residual stream."""
    query_width: int
    """Heads x head size."""
    key_width: int
    """Key-value heads x head size; keys and values have it each."""
    vocabulary: int
    is_tied: bool
    """The head is the embedding."""
    attention_parameters: int
    """Projections, biases and norms of one layer."""
    always_mlp_parameters: int
    """The MLP, or router and shared expert, of one layer: what every token uses."""
    expert_parameters: int
    """One routed expert; 0 in a dense model."""
    num_experts: int
    """Routed experts of a layer; 0 in a dense model."""
    experts_per_token: int
    mlp_width: int
    """Width between the matrices of the MLP for one token, over all its experts."""

    @property
    def layer_parameters(self) -> int:
        """One whole layer."""
        routed = self.num_experts * self.expert_parameters
        return self.attention_parameters + self.always_mlp_parameters + routed

    @property
    def active_layer_parameters(self) -> int:
        """What one token uses of a layer."""
        routed = self.experts_per_token * self.expert_parameters
        return self.attention_parameters + self.always_mlp_parameters + routed

    @property
    def head_parameters(self) -> int:
        """Vocabulary x hidden."""
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Embedding, head and last norm: what FSDP gathers once a step."""
        return (1 if self.is_tied else 2) * self.head_parameters + self.hidden

    @property
    def num_parameters(self) -> int:
        """All of them, tied ones once."""
        return self.num_layers * self.layer_parameters + self.root_parameters

    @property
    def active_body(self) -> int:
        """What one token multiplies with, without embedding and head."""
        return self.num_layers * self.active_layer_parameters

    @property
    def kv_elements(self) -> int:
        """Numbers in the KV cache for each token."""
        return 2 * self.num_layers * self.key_width

    def touched_parameters(self, num_tokens: float) -> float:
        """Parameters that a decode step reads for ``num_tokens`` sequences.

        Of E experts, k a token, c tokens touch E (1 - (1 - k/E)^c) when routing is even. Of the
        embedding a step reads single rows.
        """
        body = self.num_layers * (self.attention_parameters + self.always_mlp_parameters)
        if self.num_experts:
            untouched = (1 - self.experts_per_token / self.num_experts) ** num_tokens
            experts = self.num_experts * (1 - untouched)
            body += self.num_layers * round(experts * self.expert_parameters)
        return body + self.head_parameters


def read_architecture(model: Path) -> Architecture:
    """The architecture of the model directory; raises :class:`ModelDirectoryError`."""
    file = model / "config.json"
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelDirectoryError(
            f"model.path: {file} is not there (a plan needs the model's config.json, no weights)"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(
            f"model.path: {file} is not valid JSON: {error} (copy it again)"
        ) from None
    if not isinstance(values, dict):
        raise ModelDirectoryError(f"model.path: {file} is no JSON object (copy it again)")
    return architecture_of(values, str(file))


def architecture_of(values: Mapping[str, Any], name: str = "config.json") -> Architecture:
    """The architecture that ``values``, a parsed ``config.json``, describes.

    Raises :class:`ModelDirectoryError` for a kind whose parameters it cannot count exactly.
    """
    kind = values.get("model_type")
    if kind not in (*DENSE, *MIXTURES):
        raise ModelDirectoryError(
            f"model.path: {name}: model_type must be one of {', '.join((*DENSE, *MIXTURES))} to be "
            f"planned, got {kind!r} (plan with a model of the same size of one of these)"
        )
    heads = _count(values, "num_attention_heads", name)
    hidden = _count(values, "hidden_size", name)
    size = _count(values, "head_dim", name, hidden // heads)
    key_width = _count(values, "num_key_value_heads", name, heads) * size
    shared, expert, num_experts, per_token, width = _mlp(kind, values, hidden, name)
    return Architecture(
        model_type=str(kind),
        num_layers=_count(values, "num_hidden_layers", name),
        hidden=hidden,
        query_width=heads * size,
        key_width=key_width,
        vocabulary=_count(values, "vocab_size", name),
        is_tied=bool(values.get("tie_word_embeddings", False)),
        attention_parameters=_attention(str(kind), values, hidden, heads * size, key_width, size),
        always_mlp_parameters=shared,
        expert_parameters=expert,
        num_experts=num_experts,
        experts_per_token=per_token,
        mlp_width=width,
    )


def _attention(
    kind: str, values: Mapping[str, Any], hidden: int, query: int, key: int, head_size: int
) -> int:
    """Four projections, the layer's two norms, and what the kind adds."""
    total = hidden * (query + 2 * key) + query * hidden + 2 * hidden
    if kind in _QKV_BIAS:
        total += query + 2 * key
    elif values.get("attention_bias", False):
        total += query + 2 * key + hidden
    if kind in _HEAD_NORMS:
        total += 2 * head_size
    return total


def _mlp(
    kind: str, values: Mapping[str, Any], hidden: int, name: str
) -> tuple[int, int, int, int, int]:
    """(parameters every token uses, of one expert, experts, experts a token, width a token)."""
    if kind in DENSE:
        width = _count(values, "intermediate_size", name)
        bias = 2 * width + hidden if values.get("mlp_bias", False) else 0
        return 3 * hidden * width + bias, 0, 0, 0, width
    if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
        raise ModelDirectoryError(
            f"model.path: {name}: layers must be all alike to be planned, got mlp_only_layers or "
            "decoder_sparse_step (plan with a model of the same size whose layers all have experts)"
        )
    names = ("num_local_experts", "intermediate_size")
    if kind != "mixtral":
        names = ("num_experts", "moe_intermediate_size")
    num_experts, width = (_count(values, key, name) for key in names)
    per_token = _count(values, "num_experts_per_tok", name)
    shared = _count(values, "shared_expert_intermediate_size", name) if kind == "qwen2_moe" else 0
    always = num_experts * hidden + (3 * hidden * shared + hidden if shared else 0)
    return always, 3 * hidden * width, num_experts, per_token, per_token * width + shared


def _count(values: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    found = values.get(key)
    found = default if found is None else found
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ModelDirectoryError(
            f"model.path: {name}: {key} must be a whole number >= 1, got {found!r} (copy the "
            "model's config.json again)"
        )
    return found
