"""Decisions about prompt sets. Pure: read the ledger, return events."""

from __future__ import annotations

from broker import events
from broker.events import AnyEvent
from broker.ledger import Ledger
from broker.ledger_state import Decision
from broker.prompts.mixture import Draw, Mixture


def open_prompt_sets(ledger: Ledger, mixture: Mixture) -> Decision[None]:
    """Record what each set holds before it is first used.

    Raises :class:`PromptFileError` when a set has changed since.
    """
    opened = mixture.opened(ledger.state.prompts)
    return Decision(
        tuple(events.PromptSetOpened(name=name, fingerprint=mark) for name, mark in opened), None
    )


def admission(ledger: Ledger, draw: Draw) -> tuple[AnyEvent, ...]:
    """The prompt of ``draw`` becomes the next group."""
    admitted = events.Admitted(
        group_id=ledger.state.next_group_id,
        prompt=draw.prompt,
        size=ledger.rules.group_size,
        cursor=draw.cursor,
        position=draw.position,
    )
    if draw.mix == ledger.state.prompts.mix:
        return (admitted,)
    return (events.MixBegan(mix=draw.mix), admitted)
