"""The prompt source of a run: sets drawn by weight. A draw is a function of the ledger's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from broker.events import SetWeight
from broker.prompts.mixing import next_set
from broker.prompts.sequences import PromptSequence
from broker.prompts.state import PromptsState
from common.errors import PromptFileError
from common.types import Prompt


@dataclass(frozen=True, slots=True)
class Draw:
    """The next prompt, and what the journal has to know of where it stood."""

    prompt: Prompt
    """With the name of its set."""
    cursor: int
    position: int | None
    """Place in the list of the set; None for a stream, where no prompt comes back."""
    mix: tuple[SetWeight, ...]
    """Sets that are not used up."""


class PromptSource(Protocol):
    """Where prompts come from."""

    def draw(self, state: PromptsState) -> Draw | None:
        """The next prompt of a run in ``state``, or None when all sets are used up."""
        ...


@dataclass(frozen=True, slots=True)
class PromptSet:
    """One set: its share, its prompts, and what tells it from another."""

    name: str
    weight: float
    sequence: PromptSequence
    origin: str
    """File or generator, for people."""
    fingerprint: str
    """Content and order: a cursor means the same prompt only while this is the same."""


class Mixture:
    """Several sets, mixed as :func:`broker.prompts.mixing.next_set` says.

    A set that is used up drops out; the others keep their weights relative to each other.
    """

    def __init__(self, sets: Sequence[PromptSet], *, limit: int = 0) -> None:
        """``limit`` bounds the draws from all sets; 0 is no bound."""
        self._sets = {item.name: item for item in sets}
        self._limit = limit

    def draw(self, state: PromptsState) -> Draw | None:
        """See :class:`PromptSource`."""
        if self._limit and state.num_drawn >= self._limit:
            return None
        found = {name: item.sequence.seek(state.of(name)) for name, item in self._sets.items()}
        cursors = {name: cursor for name, cursor in found.items() if cursor is not None}
        if not cursors:
            return None
        mix = tuple(SetWeight(name=name, weight=self._sets[name].weight) for name in cursors)
        same = mix == state.mix
        name = next_set(mix, {name: state.of(name).num_mixed if same else 0 for name in cursors})
        prompt, position = self._sets[name].sequence.at(cursors[name])
        prompt = msgspec.structs.replace(prompt, prompt_set=name)
        return Draw(prompt, cursors[name], position, mix)

    def opened(self, state: PromptsState) -> Iterator[tuple[str, str]]:
        """(name, fingerprint) of each set that ``state`` has not met.

        Raises :class:`PromptFileError` for a set that holds something else than when it was first
        used: its cursor would point to other prompts.
        """
        for name, item in self._sets.items():
            known = state.of(name).fingerprint
            if not known:
                yield name, item.fingerprint
            elif known != item.fingerprint:
                raise PromptFileError(
                    f"prompt set {name!r} has changed since this run first used it: it was "
                    f"[{known}], {item.origin} is [{item.fingerprint}] (restore it, give the "
                    "changed prompts a name of their own in [[prompts.sets]], or start in another "
                    "run.directory)"
                )
