"""The claims of ``broker.admission`` in every reachable state of small worlds, for each policy.

``HEADRACE_EXHAUSTIVE=1`` explores larger ones (minutes).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from broker import events, resume_rules, step_rules
from broker.admission import Staleness
from broker.events import AnyEvent
from broker.groups import GroupRecord, Place
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.step_rules import Pull
from common.types import EvictReason, WeightVersion
from tests.property.admission_states import Scope, explore

POLICIES: tuple[Staleness, ...] = ("wait", "mask_tokens", "drop_group")
LARGE = os.environ.get("HEADRACE_EXHAUSTIVE") == "1"


def _rules(staleness: Staleness, eta: int, per_step: int, num_steps: int) -> LedgerRules:
    return LedgerRules(
        group_size=1,
        groups_per_step=per_step,
        max_policy_lag=eta,
        num_steps=eta + 3 if LARGE else num_steps,
        max_attempts=1 << 30,  # a dead letter may come at any time, as an action of its own
        staleness=staleness,
    )


@dataclass(frozen=True)
class Claims:
    """Checks one transition; knows lag by its own formula."""

    rules: LedgerRules

    def check(
        self, before: Ledger, name: str, decided: tuple[AnyEvent, ...], after: Ledger
    ) -> None:
        """Assert every claim about the state after an action."""
        self._check_lag(after)
        self._check_count(decided, after)
        self._check_evictions(name, decided)
        assert not resume_rules.adopt_rules(after).events, "a restart would change something"
        if self.rules.staleness == "wait":
            assert after.window().holds(), name
        else:
            self._check_nobody_waits(after)
        if self.rules.staleness == "drop_group":
            assert all(
                group.deadline_step >= after.state.policy_step
                for group in _open(after)
                if not group.is_untouched
            ), name

    def _check_lag(self, ledger: Ledger) -> None:
        """(A): what is in the batch trains no token beyond the bound."""
        for group_id in ledger.state.handed_over:
            for item in ledger.groups[group_id].verified_group().rollouts:
                spans = item.rollout.version_spans
                lags = [_lag(ledger, spans[number].version) for number in item.trained_spans]
                assert item.num_trained_tokens > 0
                assert max(lags) <= self.rules.max_policy_lag

    def _check_count(self, decided: tuple[AnyEvent, ...], ledger: Ledger) -> None:
        """(B): no admission goes beyond (eta + 1) P."""
        if any(isinstance(event, events.Admitted) for event in decided):
            present = ledger.num_outstanding + len(ledger.state.handed_over)
            assert present <= (self.rules.max_policy_lag + 1) * self.rules.groups_per_step

    def _check_evictions(self, name: str, decided: tuple[AnyEvent, ...]) -> None:
        """(C), and each policy evicts for its own reason only."""
        reasons = {event.reason for event in decided if isinstance(event, events.Evicted)}
        if name in ("fork", "learner evicts"):
            return
        allowed = {
            "wait": set(),
            "mask_tokens": {EvictReason.ALL_MASKED},
            "drop_group": {EvictReason.STALE},
        }
        assert reasons <= allowed[self.rules.staleness], name

    def _check_nobody_waits(self, ledger: Ledger) -> None:
        """(D): where a verified group is open, a pull takes it or finds it empty."""
        held = tuple(ledger.state.handed_over)
        if len(held) == self.rules.groups_per_step or not len(ledger.index.verified):
            return
        assert step_rules.hand_over(ledger, Pull(ledger.state.policy_step, 1, held)).events


def _lag(ledger: Ledger, at: WeightVersion) -> int:
    """Batches between the weights and the step being computed, back to the last fork after them."""
    now = ledger.state.policy_step
    for fork in ledger.state.timeline.forks:
        if fork.incarnation > at.incarnation and fork.policy_step < at.policy_step:
            return (now - fork.policy_step) + (at.policy_step - fork.policy_step)
    return now - at.policy_step


def _open(ledger: Ledger) -> list[GroupRecord]:
    return [group for group in ledger.groups.values() if group.place is Place.OPEN]


def _check_all(scope: Scope, least_states: int) -> None:
    graph = explore(scope, Claims(scope.rules).check)
    assert len(graph.successors) >= least_states, "the world was not explored"
    assert graph.finished, "no run came to its end"
    assert not graph.stuck(), "deadlock (E)"


@pytest.mark.parametrize("staleness", POLICIES)
@pytest.mark.parametrize(
    ("eta", "per_step", "num_steps", "max_open"),
    [(0, 1, 3, 5), (0, 2, 3, 5), (1, 1, 4, 3), (1, 2, 3, 4), (2, 1, 4, 3), (2, 2, 3, 4)],
)
def test_every_interleaving_keeps_the_bound_and_can_go_on(
    staleness: Staleness, eta: int, per_step: int, num_steps: int, max_open: int
) -> None:
    rules = _rules(staleness, eta, per_step, num_steps)
    _check_all(Scope(rules, max_open=5 if LARGE else max_open), 10)


@pytest.mark.parametrize("staleness", POLICIES)
@pytest.mark.parametrize(("eta", "per_step"), [(0, 1), (1, 1)])
def test_results_that_come_under_lost_leases_break_nothing(
    staleness: Staleness, eta: int, per_step: int
) -> None:
    rules = _rules(staleness, eta, per_step, 3)
    _check_all(Scope(rules, max_open=3 if LARGE else 2, late_results=True), 10)


@pytest.mark.parametrize("staleness", POLICIES)
@pytest.mark.parametrize(("eta", "per_step"), [(0, 1), (0, 2), (1, 1)])
def test_rollbacks_and_forks_keep_the_bound_and_can_go_on(
    staleness: Staleness, eta: int, per_step: int
) -> None:
    rules = _rules(staleness, eta, per_step, 3)
    max_open = 3 if LARGE else 2
    _check_all(Scope(rules, max_open=max_open, max_unchecked=1 + LARGE, max_forks=1), 20)
