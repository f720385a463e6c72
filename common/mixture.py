"""What ``config.json`` of a model directory says of its experts, read without the heavy stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Mixture:
    """How a mixture of experts routes a token."""

    num_layers: int
    num_experts: int
    top_k: int

    @property
    def record_bytes(self) -> int:
        """Of one token: an expert takes a byte, above 256 experts two."""
        return self.num_layers * self.top_k * (1 if self.num_experts <= 256 else 2)


def read_mixture(model_dir: str) -> Mixture | None:
    """None for a dense model, and where there is no ``config.json`` that could be read."""
    try:
        config: Any = msgspec.json.decode((Path(model_dir) / "config.json").read_bytes())
        text = config.get("text_config", config)
        num_experts = next((int(text[key]) for key in _NUM_EXPERTS if text.get(key)), 0)
        top_k = int(text.get("num_experts_per_tok") or 0)
        num_layers = int(text["num_hidden_layers"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, msgspec.MsgspecError):
        return None
    return Mixture(num_layers, num_experts, top_k) if num_experts > 1 and top_k else None
