"""Fields of a ``task``: an entry of a reasoning-gym dataset, to be scored by that dataset."""

from __future__ import annotations

from typing import Any

import msgspec


class TaskReference(msgspec.Struct, frozen=True):
    """Fields of a ``task``.

    ``entry`` is what the dataset made: ``question``, ``answer`` (null where a puzzle has no single
    one) and ``metadata``. ``task`` names the dataset and may be left out where
    ``entry.metadata.source_dataset`` does, as in a prompt file, whose own field ``task`` is the
    kind. ``options`` are those that the dataset was made with. ``partial`` asks for the marks below
    1 of datasets that give them for nothing.
    """

    entry: dict[str, Any]
    task: str = ""
    options: dict[str, Any] = {}
    partial: bool = False

    def __post_init__(self) -> None:
        if "answer" not in self.entry:
            raise ValueError("entry must have a field answer (null where there is no single one)")
        if not isinstance(self.entry["answer"], str | None):
            raise ValueError("entry.answer must be text or null")
        if not isinstance(self.metadata, dict):
            raise ValueError("entry.metadata must be an object")
        source = self.metadata.get("source_dataset", self.task)
        if not isinstance(source, str) or not (self.task or source):
            raise ValueError("task must name the dataset, or entry.metadata.source_dataset")
        if self.task and _joined(source) != _joined(self.task):
            raise ValueError(
                f"task {self.task[:80]!r} must be the dataset of entry, {source[:80]!r}"
            )

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.task or str(self.metadata["source_dataset"])

    @property
    def metadata(self) -> Any:
        """What the dataset's scorer knows of the entry."""
        return self.entry.get("metadata", {})


def _joined(name: str) -> str:
    return name.replace("-", "_")
