"""Where prompts come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_PROMPT_SET = "default"
"""Name of the one set of a run without ``[[prompts.sets]]``."""


@dataclass(frozen=True, kw_only=True)
class PromptSetConfig:
    """One of several prompt sets: exactly one of ``file`` and ``generator``."""

    name: str
    """Name in metrics and in the journal, which keeps the cursor of the set under it."""
    weight: float = 1.0
    """Share of the prompts, relative to the other sets that are not used up."""
    file: str = ""
    """JSON Lines file with ``prompt_id``, ``prompt``, ``task`` and the task's own fields."""
    generator: str = ""
    """``chain-addition``, ``countdown`` or ``reasoning-gym:NAME`` with the name of a dataset."""
    options: dict[str, int | float | str | bool | list[int | float | str]] = field(
        default_factory=dict
    )
    """Options of the generator."""
    split: Literal["train", "held-out"] = "train"
    """Which half of a generator's problems."""
    shuffle: bool = True
    """Shuffle a file anew each epoch, by ``run.seed``."""
    epochs: int = 0
    """Passes over a file or a held-out list; 0: a file without end, a held-out list once."""
    limit: int = 0
    """Stop after this many prompts, 0 for no limit; of held-out problems: how many there are."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Where prompts come from: exactly one of ``file``, ``generator`` and ``sets``."""

    file: str = ""
    """JSON Lines file with ``prompt_id``, ``prompt``, ``task`` and the task's own fields."""
    generator: str = ""
    """``chain-addition``, ``countdown`` or ``reasoning-gym:NAME`` with the name of a dataset."""
    options: dict[str, int | float | str | bool | list[int | float | str]] = field(
        default_factory=dict
    )
    """Options of the generator."""
    split: Literal["train", "held-out"] = "train"
    """Which half of a generator's problems."""
    shuffle: bool = True
    """Shuffle a file anew each epoch, by ``run.seed``."""
    epochs: int = 0
    """Passes over a file or a held-out list; 0: a file without end, a held-out list once."""
    limit: int = 0
    """Stop after this many prompts, 0 for no limit; of held-out problems: how many there are."""
    sets: tuple[PromptSetConfig, ...] = ()
    """Several sets with weights, in place of the keys above."""
    retire_pass_rate: float = 0.0
    """A prompt is solved by a group with at least this share of right answers; 0 retires none."""
    retire_after: int = 2
    """Groups in a row that must solve a prompt before later epochs pass it by."""
    template: Literal["plain", "r1-zero", "chat"] = "plain"
    """How a prompt becomes model input: as it is, R1-Zero's paragraph, or the chat template."""

    @property
    def all_sets(self) -> tuple[PromptSetConfig, ...]:
        """The sets; a source without a table of its own is the set ``default``."""
        if self.sets:
            return self.sets
        only = PromptSetConfig(
            name=DEFAULT_PROMPT_SET,
            file=self.file,
            generator=self.generator,
            options=self.options,
            split=self.split,
            shuffle=self.shuffle,
            epochs=self.epochs,
            limit=self.limit,
        )
        return (only,)
