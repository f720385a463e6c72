"""What the handlers of all requests work on."""

from __future__ import annotations

from broker.engine import Engine, ReferenceStore
from broker.exchange import Identity
from broker.fleet import Fleet
from broker.peers import Peers
from broker.prompts.mixture import PromptSource
from common.errors import RefusedError

MAX_LEASES_PER_REPLY = 1024


class HandlerState:
    """The engine, the fleet and the prompt source, and what is known of this process alone."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        source: PromptSource,
        identity: Identity,
        references: ReferenceStore | None,
    ) -> None:
        self.engine = engine
        self.ledger = engine.ledger
        self.fleet = fleet
        self.source = source
        self.identity = identity
        self.samplers = Peers()
        """Actors that ask for prompts, by what they serve."""
        self.judges = Peers()
        """Verifiers that ask for rollouts."""
        self.has_ended = False
        """Whether the run ended under this process."""
        self.num_parked: dict[str, int] = {}
        """Requests held for now, by kind."""
        self._references = references

    def refuse_ended(self) -> None:
        """A run that ended under this process is over; one found sealed waits to be resumed."""
        if self.has_ended:
            raise RefusedError("sealed", "the run has ended")

    @property
    def references(self) -> ReferenceStore:
        """Where reference log-probabilities are kept; raises :class:`RefusedError` without one."""
        if self._references is None:
            raise RefusedError("gone", "no reference log-probabilities are kept here")
        return self._references
