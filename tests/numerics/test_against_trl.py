"""The objectives against TRL's own losses, value and gradient, where both define them.

TRL's trainers compute the loss in a method that needs of its trainer only settings and the model's
log-probabilities: it is called on a stand-in that has both, in float64.
"""

from __future__ import annotations

import importlib
import warnings
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import LossConfig
from learner.objectives.advantages import normalized_advantages
from learner.objectives.aggregation import denominator
from learner.objectives.objective import TokenInputs, policy_objective
from tests.numerics.reference_objectives import Sample
from tests.numerics.test_objectives import COUPLED, random_sample, tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # TRL takes its time to be imported

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def trl() -> Iterator[Any]:
    """TRL's trainers and utilities, without its own vLLM server."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utilities = importlib.import_module("trl.import_utils")  # trl itself loads lazily
        patch.setattr(utilities, "is_vllm_available", lambda **_: False)
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
        from trl.trainer.utils import nanstd

        yield SimpleNamespace(grpo=GRPOTrainer, rloo=RLOOTrainer, nanstd=nanstd)


def _padded(rows: list[list[float]]) -> Tensor:
    """[S, longest], padded with a value that must not matter."""
    longest = max(map(len, rows))
    return torch.tensor([row + [-0.7] * (longest - len(row)) for row in rows], dtype=torch.float64)


def _mask(rows: list[list[float]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


class Accelerator(SimpleNamespace):
    """One process."""

    num_processes = 1
    sync_gradients = True

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def _trainer(policy: Tensor, entropy: Tensor, **settings: Any) -> SimpleNamespace:
    """What TRL's loss asks of its trainer."""
    coefficient = settings.pop("entropy_coefficient", 0.0)
    defaults = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": MAX_TOKENS,
        "use_adaptive_entropy": False,
        "entropy_coef": coefficient,
        "_entropy_bonus_enabled": coefficient != 0.0,
    }
    args = SimpleNamespace(
        delta=settings.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1
    )
    trainer = SimpleNamespace(**(defaults | settings))
    trainer.args, trainer.accelerator = args, Accelerator()
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy, entropy, None)
    return trainer


def _inputs(sample: Sample, proximal: Tensor | None) -> dict[str, Any]:
    mask = _mask(sample.policy)
    return {
        "prompt_ids": torch.zeros(len(sample.policy), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(sample.policy), 1, dtype=torch.int64),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.tensor(sample.advantages, dtype=torch.float64),
        "old_per_token_logps": _padded(sample.behavior) if proximal is None else proximal,
        "sampling_per_token_logps": _padded(sample.behavior),
        "ref_per_token_logps": _padded(sample.reference),
        "num_items_in_batch": mask.sum(),
    }


