"""How badly the clients of a simulated world behave, as probabilities that faults change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Behaviour:
    """Share of occasions on which each thing happens; all zero in calm weather."""

    infra_error: float = 0.0
    bad_input: float = 0.0
    wedge: float = 0.0
    no_reference: float = 0.0
    """A reference pass that fails; the verdict comes nevertheless."""
    forgotten_lease: float = 0.0
    """A lease that no heartbeat names, whose work takes long and is submitted nevertheless."""
    give_up: float = 0.0
    engine_error: float = 0.0
    two_contents: float = 0.0
    ignore_revocation: float = 0.0
    future_version: float = 0.0
    stale_tokens: float = 0.0
    """Rollouts whose first tokens are older than the lease promised."""
    zero_advantage: float = 0.0
    late_publish: float = 0.0
    fork: float = 0.0
    kill_point: float = 0.0
    """Death of the learner at each of the numbered points of a step."""
    poison_every: int = 0
    """Every so many prompts one kills whoever verifies it, whatever the weather; 0 for none."""

    def calm(self) -> None:
        """Behave from now on; what is wrong with the data stays wrong."""
        for name in self.__dataclass_fields__:
            if name != "poison_every":
                setattr(self, name, 0.0)

    def is_poison(self, group_id: int) -> bool:
        """Whether no verifier survives this group."""
        return self.poison_every > 0 and group_id % self.poison_every == 3
