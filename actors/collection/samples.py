"""The collector's durable record: one JSON line a sample, whole groups only.

The file is the collector's only state. A group counts once all of its lines are there; what a kill
left behind of an unfinished group is cut off at the next start, and the broker hands that group out
again because it was never committed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from actors.collection.metrics import ScoredSample
from common.answer_conventions import Convention
from common.answers import extract_answer
from common.completions import Completion
from common.errors import FatalError
from common.files import fsync_directory
from common.references.math import conventions_of, with_conventions
from common.types import FinishReason, VerifiedGroup


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One line of samples.jsonl."""

    group_id: int
    index: int
    group_size: int
    prompt_id: str
    prompt: str
    completion: str
    answer: str | None
    status: str
    reward: float
    accuracy: float
    format: float | None
    num_tokens: int
    finish_reason: str
    weight_version: str

    def score(self) -> ScoredSample:
        """What the metrics need of it."""
        return ScoredSample(
            answer=self.answer,
            accuracy=self.accuracy,
            format=self.format,
            reward=self.reward,
            num_tokens=self.num_tokens,
            is_truncated=self.finish_reason == FinishReason.LENGTH.value,
        )


def samples_of(
    group: VerifiedGroup,
    completions: Sequence[Completion],
    extract: tuple[Convention, ...] = (),
) -> list[Sample]:
    """The lines of ``group``; ``completions`` are those of its rollouts, in order.

    ``extract`` is ``verifier.extract``: an answer votes as the verifier read it.
    """
    conventions = conventions_of(with_conventions(group.prompt, extract))
    return [
        Sample(
            group_id=group.group_id,
            index=item.rollout.rollout_id.index,
            group_size=len(group.rollouts),
            prompt_id=group.prompt.prompt_id,
            prompt=group.prompt.text,
            completion=completion.text,
            answer=extract_answer(completion.response, conventions),
            status=item.verdict.status.value,
            reward=item.verdict.reward or 0.0,
            accuracy=item.verdict.component("accuracy") or 0.0,
            format=item.verdict.component("format"),
            num_tokens=item.rollout.num_completion_tokens,
            finish_reason=item.rollout.finish_reason.value,
            weight_version=str(item.rollout.oldest_version),
        )
        for item, completion in zip(group.rollouts, completions, strict=True)
    ]


class SampleLog:
    """Appends whole groups to ``path`` and knows which ones it holds."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, cutting off what a kill left of an unfinished group.

        Raises :class:`FatalError` when a line in front of that is no sample.
        """
        self.path = path
        self._prompt_ids: dict[int, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        end = 0
        for group_end, group in _groups_with_ends(path):
            self._prompt_ids[group[0].group_id] = group[0].prompt_id
            end = group_end
        os.truncate(path, end)

    @property
    def num_groups(self) -> int:
        """Groups that are durable."""
        return len(self._prompt_ids)

    def holds(self, group_id: int, prompt_id: str) -> bool:
        """True when the group is durable; raises :class:`FatalError` when it is another one."""
        known = self._prompt_ids.get(group_id)
        if known is not None and known != prompt_id:
            raise FatalError(
                f"{self.path} holds group {group_id} for prompt {known!r}, the broker has it for "
                f"{prompt_id!r} (it is of another run: remove it)"
            )
        return known is not None

    def append(self, samples: Sequence[Sample]) -> None:
        """Make one whole group durable."""
        lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
        with open(self.path, "ab", buffering=0) as file:
            file.write(lines)
            os.fsync(file.fileno())
        self._prompt_ids[samples[0].group_id] = samples[0].prompt_id

    def groups(self) -> Iterator[list[Sample]]:
        """The durable groups, in the order in which they finished."""
        for _, group in _groups_with_ends(self.path):
            yield group

    def copy_to(self, target: Path) -> None:
        """Put a copy at ``target``, whole or not at all."""
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(self.path, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_directory(target.parent)


def _groups_with_ends(path: Path) -> Iterator[tuple[int, list[Sample]]]:
    """Whole groups with the byte offset behind each; stops at a group that is cut short."""
    end = 0
    group: list[Sample] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            if not line.endswith(b"\n"):
                return
            group.append(_read_sample(path, number, line))
            if len(group) == group[0].group_size:
                yield end, group
                group = []


def _read_sample(path: Path, number: int, line: bytes) -> Sample:
    try:
        return msgspec.json.decode(line, type=Sample)
    except msgspec.MsgspecError as error:
        raise FatalError(
            f"{path}:{number}: not a sample: {error} (remove the file to evaluate again)"
        ) from None