def _ours(
    settings: LossConfig, sample: Sample, proximal: list[list[float]] | None = None
) -> tuple[float, list[float]]:
    """Loss and its gradient in every log-probability."""
    flat = torch.tensor([x for row in sample.policy for x in row], dtype=torch.float64)
    flat.requires_grad_()
    inputs = tensors(sample, flat)
    if proximal is not None:
        values = torch.tensor([x for row in proximal for x in row], dtype=torch.float64)
        inputs = TokenInputs(
            **{name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
            | {"proximal_logprobs": values}
        )
    lengths = [len(row) for row in sample.policy]
    terms = policy_objective(settings, inputs)
    weight = torch.ones_like(flat)
    if settings.aggregation == "sequence":
        weight = (1.0 / inputs.lengths.double()).repeat_interleave(inputs.lengths)
    divisor = denominator(settings.aggregation, lengths, max_tokens=MAX_TOKENS)
    loss = -(terms.objective * weight).sum() / divisor
    (gradient,) = torch.autograd.grad(loss, flat)
    return loss.item(), gradient.tolist()


def _theirs(trl: Any, sample: Sample, extra: dict[str, Any], **settings: Any) -> Any:
    policy = _padded(sample.policy).requires_grad_()
    trainer = _trainer(policy, _padded(sample.entropy), **settings)
    trainer.get_off_policy_mask = trl.grpo.get_off_policy_mask
    loss = trl.grpo._compute_loss(trainer, None, _inputs(sample, None) | extra)
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.item(), gradient[_mask(sample.policy) == 1].tolist()


def _compare(ours: tuple[float, list[float]], theirs: tuple[float, list[float]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-10, abs=1e-14)
    assert np.abs(theirs[1]).max() > 1e-4


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": (
        {"aggregation": "sequence", "kl_coefficient": 0.04},
        {"loss_type": "grpo", "beta": 0.04},
    ),
    "dapo": ({"clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr-grpo": ({"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    "gspo": (
        {"aggregation": "sequence", "ratio_level": "sequence-mean", "clip_high": 0.1},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 0.1},
    ),
    "cispo": (
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5},
        {"loss_type": "cispo", "epsilon_high": 1.5},
    ),
    "two-sided clip": ({"dual_clip": 1.6}, {"loss_type": "dapo", "delta": 1.6}),
    "divergence mask": (
        {"max_divergence": 0.05},
        {"loss_type": "dapo", "off_policy_mask_threshold": 0.05},
    ),
    "entropy bonus": (
        {"entropy_coefficient": 0.01},
        {"loss_type": "dapo", "entropy_coefficient": 0.01},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_of_the_papers_equal_trls(trl: Any, name: str) -> None:
    ours, theirs = CASES[name]
    for seed in range(4):
        sample = random_sample(seed)
        _compare(_ours(LossConfig(**COUPLED | ours), sample), _theirs(trl, sample, {}, **theirs))


@pytest.mark.parametrize("correction", ["truncate", "mask", "sequence-truncate", "sequence-mask"])
def test_the_decoupled_loss_equals_trls_correction_of_its_vllm(trl: Any, correction: Any) -> None:
    """TRL's old log-probabilities are the learner's at the start of the update: pi_prox."""
    settings = LossConfig(correction=correction, importance_cap=1.6, clip_high=0.28)
    for seed in range(4):
        sample = random_sample(seed)
        random = np.random.default_rng(seed)
        proximal = [
            (np.array(row) + random.uniform(-0.4, 0.4, len(row))).tolist()
            for row in sample.behavior
        ]
        difference = (_padded(proximal) - _padded(sample.behavior)) * _mask(sample.policy)
        if correction.startswith("sequence"):
            difference = difference.sum(-1, keepdim=True)
        ratio = difference.exp()
        weight = ratio.clamp(max=1.6)
        if correction.endswith("mask"):
            weight = ratio.masked_fill(ratio > 1.6, 0.0)
        extra = {"old_per_token_logps": _padded(proximal), "importance_sampling_ratio": weight}
        theirs = _theirs(trl, sample, extra, loss_type="dapo", use_vllm=True, epsilon_high=0.28)
        _compare(_ours(settings, sample, proximal), theirs)


def test_the_ratio_of_whole_answers_is_trls_rloo(trl: Any) -> None:
    settings = LossConfig(**COUPLED, ratio_level="sequence", aggregation="sequence")
    for seed in range(4):
        sample = random_sample(seed, spread=0.1)
        policy = _padded(sample.policy).requires_grad_()
        inputs = _inputs(sample, None)
        inputs["old_logps"] = torch.tensor(
            [sum(row) for row in sample.behavior], dtype=torch.float64
        )
        trainer = _trainer(policy, _padded(sample.entropy))
        loss = trl.rloo._compute_loss(trainer, None, inputs)
        (gradient,) = torch.autograd.grad(loss, policy)
        theirs = loss.item(), gradient[_mask(sample.policy) == 1].tolist()
        _compare(_ours(settings, sample), theirs)


def test_group_advantages_are_those_of_trls_deviation(trl: Any) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        rewards = torch.from_numpy(random.integers(0, 3, 8).astype(np.float64))
        expected = (rewards - rewards.mean()) / (trl.nanstd(rewards) + 1e-4)
        found = normalized_advantages(rewards.numpy(), std="sample", epsilon=1e-4)
        assert found == pytest.approx(expected.numpy(), rel=1e-6)  # theirs divides in float32
