"""What the ledger knows of the prompts: a cursor a set, and how well each prompt was answered.

All of it is a fold over events, so a journal resumes every set at its exact next prompt. A prompt
costs one byte, and none in a run without retirement: a million prompts add 1 MB to a snapshot.
"""

from __future__ import annotations

import msgspec

from broker import events
from broker.events import SetWeight

RETIRED = 255
"""Byte of a retired prompt; below it the byte counts solved visits in a row."""


class SetState(msgspec.Struct):
    """One prompt set."""

    fingerprint: str = ""
    """What the set held when the run first used it."""
    cursor: int = 0
    """Places passed in the endless sequence of epochs; retired prompts are passed, not drawn."""
    num_drawn: int = 0
    num_mixed: int = 0
    """Prompts drawn since the mix last changed."""
    solved_in_a_row: bytearray = msgspec.field(default_factory=bytearray)
    """By position in the file; shorter than the file while the rest is 0."""
    num_retired: int = 0
    num_judged: int = 0
    """Answers of groups that were judged whole."""
    num_passed: int = 0
    """Answers among them with full reward."""
    pass_ratio: float | None = None
    """Passed over judged answers, of those judged for the last batch that had any."""
    judged_before: int = 0
    passed_before: int = 0

    def is_retired(self, position: int) -> bool:
        """Whether later epochs pass this prompt by."""
        return self.solved(position) == RETIRED

    def solved(self, position: int) -> int:
        """Solved visits in a row of one prompt, or ``RETIRED``."""
        return self.solved_in_a_row[position] if position < len(self.solved_in_a_row) else 0

    def note(self, position: int, solved: int, retired: bool) -> None:
        """Remember a visit; what is retired stays retired."""
        if self.is_retired(position):
            return
        missing = position + 1 - len(self.solved_in_a_row)
        if missing > 0 and (solved or retired):
            self.solved_in_a_row.extend(bytes(missing))
        if position < len(self.solved_in_a_row):
            self.solved_in_a_row[position] = RETIRED if retired else min(solved, RETIRED - 1)
        self.num_retired += retired

    def close_batch(self) -> None:
        """Take the pass ratio of what was judged since the batch before."""
        num_judged = self.num_judged - self.judged_before
        if num_judged:
            self.pass_ratio = (self.num_passed - self.passed_before) / num_judged
        self.judged_before, self.passed_before = self.num_judged, self.num_passed


class DropStreak(msgspec.Struct):
    """Groups of equal rewards that were dropped since one was last kept."""

    num_groups: int = 0
    num_solved: int = 0
    """Of them, groups whose every answer had full reward."""
    num_failed: int = 0
    """Of them, groups without an answer of full reward."""


class PromptsState(msgspec.Struct):
    """All prompt sets of a run."""

    sets: dict[str, SetState] = msgspec.field(default_factory=dict)
    mix: tuple[SetWeight, ...] = ()
    """Sets that were not used up at the last draw, with their weights."""
    num_judged: int = 0
    """Groups that were judged whole."""
    drop_streak: DropStreak = msgspec.field(default_factory=DropStreak)
    judged_per_batch: int = 0
    """Groups judged for the last training batch, dropped ones included."""
    judged_before: int = 0
    next_batch: int = 0
    """The first policy_step that :meth:`on_stepped` has not closed."""

    @property
    def num_drawn(self) -> int:
        """Prompts drawn from all sets."""
        return sum(item.num_drawn for item in self.sets.values())

    @property
    def num_retired(self) -> int:
        """Prompts retired from all sets."""
        return sum(item.num_retired for item in self.sets.values())

    def of(self, name: str) -> SetState:
        """The set called ``name``, as it began if nothing has happened to it."""
        return self.sets.get(name) or SetState()

    def on_set_opened(self, event: events.PromptSetOpened) -> None:
        """Remember what a set holds."""
        self._at(event.name).fingerprint = event.fingerprint

    def on_mix_began(self, event: events.MixBegan) -> None:
        """Count the shares of the sets from here."""
        self.mix = event.mix
        for item in self.sets.values():
            item.num_mixed = 0

    def on_admitted(self, event: events.Admitted) -> None:
        """Move the cursor of a set behind the prompt that was drawn."""
        item = self._at(event.prompt.prompt_set)
        item.cursor = event.cursor + 1
        item.num_drawn += 1
        item.num_mixed += 1

    def on_judged(self, prompt_set: str, position: int | None, event: events.GroupJudged) -> None:
        """Remember how a prompt was answered."""
        item = self._at(prompt_set)
        item.num_judged += event.num_judged
        item.num_passed += event.num_passed
        if position is not None:
            item.note(position, event.solved_in_a_row, event.retired)
        self.num_judged += 1
        if not event.dropped:
            self.drop_streak = DropStreak()
            return
        self.drop_streak.num_groups += 1
        self.drop_streak.num_solved += event.num_passed == event.num_judged
        self.drop_streak.num_failed += event.num_passed == 0

    def on_stepped(self, policy_step: int) -> None:
        """Close the books of a batch; one that is computed again after a rollback is closed."""
        if policy_step < self.next_batch:
            return
        self.next_batch = policy_step + 1
        self.judged_per_batch = self.num_judged - self.judged_before
        self.judged_before = self.num_judged
        for item in self.sets.values():
            item.close_batch()

    def _at(self, name: str) -> SetState:
        return self.sets.setdefault(name, SetState())
