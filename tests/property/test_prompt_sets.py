"""Random prompt sets, verdicts, changes of weights and restarts, against a model without cursors.

The model knows no cursor and no order: it keeps, for each set, which prompts this epoch still owes
and which are retired. The broker must draw a prompt that is owed, from a set whose share is due,
and end when the model says that nothing is left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeVar

import msgspec
import pytest

from broker import rollout_rules, verdict_rules
from broker.events import AnyEvent
from broker.ledger import Ledger
from broker.ledger_state import Decision, LedgerRules, LedgerState
from broker.prompts.mixture import Mixture, PromptSet
from broker.prompts.sequences import EpochSequence, PromptSequence, StreamSequence
from common.messages import PromptLease
from common.types import Prompt, Verdict, VerdictStatus
from tests.builders import rollout_header, version

_T = TypeVar("_T")
GROUP_SIZE = 2
_events = msgspec.msgpack.Decoder(AnyEvent)


@dataclass(frozen=True)
class SetSpec:
    """One random set; ``size`` 0 is an endless stream."""

    name: str
    weight: float
    size: int
    epochs: int
    limit: int
    shuffled: bool

    def open(self) -> PromptSet:
        sequence: PromptSequence
        if self.size:
            seed = self.name if self.shuffled else None
            sequence = EpochSequence(
                self.size, self._prompt, order_seed=seed, epochs=self.epochs, limit=self.limit
            )
        else:
            sequence = StreamSequence(self._prompt, limit=self.limit)
        return PromptSet(self.name, self.weight, sequence, self.name, self.name)

    def _prompt(self, number: int) -> Prompt:
        return Prompt(prompt_id=f"{self.name}/{number}", text="x", task="arithmetic")


@dataclass
class SetModel:
    """What one set owes, by its own books."""

    spec: SetSpec
    num_drawn: int = 0
    num_epochs: int = 0
    owed: set[int] = field(default_factory=set)
    streaks: dict[int, int] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)

    @property
    def is_used_up(self) -> bool:
        spec = self.spec
        if spec.limit and self.num_drawn >= spec.limit:
            return True
        if not spec.size:
            return False
        alive = spec.size > len(self.retired)
        return not alive or (not self.owed and 0 < spec.epochs <= self.num_epochs)

    def draw(self, prompt_id: str) -> None:
        assert not self.is_used_up
        number = int(prompt_id.split("/")[1])
        if self.spec.size:
            if not self.owed:
                self.num_epochs += 1
                self.owed = set(range(self.spec.size)) - self.retired
            assert number in self.owed, "lost, repeated within an epoch, or retired"
            self.owed.remove(number)
        else:
            assert number == self.num_drawn
        self.num_drawn += 1

    def judge(self, prompt_id: str, solved: bool, retire_after: int) -> None:
        number = int(prompt_id.split("/")[1])
        if not self.spec.size:
            return
        self.streaks[number] = self.streaks.get(number, 0) + 1 if solved else 0
        if self.streaks[number] >= retire_after:
            self.retired.add(number)
            self.owed.discard(number)


class ShareModel:
    """Counts shares since the sets or the weights last changed."""

    def __init__(self) -> None:
        self.mix: dict[str, Fraction] = {}
        self.drawn: dict[str, int] = {}

    def draw(self, mix: dict[str, Fraction], name: str) -> None:
        if mix != self.mix:
            self.mix, self.drawn = mix, dict.fromkeys(mix, 0)
        self.drawn[name] += 1
        number, total = sum(self.drawn.values()), sum(mix.values())
        for each, weight in mix.items():
            assert abs(self.drawn[each] - number * weight / total) < 1, "a share is off"


class Run:
    """A broker's pure core with its journal."""

    def __init__(self, rules: LedgerRules, specs: Sequence[SetSpec]) -> None:
        self.rules = rules
        self.specs = list(specs)
        self.journal: list[bytes] = []
        self.ledger = Ledger(rules)
        self.mixture = Mixture([spec.open() for spec in specs])

    def do(self, decision: Decision[_T]) -> _T:
        for event in decision.events:
            self.ledger.apply(event)
            self.journal.append(msgspec.msgpack.encode(event))
            assert self.ledger.counts.imbalance == 0
        return decision.outcome

    def lease(self) -> PromptLease | None:
        return self.do(rollout_rules.lease_prompt(self.ledger, "actor", version(0), self.mixture))

    def judge(self, lease: PromptLease, rewards: Sequence[float]) -> None:
        group_id, attempt = lease.lease.group_id, lease.lease.attempt
        for index, reward in enumerate(rewards):
            header = rollout_header(group_id=group_id, index=index, attempt=attempt)
            self.do(rollout_rules.submit_rollout(self.ledger, header, "a"))
            verdict = Verdict(status=VerdictStatus.GRADED, reward=reward)
            rollout = self.do(verdict_rules.lease_rollout(self.ledger, "verifier"))
            assert rollout is not None
            self.do(
                verdict_rules.submit_verdict(
                    self.ledger, header.rollout_id, rollout.verify_attempt, verdict
                )
            )

    def restart(self, cut: int) -> None:
        """Come back from a snapshot after ``cut`` events and the events that follow it."""
        history = [_events.decode(each) for each in self.journal]
        early = Ledger.replay(self.rules, None, history[:cut])
        snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(early.state), type=LedgerState)
        replayed = Ledger.replay(self.rules, snapshot, history[cut:])
        assert replayed.state == self.ledger.state
        self.ledger = replayed
        self.mixture = Mixture([spec.open() for spec in self.specs])

    def reweigh(self, specs: Sequence[SetSpec]) -> None:
        """The configuration has other weights: a restart reads them."""
        self.specs = list(specs)
        self.restart(len(self.journal))


