"""What one seed stands for: a run, its size and configuration, and which faults it meets."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from broker.admission import Staleness
from broker.journal.journal import Acks
from broker.ledger_state import LedgerRules
from tests.simulation.nemesis import KINDS
from tests.simulation.process import Payloads

_STALENESS: tuple[Staleness, ...] = ("wait", "wait", "wait", "mask_tokens", "drop_group")
_PAYLOADS: tuple[Payloads, ...] = ("broker", "broker", "broker", "store", "direct")
_ACKS: tuple[Acks, ...] = ("durable", "durable", "relaxed")
_REFERENCE_SHARE = 0.3


@dataclass(frozen=True)
class Scenario:
    """One kind of run under one kind of weather."""

    rules: LedgerRules
    num_actors: int
    num_verifiers: int
    enabled: tuple[str, ...]
    rate: float
    storm_s: float
    poison_every: int
    num_prompts: int | None
    acks: Acks = "durable"
    payloads: Payloads = "broker"
    num_stores: int = 0

    @classmethod
    def draw(cls, seed: str) -> Scenario:
        """Swarm testing: each run leaves some kinds of faults out, so that others get through."""
        seeded = random.Random(f"{seed}/scenario")
        is_train = seeded.random() < 0.85
        group_size = seeded.randint(1, 4)
        rules = LedgerRules(
            kind="train" if is_train else "collect",
            group_size=group_size,
            groups_per_step=seeded.randint(1, 6),
            num_steps=seeded.randint(10, 40),
            max_policy_lag=seeded.choice([0, 1, 1, 2, 2, 3, 5]),
            max_outstanding_groups=seeded.randint(4, 24),
            dynamic_sampling=is_train and group_size > 1 and seeded.random() < 0.25,
            max_dropped_batches=0,
        )
        drawn = cls(
            rules=rules,
            num_actors=seeded.randint(1, 4),
            num_verifiers=seeded.randint(1, 3),
            enabled=tuple(kind for kind in KINDS if seeded.random() < 0.6),
            rate=seeded.choice([0.3, 1.0, 1.0, 3.0]),
            storm_s=seeded.uniform(60.0, 400.0),
            poison_every=seeded.choice([0, 0, 13]),
            num_prompts=None if is_train else seeded.randint(20, 120),
        )
        return drawn._configured(random.Random(f"{seed}/configuration"))

    def configuration(self) -> tuple[str, ...]:
        """What differs from other runs, by the keys of the configuration."""
        reference = "verifier" if self.rules.has_verifier_reference else "learner"
        return (
            f"run.kind={self.rules.kind}",
            f"broker.acks={self.acks}",
            f"stores.payloads={self.payloads}",
            f"learner.staleness={self.rules.staleness}",
            f"learner.reference={reference}",
        )

    def _configured(self, seeded: random.Random) -> Scenario:
        """The same run under a configuration that is not the default one."""
        is_train = self.rules.kind == "train"
        staleness = seeded.choice(_STALENESS)
        has_reference = seeded.random() < _REFERENCE_SHARE
        payloads = seeded.choice(_PAYLOADS)
        return replace(
            self,
            rules=replace(
                self.rules,
                staleness=staleness if is_train else "wait",
                has_verifier_reference=has_reference and is_train,
            ),
            acks=seeded.choice(_ACKS),
            payloads=payloads,
            num_stores=seeded.randint(1, 3) if payloads == "store" else 0,
        )
