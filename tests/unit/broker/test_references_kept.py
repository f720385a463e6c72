"""Reference log-probabilities are kept as long and as safely as the rollout that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from broker.engine import Engine
from broker.exchange import Answer, Ask, Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.journal.salvage import salvage
from broker.journal_cli import journal as journal_command
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from common import messages
from common.codec import Buffer
from common.messages import Reply, Request
from common.types import (
    INITIAL_VERSION,
    EvictReason,
    ReferenceHeader,
    Role,
    RolloutId,
    Verdict,
    VerdictStatus,
    WeightVersion,
)
from tests.builders import prompt, rollout_arrays, rollout_header, version
from tests.scripted_prompts import ScriptedPrompts

GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)
RULES = LedgerRules(
    group_size=1, groups_per_step=2, max_policy_lag=0, num_steps=50, has_verifier_reference=True
)
SEGMENT_BYTES = 1 << 16


def logprobs_of(rollout_id: RolloutId, at: WeightVersion) -> bytes:
    """What a verifier sends for this rollout under this reference."""
    random = np.random.default_rng((rollout_id.group_id, rollout_id.index, at.policy_step))
    return (-random.random(5, dtype=np.float32)).astype("<f4").tobytes()


class Broker:
    """Handlers over a real journal that can be closed, killed and opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "journal"
        self.start()
        self.engine.events.clear()
        for role, name in ((Role.ACTOR, "a"), (Role.VERIFIER, "v"), (Role.LEARNER, "l")):
            message = messages.Register(role=role, name=name, nonce="n", host="h", pid=1)
            self.handlers.register(message, 0.0)
        weights = messages.PublishWeights(version=version(0), manifest_digest="d")
        self.ask("l", weights, [b"manifest"])
        self.set(INITIAL_VERSION)

    def start(self) -> None:
        """As ``broker.main`` does."""
        self.journal = Journal(self.folder, "run", segment_bytes=SEGMENT_BYTES)
        state, history = self.journal.load()
        ledger = Ledger.replay(RULES, state, history)
        self.engine = Engine(ledger, LeaseTable(10.0), self.journal, 0.0)
        prompts = ScriptedPrompts(prompt)
        self.handlers = Handlers(
            self.engine,
            Fleet(10.0),
            prompts,
            Identity("run", "nonce", 2.0, 10.0),
            references=self.journal,
        )

    def ask(self, client: str, message: Request, frames: list[Buffer] | None = None) -> Answer:
        """One request, made durable before it is answered."""
        answer = self.handlers.handle(Ask(client, message, frames or [], 0.0))
        self.journal.add_events(self.engine.events)
        self.engine.events = []
        self.journal.commit()
        assert answer is not None
        return answer

    def set(self, at: WeightVersion) -> None:
        """The learner's reference is ``at``."""
        assert self.ask("l", messages.SetReference(version=at)).message == messages.Ack()

    def sampled(self) -> RolloutId:
        """A group of one rollout."""
        leased = self.ask("a", messages.LeasePrompts(serving=version(0), max_groups=1, wait_s=0))
        assert isinstance(leased.message, messages.PromptLeases)
        lease = leased.message.leases[0].lease
        header = rollout_header(group_id=lease.group_id, attempt=lease.attempt)
        arrays = rollout_arrays(num_prompt=3, num_completion=5, seed=lease.group_id)
        self.ask("a", messages.SubmitRollout(rollout=header), list(arrays.frames()))
        return header.rollout_id

    def lease(self) -> messages.RolloutLease:
        """Work for the verifier."""
        leased = self.ask("v", messages.LeaseRollouts(max_rollouts=1, wait_s=0)).message
        assert isinstance(leased, messages.RolloutLeases)
        return leased.leases[0]

    def judge(self, lease: messages.RolloutLease, at: WeightVersion) -> Reply:
        """Verdict and log-probabilities."""
        rollout_id = lease.rollout.rollout_id
        verdict = messages.SubmitVerdict(
            rollout_id=rollout_id,
            verify_attempt=lease.verify_attempt,
            verdict=GRADED,
            reference=ReferenceHeader(reference_version=at, num_tokens=5),
        )
        return self.ask("v", verdict, [logprobs_of(rollout_id, at)]).message

    def judged(self, at: WeightVersion = INITIAL_VERSION) -> RolloutId:
        """A verified group of one."""
        rollout_id = self.sampled()
        assert self.judge(self.lease(), at) == messages.Ack()
        return rollout_id

    def fetch(self, *rollout_ids: RolloutId) -> tuple[list[WeightVersion], list[bytes]] | str:
        """What the learner gets, or the code of the refusal."""
        answer = self.ask("l", messages.FetchReferences(rollout_ids=rollout_ids))
        if isinstance(answer.message, messages.Refused):
            return answer.message.code
        assert isinstance(answer.message, messages.References)
        versions = [header.reference_version for header in answer.message.references]
        return versions, [bytes(frame) for frame in answer.frames]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.journal.close()