def _random_specs(chance: random.Random) -> list[SetSpec]:
    return [
        SetSpec(
            name=f"s{number}",
            weight=chance.choice([1.0, 2.0, 0.1, chance.random() + 0.01]),
            size=chance.choice([0, 1, 2, 3, 7, 12]),
            epochs=chance.choice([0, 0, 1, 3]),
            limit=chance.choice([0, 0, 5, 20]),
            shuffled=chance.random() < 0.7,
        )
        for number in range(chance.randint(1, 6))
    ]


def _drive(seed: int, *, restarts: bool) -> list[tuple[str, str]]:
    """A random run; the same seed makes the same decisions with and without restarts."""
    chance, other = random.Random(seed), random.Random(f"restarts/{seed}")
    specs = _random_specs(chance)
    retire_after = chance.choice([1, 2, 3])
    rules = LedgerRules(
        kind="collect",
        group_size=GROUP_SIZE,
        max_outstanding_groups=10**6,
        retire_pass_rate=chance.choice([0.0, 0.5, 1.0]),
        retire_after=retire_after,
        dynamic_sampling=chance.random() < 0.5,
    )
    run = Run(rules, specs)
    models = {spec.name: SetModel(spec) for spec in specs}
    shares = ShareModel()
    open_leases: list[PromptLease] = []
    drawn: list[tuple[str, str]] = []
    for _ in range(120):
        if restarts and other.random() < 0.1:
            run.restart(other.randint(0, len(run.journal)))
        if chance.random() < 0.02:
            specs = [replace(spec, weight=chance.choice([1.0, 5.0])) for spec in specs]
            run.reweigh(specs)
        if open_leases and chance.random() < 0.4:
            lease = open_leases.pop(chance.randrange(len(open_leases)))
            rewards = [chance.choice([1.0, 1.0, 0.0]) for _ in range(GROUP_SIZE)]
            run.judge(lease, rewards)
            rate = rules.retire_pass_rate
            if rate:
                solved = sum(rewards) / GROUP_SIZE >= rate
                models[lease.prompt.prompt_set].judge(lease.prompt.prompt_id, solved, retire_after)
            continue
        mix = {
            spec.name: Fraction(repr(spec.weight))
            for spec in specs
            if not models[spec.name].is_used_up
        }
        lease_or_none = run.lease()
        assert (lease_or_none is None) == (not mix), "ended early or late"
        if lease_or_none is None:
            continue
        prompt = lease_or_none.prompt
        models[prompt.prompt_set].draw(prompt.prompt_id)
        shares.draw(mix, prompt.prompt_set)
        open_leases.append(lease_or_none)
        drawn.append((prompt.prompt_set, prompt.prompt_id))
    retired = {name: len(model.retired) for name, model in models.items() if model.retired}
    known = run.ledger.state.prompts.sets
    assert retired == {name: item.num_retired for name, item in known.items() if item.num_retired}
    return drawn


@pytest.mark.parametrize("block", range(10))
def test_draws_are_owed_due_and_the_same_whatever_restarts(block: int) -> None:
    for seed in range(block * 8, block * 8 + 8):
        assert _drive(seed, restarts=True) == _drive(seed, restarts=False)
