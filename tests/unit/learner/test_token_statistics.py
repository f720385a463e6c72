"""Statistics by lag against plain numpy on all tokens at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.config import LossConfig
from common.types import RolloutId
from learner.batches.batch import Document, build_microbatch
from learner.batches.layout import MicrobatchLayout
from learner.metrics.token_statistics import TokenStatistics, describe_lag
from learner.metrics.token_view import TokenView
from learner.objectives.objective import TokenInputs, policy_objective


def _documents(count: int, seed: int) -> dict[RolloutId, Document]:
    random = np.random.default_rng(seed)
    documents = {}
    for index in range(count):
        length = int(random.integers(1, 9))
        documents[RolloutId(group_id=7, index=index, attempt=1)] = Document(
            prompt_token_ids=np.array([1, 2]),
            completion_token_ids=random.integers(0, 9, length),
            behavior_logprobs=random.normal(-2, 0.5, length).astype(np.float32),
            advantage=float(random.normal()),
            weight=0.5,
            lag=int(random.integers(0, 3)),
        )
    return documents


def _view(documents: dict[RolloutId, Document], seed: int, settings: LossConfig) -> TokenView:
    layout = MicrobatchLayout(row_length=11, rows=tuple((item,) for item in documents))
    microbatch = build_microbatch(layout, documents)
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(len(microbatch.target_ids), generator=generator) * 0.3
    logprobs = microbatch.behavior_logprobs + shift
    entropy = torch.rand(len(shift), generator=generator)
    terms = policy_objective(
        settings,
        TokenInputs(
            policy_logprobs=logprobs,
            behavior_logprobs=microbatch.behavior_logprobs,
            advantages=microbatch.advantages,
            lengths=microbatch.lengths,
            reference_logprobs=logprobs - 0.1,
            entropy=entropy,
        ),
    )
    return TokenView(
        layout=layout,
        microbatch=microbatch,
        policy_logprobs=logprobs,
        entropy=entropy,
        reference_logprobs=logprobs - 0.1,
        terms=terms,
        denominator=1.0,
    )


_CLIPPED = LossConfig(proximal="behavior", clip_low=0.1, clip_high=0.3)
_FULL = LossConfig(kl_coefficient=0.2, entropy_coefficient=0.3)


@given(st.integers(1, 12), st.integers(0, 1 << 30))
def test_each_lag_has_the_means_and_extremes_of_its_own_tokens(count: int, seed: int) -> None:
    view = _view(_documents(count, seed), seed, _CLIPPED)
    statistics = TokenStatistics()
    statistics.observe(view, 0.0, 0.0)
    gap = (view.policy_logprobs - view.microbatch.behavior_logprobs).double().numpy()
    lags = view.microbatch.lags.numpy()
    assert sorted(statistics.by_lag) == sorted(set(lags.tolist()))
    for lag, sums in statistics.by_lag.items():
        own = gap[lags == lag]
        ratio = np.exp(own)
        described = describe_lag(sums)
        assert described["tokens"] == len(own)
        assert described["ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)
        assert described["ratio_max"] == pytest.approx(ratio.max(), rel=1e-5)
        assert described["logprob_gap_max"] == pytest.approx(np.abs(own).max(), rel=1e-5)
        assert described["kl"] == pytest.approx(np.mean(ratio - own - 1), rel=1e-3, abs=1e-6)
        ess = ratio.sum() ** 2 / (len(own) * (ratio**2).sum())
        assert described["effective_sample_ratio"] == pytest.approx(ess, rel=1e-5)
        for share, name in ((0.01, "ratio_p01"), (0.5, "ratio_p50"), (0.99, "ratio_p99")):
            exact = np.quantile(ratio, share, method="inverted_cdf")
            assert described[name] == pytest.approx(exact, rel=0.003)
        advantages = view.microbatch.advantages.numpy()[lags == lag]
        low = (advantages < 0) & (ratio < 1 - _CLIPPED.clip_low)
        high = (advantages > 0) & (ratio > 1 + _CLIPPED.clip_high)
        assert described["clipped_low_ratio"] == pytest.approx(low.mean())
        assert described["clipped_high_ratio"] == pytest.approx(high.mean())


@given(st.integers(0, 1 << 30))
def test_ranks_and_microbatches_add_up_to_the_whole(seed: int) -> None:
    documents = _documents(9, seed)
    view = _view(documents, seed, _FULL)
    whole, first, second = TokenStatistics(), TokenStatistics(), TokenStatistics()
    whole.observe(view, 0.2, 0.3)
    other = _view(_documents(4, seed + 1), seed, _FULL)
    whole.observe(other, 0.2, 0.3)
    first.observe(view, 0.2, 0.3)
    second.observe(other, 0.2, 0.3)
    merged = TokenStatistics.merged([first.encode(), second.encode()])
    assert merged.losses == pytest.approx(whole.losses)
    for lag, sums in whole.by_lag.items():
        assert describe_lag(merged.by_lag[lag]) == pytest.approx(describe_lag(sums))
    ratios = [item.terms.behavior_ratio.max().item() for item in (view, other)]
    assert merged.total().ratio_max == pytest.approx(max(ratios), rel=1e-5)
    assert merged.total().tokens == sum(item.tokens for item in whole.by_lag.values())
    assert merged.stale().tokens == merged.total().tokens - (
        merged.by_lag[0].tokens if 0 in merged.by_lag else 0
    )


def test_the_parts_of_the_loss_are_those_of_the_formula() -> None:
    view = _view(_documents(6, 3), 3, _FULL)
    statistics = TokenStatistics()
    statistics.observe(view, 0.2, 0.3)
    weights = view.microbatch.weights
    ratio = torch.exp(view.policy_logprobs - view.microbatch.behavior_logprobs)
    policy = -(ratio.clamp(max=2.0) * view.microbatch.advantages * weights).sum().item()
    d = torch.tensor(-0.1)
    kl = (0.2 * (torch.exp(d) - d - 1) * weights).sum().item()
    entropy = -(0.3 * view.entropy * weights).sum().item()
    assert statistics.losses["policy"] == pytest.approx(policy, rel=1e-4)
    assert statistics.losses["kl"] == pytest.approx(kl, rel=1e-3)
    assert statistics.losses["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_a_ratio_beyond_the_histogram_counts_in_its_last_bin() -> None:
    documents = _documents(1, 0)
    view = _view(documents, 0, LossConfig())
    far = TokenView(
        layout=view.layout,
        microbatch=view.microbatch,
        policy_logprobs=view.microbatch.behavior_logprobs + 9.0,
        entropy=view.entropy,
        reference_logprobs=None,
        terms=view.terms,
        denominator=1.0,
    )
    statistics = TokenStatistics()
    statistics.observe(far, 0.0, 0.0)
    assert describe_lag(statistics.total())["ratio_p50"] == pytest.approx(np.exp(4.0))
    assert statistics.total().gap_max == pytest.approx(9.0, rel=1e-5)
