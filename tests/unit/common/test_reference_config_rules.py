"""Settings of the reference policy that cannot work are refused before a process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Config
from common.config_loader import load_config
from common.errors import ConfigError

RUN = """
[run]
directory = "out"
[model]
path = "base"
[prompts]
generator = "chain-addition"
"""
KL = {"learner.loss.kl_coefficient": 0.001}


def _load(folder: Path, **overrides: object) -> Config:
    file = folder / "run.toml"
    file.write_text(RUN)
    return load_config(file, {key.replace("__", "."): value for key, value in overrides.items()})


def _error(folder: Path, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(folder, **overrides)
    return str(caught.value)


def test_the_learner_computes_its_reference_unless_told_otherwise(tmp_path: Path) -> None:
    config = _load(tmp_path, **KL)
    assert (config.learner.reference, config.learner.reference_reset_every) == ("learner", 0)
    assert not config.has_verifier_reference


def test_verifiers_compute_it_where_there_is_a_kl_term(tmp_path: Path) -> None:
    config = _load(
        tmp_path, **KL, learner__reference="verifier", learner__reference_reset_every=400
    )
    assert config.has_verifier_reference


def test_a_reference_without_a_kl_term_is_refused(tmp_path: Path) -> None:
    assert _error(tmp_path, learner__reference="verifier").endswith(
        'learner.reference = "verifier" needs a KL term to compute log-probabilities for, got '
        "learner.loss.kl_coefficient = 0 (R1 uses 0.001; or delete the line)"
    )
    assert _error(tmp_path, learner__reference_reset_every=400).endswith(
        "learner.reference_reset_every replaces the reference of a KL term, got 400 with "
        "learner.loss.kl_coefficient = 0 (R1 uses 0.001; or use 0)"
    )


def test_a_run_that_does_not_train_has_no_reference(tmp_path: Path) -> None:
    config = _load(tmp_path, run__kind="collect", learner__reference="verifier")
    assert not config.has_verifier_reference


def test_a_device_that_is_none_and_a_negative_interval_are_refused(tmp_path: Path) -> None:
    assert _error(tmp_path, **KL, verifier__reference_device="gpu").endswith(
        "verifier.reference_device must be auto, cpu, cuda or cuda:N, got 'gpu' (use auto)"
    )
    assert _error(tmp_path, **KL, learner__reference_reset_every=-1).endswith(
        "learner.reference_reset_every must be >= 0, got -1 (use 0 to keep the initial model, 400 "
        "as R1)"
    )
