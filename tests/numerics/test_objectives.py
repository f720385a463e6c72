"""Every objective on random ragged batches against the papers' loops, in value and gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import LossConfig
from common.learner_presets import PRESETS
from learner.objectives.objective import ObjectiveTerms, TokenInputs, policy_objective
from tests.numerics.reference_objectives import Sample, slope, token_values

COUPLED: dict[str, Any] = {"proximal": "behavior", "correction": "none"}
KL: dict[str, Any] = {"kl_coefficient": 0.04}


def _preset(name: str) -> dict[str, Any]:
    prefix = "learner.loss."
    return {
        key.removeprefix(prefix): value
        for key, value in PRESETS[name].items()
        if key.startswith(prefix)
    }


OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "default with k1 in the loss": KL | {"kl_estimator": "k1"},
    "default with k2 in the loss": KL | {"kl_estimator": "k2"},
    "default with k3 in the loss": KL,
    "default with k1 in the reward": KL | {"kl_in": "reward", "kl_estimator": "k1"},
    "default with k2 in the reward": KL | {"kl_in": "reward", "kl_estimator": "k2"},
    "default with k3 in the reward": KL | {"kl_in": "reward"},
    "grpo by token": COUPLED | KL,
    "grpo by sequence": COUPLED | {"ratio_level": "sequence", "aggregation": "sequence"},
    "dual clip": COUPLED | {"dual_clip": 2.5, "clip_high": 0.28},
    "entropy bonus": COUPLED | {"entropy_coefficient": 0.01},
    "gspo with decoupled sequences": {
        "ratio_level": "sequence-mean",
        "correction": "sequence-truncate",
    },
    "sequence masks": {"correction": "sequence-mask", "importance_floor": 0.5},
    "interpolated proximal": {"proximal": "interpolated"},
    "interpolated proximal by sequence": {
        "proximal": "interpolated",
        "ratio_level": "sequence-mean",
        "correction": "mask",
        "importance_cap": 1.5,
    },
    "divergence mask": {"max_divergence": 0.1},
    **{name: _preset(name) for name in PRESETS},
}


def random_sample(seed: int, num_sequences: int = 7, spread: float = 0.8) -> Sample:
    """Completions of 1 to 9 tokens; ratios from far below to far above every cap and clip."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 10, num_sequences)
    behavior = [-random.exponential(1.0, n) for n in lengths]
    policy = [row + random.uniform(-spread, spread, len(row)) for row in behavior]
    return Sample(
        policy=[row.tolist() for row in policy],
        behavior=[row.tolist() for row in behavior],
        advantages=random.normal(size=num_sequences).tolist(),
        reference=[(row + random.uniform(-1, 1, len(row))).tolist() for row in policy],
        lags=[random.integers(0, 4, n).tolist() for n in lengths],
        entropy=[random.uniform(0, 2, n).tolist() for n in lengths],
    )


def _flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def tensors(sample: Sample, policy: Tensor | None = None) -> TokenInputs:
    """The sample as the learner sees it, float64."""
    lengths = torch.tensor([len(row) for row in sample.policy])
    return TokenInputs(
        policy_logprobs=_flat(sample.policy) if policy is None else policy,
        behavior_logprobs=_flat(sample.behavior),
        advantages=torch.tensor(sample.advantages, dtype=torch.float64).repeat_interleave(lengths),
        lengths=lengths,
        lags=torch.tensor([lag for row in sample.lags for lag in row]),
        reference_logprobs=_flat(sample.reference),
        entropy=_flat(sample.entropy),
    )


def _objective(settings: LossConfig, sample: Sample) -> tuple[ObjectiveTerms, list[float]]:
    """Terms, and the gradient of the weighted sum in every log-probability."""
    policy = _flat(sample.policy).requires_grad_()
    terms = policy_objective(settings, tensors(sample, policy))
    (gradient,) = torch.autograd.grad((terms.objective * _weights(settings, sample)).sum(), policy)
    found: list[float] = gradient.tolist()
    return terms, found


def _weights(settings: LossConfig, sample: Sample) -> Tensor:
    by_sequence = settings.aggregation == "sequence"
    return _flat([[1 / len(row) if by_sequence else 1.0] * len(row) for row in sample.policy])


