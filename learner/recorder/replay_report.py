"""What a replay found, as JSON Lines for programs and as a page and a few lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from common.config import Config
from common.errors import FatalError
from common.text_tokenizer import TextTokenizer
from common.types import VerifiedGroup, VerifiedRollout
from learner.recorder.replay_page import replay_page
from learner.recorder.token_rows import TokenRow, TokenSums, sums_by_group, sums_by_rollout

NUM_LISTED = 8
"""Answers that the terminal lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A step that was computed again; rows, groups and prompts are on rank 0."""

    policy_step: int
    checkpoint: int
    """Where the replay began."""
    weight_digest: str
    """Of the weights after the step: as recorded."""
    loss: float
    grad_norm: float
    """Before clipping."""
    groups: Sequence[VerifiedGroup]
    rows: Sequence[TokenRow]
    """Sorted by group, rollout, visit and position."""
    prompts: Mapping[int, Sequence[int]]
    """Prompt tokens by group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRollout:
    """One answer with what its tokens add up to."""

    group_id: int
    index: int
    prompt: str
    rows: Sequence[TokenRow]
    sums: TokenSums
    item: VerifiedRollout | None
    pull_share: float
    """Of all |gradient| of the step."""

    @property
    def advantage(self) -> float | None:
        """Of its first token."""
        return self.rows[0].advantage

    def as_line(self) -> dict[str, object]:
        """For ``rollouts.jsonl``."""
        line: dict[str, object] = {
            "group_id": self.group_id,
            "index": self.index,
            "prompt": self.prompt,
            "completion": "".join(row.text for row in self.rows if row.visit == 0),
            "advantage": self.advantage,
            "pull_share": self.pull_share,
            **msgspec.to_builtins(self.sums),
        }
        if self.item is not None:
            verdict = self.item.verdict
            line |= {
                "reward": verdict.reward,
                "components": {part.name: part.value for part in verdict.components},
                "finish_reason": self.item.rollout.finish_reason.value,
                "version": str(self.item.rollout.oldest_version),
                "actor": self.item.rollout.actor,
            }
        return line


def write_replay(config: Config, replayed: Replayed, out: Path) -> None:
    """Write tokens, rollouts, groups and the page under ``out`` and print the hardest pulls.

    Raises :class:`FatalError` when ``out`` cannot be written.
    """
    tokenizer = TextTokenizer.load(config.model.path)
    for row in replayed.rows:
        row.text = tokenizer.decode([row.token_id])
    rollouts = replayed_rollouts(replayed, tokenizer)
    groups = sums_by_group(replayed.rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_lines(out / "tokens.jsonl", map(msgspec.to_builtins, replayed.rows))
        _write_lines(out / "rollouts.jsonl", (item.as_line() for item in rollouts))
        _write_lines(
            out / "groups.jsonl",
            ({"group_id": key} | msgspec.to_builtins(sums) for key, sums in groups.items()),
        )
        (out / "replay.html").write_text(replay_page(replayed, rollouts), encoding="utf-8")
    except OSError as error:
        raise FatalError(
            f"{out}: cannot be written: {error.strerror} (give another folder with --out)"
        ) from None
    for line in summary_lines(replayed, rollouts):
        click.echo(line)
    click.echo(f"written to {out}: replay.html, tokens.jsonl, rollouts.jsonl, groups.jsonl")


def replayed_rollouts(replayed: Replayed, tokenizer: TextTokenizer) -> list[ReplayedRollout]:
    """Every answer, the one that pulls hardest first."""
    items = {
        (group.group_id, item.rollout.rollout_id.index): item
        for group in replayed.groups
        for item in group.rollouts
    }
    rows: dict[tuple[int, int], list[TokenRow]] = {}
    for row in replayed.rows:
        rows.setdefault((row.group_id, row.index), []).append(row)
    sums = sums_by_rollout(replayed.rows)
    whole = sum(item.pull for item in sums.values()) or 1.0
    found = [
        ReplayedRollout(
            group_id=key[0],
            index=key[1],
            prompt=tokenizer.decode(replayed.prompts.get(key[0], ())),
            rows=own,
            sums=sums[key],
            item=items.get(key),
            pull_share=sums[key].pull / whole,
        )
        for key, own in rows.items()
    ]
    return sorted(found, key=lambda item: (-item.sums.pull, item.group_id, item.index))


def summary_lines(replayed: Replayed, rollouts: Sequence[ReplayedRollout]) -> list[str]:
    """What the terminal shows."""
    total = sum(item.sums.num_tokens for item in rollouts)
    lines = [
        f"step {replayed.policy_step} replayed from checkpoint {replayed.checkpoint}: weights "
        f"{replayed.weight_digest} as recorded",
        f"loss {replayed.loss:.6g}, gradient norm {replayed.grad_norm:.6g}, {len(rollouts)} "
        f"answers, {total} tokens",
        "",
        " pull  reward  advantage  tokens  clipped  max ratio  rollout  answer",
    ]
    for item in rollouts[:NUM_LISTED]:
        reward = item.item.verdict.reward if item.item is not None else None
        text = "".join(row.text for row in item.rows if row.visit == 0)
        lines.append(
            f"{item.pull_share:5.1%}  {_number(reward, 6)}  {_number(item.advantage, 9)}  "
            f"{item.sums.num_tokens:6d}  {item.sums.num_clipped:7d}  "
            f"{item.sums.largest_ratio:9.4g}  {item.group_id}/{item.index}  "
            f"{json.dumps((item.prompt + text)[:72], ensure_ascii=False)}"
        )
    return lines


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.3g}':>{width}}"


def _write_lines(path: Path, rows: Iterable[object]) -> None:
    lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
