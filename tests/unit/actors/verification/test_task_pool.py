"""When the children for reasoning-gym are started, and what is said without the package."""

from __future__ import annotations

import pytest

from actors.verification import task_pool
from actors.verification.backends import BACKENDS
from common.config import PromptsConfig, PromptSetConfig, VerifierConfig
from common.errors import FatalError


def test_a_run_with_puzzles_starts_them_with_the_verifier() -> None:
    puzzles = PromptSetConfig(name="legs", generator="reasoning-gym:leg_counting")
    sums = PromptSetConfig(name="sums", generator="chain-addition")
    assert task_pool.generated_kinds(PromptsConfig(sets=(sums, puzzles))) == ("task",)
    assert task_pool.generated_kinds(PromptsConfig(sets=(sums,))) == ()
    assert task_pool.generated_kinds(PromptsConfig(file="prompts.jsonl")) == ()
    assert task_pool.generated_kinds(PromptsConfig(generator="reasoning-gym:ab")) == ("task",)


def test_the_kind_has_children_of_its_own() -> None:
    (source,) = [source for source in BACKENDS if "task" in source.kinds]
    pool = source.open(VerifierConfig(num_workers=3))
    assert pool.num_workers == 3  # type: ignore[attr-defined] # it is a VerifierPool


def test_without_the_package_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_pool, "is_installed", lambda: False)
    with pytest.raises(FatalError, match="pip install 'headrace\\[tasks\\]'"):
        task_pool.task_pool(VerifierConfig())