def test_the_learner_gets_the_bytes_that_the_verifier_sent(broker: Broker) -> None:
    rollout_ids = [broker.judged(), broker.judged()]
    expected = [logprobs_of(rollout_id, version(0)) for rollout_id in rollout_ids]
    assert broker.fetch(*rollout_ids) == ([version(0)] * 2, expected)


def test_they_survive_a_restart_and_a_snapshot(broker: Broker) -> None:
    rollout_ids = [broker.judged(), broker.judged()]
    broker.journal.add_snapshot(broker.engine.ledger.state)
    broker.journal.commit()
    before = broker.fetch(*rollout_ids)
    broker.journal.close()
    broker.start()
    assert broker.fetch(*rollout_ids) == before


def test_they_survive_that_old_segments_are_cleared(broker: Broker) -> None:
    rollout_id = broker.judged()
    expected = broker.fetch(rollout_id)
    for number in range(120):
        header = rollout_header(group_id=10_000 + number, num_completion=2000)
        broker.journal.add_payload(header, [bytes(size) for size in header.frame_bytes()])
        broker.journal.commit()
        broker.journal.drop_payloads([10_000 + number])
        broker.journal.add_snapshot(broker.engine.ledger.state)
        broker.journal.commit()
        while broker.journal.maintain():
            broker.journal.commit()
    assert broker.journal.num_bytes < 1 << 20, "of 3 MB that were written"
    assert broker.fetch(rollout_id) == expected


def test_they_leave_with_their_group(broker: Broker) -> None:
    rollout_id = broker.judged()
    evict = messages.EvictGroups(group_ids=(rollout_id.group_id,), reason=EvictReason.NONFINITE)
    broker.ask("l", messages.PullGroups(policy_step=0, max_groups=1, wait_s=0, held=()))
    broker.ask("l", evict)
    assert not broker.journal.payload_groups
    assert broker.fetch(rollout_id) == "gone"


def test_after_a_reset_those_of_the_present_reference_are_delivered(broker: Broker) -> None:
    rollout_id = broker.judged()
    broker.set(version(4))
    assert broker.judge(broker.lease(), version(4)) == messages.Ack()
    assert broker.fetch(rollout_id) == ([version(4)], [logprobs_of(rollout_id, version(4))])


def test_those_of_a_replaced_reference_are_not_kept(broker: Broker) -> None:
    rollout_id = broker.sampled()
    lease = broker.lease()
    broker.set(version(4))
    assert broker.judge(lease, INITIAL_VERSION) == messages.Ack()
    with pytest.raises(KeyError):
        broker.journal.reference(rollout_id, INITIAL_VERSION)
    assert broker.fetch(rollout_id) == "gone"
    (group,) = broker.engine.ledger.groups.values()
    assert group.references == {}


def test_those_of_two_references_do_not_replace_each_other(broker: Broker) -> None:
    """A step is replayed with the reference that it was taken with."""
    rollout_id = broker.judged()
    broker.set(version(4))
    broker.judge(broker.lease(), version(4))
    for at in (version(0), version(4)):
        header, frame = broker.journal.reference(rollout_id, at)
        assert header.reference_version == at
        assert bytes(frame) == logprobs_of(rollout_id, at)
    with pytest.raises(KeyError):
        broker.journal.reference(rollout_id, version(4, 1))


def test_a_run_whose_learner_computes_its_reference_keeps_none(broker: Broker) -> None:
    rollout_id = broker.sampled()
    assert broker.fetch(rollout_id) == "gone"


def test_the_journal_prints_them_without_their_array(broker: Broker) -> None:
    rollout_id = broker.judged()
    broker.journal.close()
    printed = CliRunner().invoke(journal_command, ["dump", str(broker.folder)])
    broker.start()
    lines = [json.loads(line) for line in printed.output.splitlines()]
    (found,) = [line for line in lines if "reference" in line]
    assert found["reference"] == {
        "reference_version": {"incarnation": 0, "policy_step": 0},
        "num_tokens": 5,
    }
    assert found["of"] == {
        "group_id": rollout_id.group_id,
        "index": rollout_id.index,
        "attempt": rollout_id.attempt,
    }


def test_lost_ones_are_computed_again_and_cost_no_verdict(broker: Broker, tmp_path: Path) -> None:
    rollout_id = broker.judged()
    broker.journal.close()
    _spoil(broker.folder, logprobs_of(rollout_id, version(0)))
    rescue = salvage(broker.folder, tmp_path / "copy")
    assert any("reference log-probabilities of rollouts 0; they are" in x for x in rescue.losses)
    broker.folder = tmp_path / "copy"
    broker.start()
    lease = broker.lease()
    assert (lease.verdict, lease.reference_version) == (GRADED, version(0))
    assert broker.judge(lease, version(0)) == messages.Ack()
    assert broker.fetch(rollout_id) == ([version(0)], [logprobs_of(rollout_id, version(0))])


def _spoil(folder: Path, contents: bytes) -> None:
    """Flip a bit of these bytes wherever they lie."""
    for file in folder.iterdir():
        data = bytearray(file.read_bytes())
        place = data.find(contents)
        if place >= 0:
            data[place] ^= 1
            file.write_bytes(data)
            return
    raise AssertionError("no segment has them")
