"""One sample of every message, with every field set to something that is not its default."""

from __future__ import annotations

from msgspec import structs

from common.messages import (
    Ack,
    Acks,
    AnyMessage,
    Batch,
    CommitCheckpoint,
    CommitStep,
    Credit,
    DescribeGroups,
    Ended,
    EndRun,
    EvictGroups,
    FetchReferences,
    FetchRollouts,
    Fleet,
    FleetMember,
    GetFleet,
    GetStatus,
    GetStores,
    GroupCounts,
    Groups,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeasePrompts,
    LeaseRollouts,
    ListEnded,
    NamedCount,
    PromptLease,
    PromptLeases,
    PublishWeights,
    PullGroups,
    PutRollouts,
    References,
    Refused,
    Register,
    Registered,
    ReportLost,
    ReportWeights,
    ReserveBytes,
    ResumeLearner,
    ReturnLease,
    RolloutLease,
    RolloutLeases,
    Rollouts,
    SetReference,
    Status,
    SteppedBatch,
    StoreAddress,
    Stores,
    SubmitRollout,
    SubmitVerdict,
    TransferGroup,
    WatchWeights,
    WeightNotice,
)
from common.types import (
    EvictReason,
    ReferenceHeader,
    RewardComponent,
    Role,
    StepReward,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
)
from tests.builders import prompt, rollout_header, version

_PROMPT = structs.replace(prompt(), prompt_set="math")
_LEASE = Lease(group_id=4, indices=(0, 2), attempt=3)
_ROLLOUT = rollout_header(group_id=4, index=2, attempt=3, spans=((0, version(5)), (3, version(6))))
_VERDICT = Verdict(
    status=VerdictStatus.GRADED,
    reward=1.2,
    components=(RewardComponent(name="accuracy", value=1.0, weight=1.0),),
    reason="equal",
    steps=(StepReward(end=2, value=0.5), StepReward(end=4, value=-0.25)),
)
_REFERENCE = ReferenceHeader(reference_version=version(4, 1), num_tokens=5)
_GROUP = VerifiedGroup(
    group_id=4,
    prompt=_PROMPT,
    deadline_step=7,
    rollouts=(
        VerifiedRollout(
            rollout=_ROLLOUT,
            verdict=_VERDICT,
            masked_spans=(1,),
            reference_version=version(4, 1),
        ),
    ),
)
_ANNOUNCEMENT = PublishWeights(
    version=version(6, 1),
    manifest_digest="00000000000000ff",
    directory="weights/1.6",
    transfer=TransferGroup(
        number=2, store_host="127.0.0.1", store_port=4242, token="t", members=("actor-0",)
    ),
)

SAMPLES: tuple[AnyMessage, ...] = (
    Register(
        role=Role.ACTOR, name="actor-0", nonce="n", host="h", pid=9, payload_endpoint="tcp://h:5"
    ),
    Registered(run_id="run", broker_nonce="b", heartbeat_s=2.0, lease_s=15.0, credit_bytes=65536),
    ReserveBytes(least=300_000, most=600_000, wait_s=10.0),
    Credit(num_bytes=600_000, reason=""),
    Heartbeat(leases=(_LEASE,), serving=version(6)),
    HeartbeatReply(revoked=(_LEASE,)),
    LeasePrompts(serving=version(6), max_groups=8, wait_s=1.5),
    PromptLeases(leases=(PromptLease(prompt=_PROMPT, lease=_LEASE),)),
    SubmitRollout(rollout=structs.replace(_ROLLOUT, store="store-0"), content_hash="ab"),
    ReturnLease(lease=_LEASE, error="engine gone"),
    LeaseRollouts(max_rollouts=16, wait_s=1.5),
    RolloutLeases(
        leases=(
            RolloutLease(
                prompt=_PROMPT,
                rollout=_ROLLOUT,
                verify_attempt=1,
                reference_version=version(4, 1),
                verdict=_VERDICT,
            ),
        )
    ),
    SubmitVerdict(
        rollout_id=_ROLLOUT.rollout_id, verify_attempt=1, verdict=_VERDICT, reference=_REFERENCE
    ),
    PullGroups(policy_step=6, max_groups=32, wait_s=1.5),
    Groups(groups=(_GROUP,), exhausted=True),
    DescribeGroups(group_ids=(4, 5)),
    FetchRollouts(rollout_ids=(_ROLLOUT.rollout_id,)),
    Rollouts(rollouts=(_ROLLOUT,)),
    SetReference(version=version(4, 1)),
    FetchReferences(rollout_ids=(_ROLLOUT.rollout_id,)),
    References(references=(_REFERENCE,)),
    CommitStep(incarnation=1, policy_step=6, group_ids=(4,)),
    CommitCheckpoint(policy_step=6),
    ResumeLearner(
        incarnation=1,
        policy_step=5,
        stepped=(SteppedBatch(policy_step=5, group_ids=(4,)),),
        forked=True,
        num_journal_events=70_000,
    ),
    EvictGroups(group_ids=(4,), reason=EvictReason.NONFINITE),
    EndRun(),
    _ANNOUNCEMENT,
    WatchWeights(known=version(5), wait_s=1.5),
    WeightNotice(announcement=_ANNOUNCEMENT),
    ReportWeights(version=version(6), proven=False, stall_s=0.5, source="group", reason="canary"),
    GetFleet(),
    Fleet(
        members=(
            FleetMember(
                role=Role.ACTOR, name="actor-0", host="h", pid=9, silent_s=0.5, serving=version(6)
            ),
        )
    ),
    GetStatus(),
    Status(
        run_id="run",
        groups=GroupCounts(admitted=6, trained=1, evicted=1, dead_lettered=1, leased=2, pending=1),
        evicted=(NamedCount(name="run_end", count=1),),
        policy_step=6,
        incarnation=1,
        newest_version=version(6, 1),
        waiting=(NamedCount(name="actor", count=1),),
        sealed=True,
        weight_syncs=3,
        weight_proofs_failed=1,
        duplicates=2,
        redelivered=1,
    ),
    PutRollouts(rollouts=(_ROLLOUT,)),
    GetStores(names=("store-0",)),
    Stores(stores=(StoreAddress(name="store-0", endpoint="tcp://h:5"),)),
    ListEnded(group_ids=(4, 5), stepped=True),
    Ended(group_ids=(4,)),
    ReportLost(rollout_ids=(_ROLLOUT.rollout_id,)),
    Ack(outcome="duplicate", promise="relaxed", credit_bytes=4096, num_journal_events=70_000),
    Acks(acks=((7, Ack(outcome="late")), (8, Ack(promise="relaxed")))),
    Refused(code="sealed", reason="the run is over"),
    Batch(
        requests=(
            (7, SubmitVerdict(rollout_id=_ROLLOUT.rollout_id, verify_attempt=1, verdict=_VERDICT)),
            (8, Heartbeat(leases=(_LEASE,))),
            (9, LeaseRollouts(max_rollouts=16, wait_s=1.5)),
        )
    ),
)