def _expected_gradient(settings: LossConfig, sample: Sample) -> list[float]:
    """Finite differences of the slow reference; what a stop-gradient sees is held fixed."""
    keys = dataclasses.asdict(settings)
    by_sequence = settings.aggregation == "sequence"
    held = [list(row) for row in sample.policy]

    def total(i: int, t: int, value: float) -> float:
        moved = [list(row) for row in held]
        moved[i][t] = value
        rows = token_values(dataclasses.replace(sample, policy=moved), keys, held)
        return sum(sum(row) / (len(row) if by_sequence else 1) for row in rows)

    return [
        slope(lambda value, i=i, t=t: total(i, t, value), logprob)  # type: ignore[misc] # defaults bind
        for i, row in enumerate(held)
        for t, logprob in enumerate(row)
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients_equal_the_papers_loops(name: str) -> None:
    settings = LossConfig(**OBJECTIVES[name])
    for seed in range(3):
        sample = random_sample(seed)
        terms, gradient = _objective(settings, sample)
        expected = [x for row in token_values(sample, dataclasses.asdict(settings)) for x in row]
        assert terms.objective.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert gradient == pytest.approx(_expected_gradient(settings, sample), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_samples_reach_every_bound_of_the_objective(name: str) -> None:
    """A clip, cap or mask that never acts would make the comparison above say little."""
    settings = LossConfig(**OBJECTIVES[name])
    terms = [_objective(settings, random_sample(seed))[0] for seed in range(3)]
    live_clip = settings.surrogate != "reinforce" and settings.proximal != "policy"
    if live_clip and settings.clip_high < 5:
        assert any(bool(item.clipped.any()) for item in terms)
    if settings.correction != "none" and settings.importance_cap <= 2:
        assert any(bool(item.capped.any()) for item in terms)
    assert not any(bool(item.clipped.all()) for item in terms)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_sequence_notices_what_it_is_packed_with(name: str) -> None:
    settings = LossConfig(**OBJECTIVES[name])
    sample = random_sample(5)
    together, gradient = _objective(settings, sample)
    values, slopes = [], []
    for i in range(len(sample.policy)):
        alone = Sample(**{key: [value[i]] for key, value in vars(sample).items()})
        terms, part = _objective(settings, alone)
        values += terms.objective.tolist()
        slopes += part
    assert together.objective.tolist() == pytest.approx(values, rel=1e-12, abs=1e-12)
    assert gradient == pytest.approx(slopes, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_the_policys_own_samples_every_objective_is_the_plain_policy_gradient(name: str) -> None:
    """Lag 0 on the same machine: ratios are 1 and nothing is clipped, capped or masked.

    What is left beside A grad log pi are the KL and the entropy. At the level of sequences every
    one of the |o| tokens carries the ratio of all of them, hence the factor of ``sequence``.
    """
    settings = LossConfig(**OBJECTIVES[name] | {"kl_coefficient": 0.0, "entropy_coefficient": 0.0})
    sample = random_sample(6)
    sample.behavior = [list(row) for row in sample.policy]
    sample.lags = [[0] * len(row) for row in sample.lags]
    terms, gradient = _objective(settings, sample)
    assert terms.behavior_ratio.tolist() == [1.0] * len(gradient)
    assert not terms.clipped.any()
    assert not terms.capped.any()
    weights = _weights(settings, sample)
    scale = {"token": 1.0, "sequence-mean": 1.0}.get(settings.ratio_level)
    factors = [
        len(row) if scale is None else scale for row in sample.policy for _ in range(len(row))
    ]
    inputs = tensors(sample)
    expected = inputs.advantages * weights * torch.tensor(factors, dtype=torch.float64)
    assert gradient == pytest.approx(expected.tolist(), rel=1e-12)
    if settings.surrogate == "clip":
        assert terms.objective.tolist() == pytest.approx(inputs.advantages.tolist())


def test_grpo_at_its_reference_is_minus_the_mean_advantage_times_the_score() -> None:
    """theta = old = ref: the gradient of the loss is -(1/G) sum_i A_i / |o_i| grad log pi."""
    settings = LossConfig(**_preset("deepseek-math"))
    sample = random_sample(8)
    sample.behavior = [list(row) for row in sample.policy]
    sample.reference = [list(row) for row in sample.policy]
    _, gradient = _objective(settings, sample)
    expected = [a / len(row) for a, row in zip(sample.advantages, sample.policy, strict=True)]
    flat = [value for value, row in zip(expected, sample.policy, strict=True) for _ in row]
    assert gradient == pytest.approx(flat, abs=1e-12)


def test_dr_grpos_gradient_does_not_depend_on_the_length_of_an_answer() -> None:
    settings = LossConfig(**_preset("dr-grpo"))
    sample = Sample(
        policy=[[-1.0], [-1.0] * 9],
        behavior=[[-1.0], [-1.0] * 9],
        advantages=[0.5, 0.5],
        reference=[[-1.0], [-1.0] * 9],
        lags=[[0], [0] * 9],
    )
    _, gradient = _objective(settings, dataclasses.replace(sample, entropy=sample.policy))
    assert gradient == [0.5] * 10


def test_a_recomputed_proximal_policy_makes_the_decoupled_objective() -> None:
    sample = Sample([[-0.9]], [[-1.0]], [1.0], [[-1.0]], [[1]], [[0.0]])
    policy = _flat(sample.policy).requires_grad_()
    inputs = dataclasses.replace(
        tensors(sample, policy), proximal_logprobs=torch.tensor([-1.2], dtype=torch.float64)
    )
    terms = policy_objective(LossConfig(clip_high=0.5), inputs)
    expected = float(np.exp(-0.2) * np.exp(0.3))
    assert terms.objective.item() == pytest.approx(expected)
    assert torch.autograd.grad(terms.objective.sum(), policy)[0].item() == pytest.approx(expected)


def test_each_token_of_a_continued_answer_is_anchored_by_its_own_lag() -> None:
    """Lag 3 takes a third of the way to the sampler, lag 1 all of it, lag 0 none."""
    sample = Sample([[-1.0] * 3], [[-1.6] * 3], [1.0], [[-1.0] * 3], [[3, 1, 0]])
    terms = policy_objective(
        LossConfig(proximal="interpolated", correction="none", clip_high=5.0),
        tensors(dataclasses.replace(sample, entropy=[[0.0] * 3])),
    )
    assert terms.objective.tolist() == pytest.approx([np.exp(0.2), np.exp(0.6), 1.0])


def test_the_kl_in_the_reward_stays_that_of_the_policy_before_the_first_update() -> None:
    """In a later update the policy has moved; what was rewarded has not."""
    settings = LossConfig(kl_in="reward", kl_estimator="k1", kl_coefficient=0.5, clip_high=9.0)
    sample = Sample([[-0.5, -0.5]], [[-1.0, -1.0]], [1.0], [[-1.4, -1.2]], [[0, 0]], [[0.0, 0.0]])
    before = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    inputs = dataclasses.replace(tensors(sample), proximal_logprobs=before)
    terms = policy_objective(settings, inputs)
    rewarded = [1.0 - 0.5 * (0.4 + 0.2), 1.0 - 0.5 * 0.2]
    assert terms.objective.tolist() == pytest.approx([np.exp(0.5) * a for a in rewarded])


def test_a_critic_has_taken_the_kl_off_already() -> None:
    inputs = tensors(random_sample(3))
    with_kl = LossConfig(baseline="critic", kl_in="reward", kl_coefficient=0.5)
    terms = policy_objective(with_kl, inputs)
    plain = policy_objective(LossConfig(), inputs)
    assert torch.equal(terms.objective, plain.objective)
    assert terms.reference_kl is not None


def test_interpolation_without_lags_is_an_error_of_the_caller() -> None:
    inputs = dataclasses.replace(tensors(random_sample(0)), lags=None)
    with pytest.raises(ValueError, match="needs the lag of every token"):
        policy_objective(LossConfig(proximal="interpolated"), inputs)


def test_a_reference_without_a_coefficient_changes_nothing() -> None:
    inputs = tensors(random_sample(1))
    without = policy_objective(LossConfig(), dataclasses.replace(inputs, reference_logprobs=None))
    assert torch.equal(policy_objective(LossConfig(), inputs).objective, without.objective)
    assert without.reference_kl is None


def test_the_entropy_bonus_raises_the_objective_by_its_share() -> None:
    inputs = tensors(random_sample(2))
    plain = policy_objective(LossConfig(), inputs).objective
    with_bonus = policy_objective(LossConfig(entropy_coefficient=0.1), inputs).objective
    assert inputs.entropy is not None
    assert (with_bonus - plain).tolist() == pytest.approx((0.1 * inputs.entropy).tolist())
