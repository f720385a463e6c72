"""The critic of PPO: a language model with a head of one number, sharded like the policy.

Its value of a token is the guess, before that token, of the rewards still to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from common.config import LearnerConfig
from common.errors import ModelDirectoryError
from common.torch.pretrained import load_pretrained, read_model_config, refuse_long_windows
from learner.batches.batch import Microbatch
from learner.models.attention import choose_attention, packed_mask
from learner.models.context_parallel import attention_over_ranks, own_places, refuse_other_layers
from learner.models.layer_execution import prepare_layers
from learner.models.mesh import ContextGroup, Mesh
from learner.models.sharding import decoder_layers, free_gathered, shard_layers

_REWARD_MODEL = "ForSequenceClassification"


class ValueModel(nn.Module):
    """A backbone whose forward returns the value of the completion tokens."""

    def __init__(
        self, backbone: PreTrainedModel, score: nn.Linear, context: ContextGroup | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = score
        self._context = context

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        borders: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Value before each token, float32 [T], in units of reward; see ``Microbatch``."""
        attention = str(self.backbone.config._attn_implementation)
        places = own_places(self._context, input_ids, position_ids, borders, positions)
        hidden = self.backbone(
            input_ids=places.input_ids,
            position_ids=places.position_ids,
            attention_mask=packed_mask(
                attention, places.borders, len(input_ids), places.row_length
            ),
            use_cache=False,
        ).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, places.positions)
        # float32: bfloat16 would round a value of 1 to steps of 1/128
        values = nn.functional.linear(chosen.float(), self.score.weight.float())
        (whole,) = places.whole(values.squeeze(-1))
        return whole

    def trained_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What its optimizer changes and a checkpoint holds, in model order."""
        yield from self.named_parameters()


def load_critic(
    path: str, policy_directory: Path, mesh: Mesh, *, max_length: int, settings: LearnerConfig
) -> ValueModel:
    """Load and shard a value model: float32 weights, on GPU computed in bfloat16.

    ``path`` names a reward model, which keeps its head, or a language model, which gets a head of
    zeros: its first values are all 0. An empty ``path`` takes ``policy_directory``. Raises
    :class:`ModelDirectoryError` for a directory that is neither.
    """
    directory, key = (
        (Path(path), "learner.critic.path") if path else (policy_directory, "model.path")
    )
    config = read_model_config(directory, key=key)
    refuse_long_windows(config, directory, max_length, key="model.max_length")
    refuse_other_layers(config, directory, mesh.context)
    is_reward_model = any(name.endswith(_REWARD_MODEL) for name in config.architectures or ())
    model = load_pretrained(
        AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM,
        directory,
        config,
        key=key,
        kind="reward model" if is_reward_model else "causal language model",
        attn_implementation=attention_over_ranks(
            choose_attention(settings.attention, mesh.device), mesh.context
        ),
    )
    score = _reward_head(model, directory) if is_reward_model else _zero_head(model)
    critic = ValueModel(model.base_model, score, mesh.context).eval().to(mesh.device)
    layers = decoder_layers(critic.backbone)
    prepare_layers(layers, settings)
    shard_layers(critic, layers, mesh, offload=settings.offload_optimizer)
    return critic


def run_critic(critic: ValueModel, microbatch: Microbatch) -> Tensor:
    """Values [T] of the completion tokens of ``microbatch``."""
    values: Tensor = critic(
        microbatch.input_ids,
        microbatch.position_ids,
        microbatch.borders,
        microbatch.positions,
    )
    return values


@torch.no_grad()
def evaluate_critic(critic: ValueModel, microbatch: Microbatch) -> Tensor:
    """Values [T] without a gradient; a collective over all ranks."""
    values = run_critic(critic, microbatch)
    free_gathered(critic)
    return values


def _reward_head(model: PreTrainedModel, directory: Path) -> nn.Linear:
    """The head of a reward model; raises where it gives more than one number."""
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        raise ModelDirectoryError(
            f"{directory}: a critic begins as a classifier with a linear head named score and one "
            "label (use a reward model such as Qwen2ForSequenceClassification with num_labels = 1, "
            "or the policy's own directory)"
        )
    return score


def _zero_head(model: PreTrainedModel) -> nn.Linear:
    width = int(model.config.get_text_config().hidden_size)
    head = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head
