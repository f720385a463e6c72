"""Every Prometheus metric of headrace in one table, and the registry of one process.

Labels come from fixed sets only: never a group id, a prompt or the name of an actor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: its name carries the unit, its help what it means."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_COMMIT_SECONDS = (0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0)
_TURN = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
_TOKENS = (64.0, 256.0, 1024.0, 4096.0, 16384.0)

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("headrace_up_info", "gauge", "1 while the process lives", ("role",)),
    MetricSpec(
        "headrace_busy_seconds_total", "counter", "Seconds spent working, by stage", ("stage",)
    ),
    MetricSpec(
        "headrace_idle_seconds_total", "counter", "Seconds spent waiting, by stage", ("stage",)
    ),
    MetricSpec("headrace_groups", "gauge", "Rollout groups by state", ("state",)),
    MetricSpec("headrace_groups_evicted", "gauge", "Evicted groups by reason", ("reason",)),
    MetricSpec(
        "headrace_conservation_imbalance",
        "gauge",
        "Groups admitted but not accounted for; must be 0",
    ),
    MetricSpec("headrace_prompts_drawn", "gauge", "Prompts drawn, by set", ("prompt_set",)),
    MetricSpec("headrace_prompts_retired", "gauge", "Solved prompts retired", ("prompt_set",)),
    MetricSpec("headrace_answers_judged", "gauge", "Answers of judged groups", ("prompt_set",)),
    MetricSpec("headrace_answers_passed", "gauge", "Of them, with full reward", ("prompt_set",)),
    MetricSpec(
        "headrace_pass_ratio", "gauge", "Share passed of the last batch, by set", ("prompt_set",)
    ),
    MetricSpec(
        "headrace_prompts_per_batch", "gauge", "Groups judged for the last batch, dropped included"
    ),
    MetricSpec("headrace_clients", "gauge", "Live clients of the broker by role", ("role",)),
    MetricSpec("headrace_requests_total", "counter", "Requests to the broker by kind", ("kind",)),
    MetricSpec(
        "headrace_requests_refused_total", "counter", "Requests refused, by code", ("code",)
    ),
    MetricSpec(
        "headrace_connections_denied_total", "counter", "Connections refused in the handshake"
    ),
    MetricSpec("headrace_commit_seconds", "histogram", "Journal commit time", (), _COMMIT_SECONDS),
    MetricSpec(
        "headrace_turn_messages", "histogram", "Requests that the broker handles at once", (), _TURN
    ),
    MetricSpec(
        "headrace_replies_unroutable", "gauge", "Replies whose peer was gone or did not read"
    ),
    MetricSpec("headrace_journal_bytes", "gauge", "Size of the journal on disk"),
    MetricSpec("headrace_journal_live_bytes", "gauge", "Bytes of the journal that are needed"),
    MetricSpec("headrace_journal_full", "gauge", "1 while the journal has no room for rollouts"),
    MetricSpec("headrace_credit_free_bytes", "gauge", "Bytes of arrays that could be let in"),
    MetricSpec("headrace_credit_waiting", "gauge", "Producers that wait for credit"),
    MetricSpec(
        "headrace_credit_wait_seconds_total", "counter", "Seconds that rollouts waited for credit"
    ),
    MetricSpec(
        "headrace_replies_leaving_bytes", "gauge", "Arrays sent and not yet read by their reader"
    ),
    MetricSpec("headrace_rollouts_duplicate_total", "counter", "Results that came a second time"),
    MetricSpec("headrace_rollouts_quarantined_total", "counter", "One id with two contents"),
    MetricSpec(
        "headrace_leases_redelivered_total", "counter", "Work leased again, by work", ("work",)
    ),
    MetricSpec("headrace_payload_bytes", "gauge", "Arrays that a payload server holds"),
    MetricSpec(
        "headrace_payload_blocked_seconds_total",
        "counter",
        "Seconds that sampling waited for memory of its own rollouts",
    ),
    MetricSpec("headrace_payloads_lost_total", "counter", "Rollouts whose arrays were lost"),
    MetricSpec("headrace_groups_timed_out_total", "counter", "Groups over broker.max_group_s"),
    MetricSpec(
        "headrace_reference_passes_repeated_total",
        "counter",
        "Reference passes over rollouts that had their verdict: the reference was reset, or failed",
    ),
    MetricSpec("headrace_rollouts_resampled_total", "counter", "Answers of a later lease"),
    MetricSpec(
        "headrace_answer_length_tokens",
        "histogram",
        "Completion lengths, first-time or resampled",
        ("sampling",),
        _TOKENS,
    ),
    MetricSpec(
        "headrace_tokens_handed_over_total",
        "counter",
        "Completion tokens chosen for a batch, by length of their answer",
        ("length",),
    ),
    MetricSpec(
        "headrace_tokens_masked_total",
        "counter",
        "Those of them masked as too old, by length of their answer",
        ("length",),
    ),
    MetricSpec("headrace_policy_step", "gauge", "Training batches committed"),
    MetricSpec("headrace_checkpoint_step", "gauge", "policy_step of the newest whole checkpoint"),
    MetricSpec("headrace_checkpoint_seconds", "histogram", "Time to write one", (), _SECONDS),
    MetricSpec("headrace_checkpoint_failures_total", "counter", "Checkpoints not written"),
    MetricSpec("headrace_generated_tokens_total", "counter", "Completion tokens sampled"),
    MetricSpec("headrace_rollouts_total", "counter", "Rollouts finished, by reason", ("finish",)),
    MetricSpec("headrace_running_sequences", "gauge", "Completions being sampled"),
    MetricSpec("headrace_serving_policy_step", "gauge", "policy_step of the proven weights"),
    MetricSpec("headrace_weight_syncs_total", "counter", "Weight loads, by result", ("result",)),
    MetricSpec(
        "headrace_weight_stall_seconds", "histogram", "Generation pause of a load", (), _SECONDS
    ),
    MetricSpec(
        "headrace_weight_transfer_seconds",
        "histogram",
        "Transfer into staging, by source",
        ("source",),
        _SECONDS,
    ),
    MetricSpec("headrace_verdicts_total", "counter", "Verdicts by status", ("status",)),
    MetricSpec(
        "headrace_verify_seconds", "histogram", "Time of one check, by kind", ("kind",), _SECONDS
    ),
    MetricSpec(
        "headrace_verify_failures_total",
        "counter",
        "Checks without a judgement, by kind of check (a job's first) and status",
        ("kind", "status"),
    ),
    MetricSpec("headrace_verify_backlog", "gauge", "Rollouts leased and not yet answered"),
    MetricSpec("headrace_verifier_restarts_total", "counter", "Child processes replaced"),
    MetricSpec(
        "headrace_verifier_quarantined_total", "counter", "Jobs that killed their process twice"
    ),
    MetricSpec("headrace_verifier_paused", "gauge", "1 while the verifier takes no work: hacking"),
    MetricSpec(
        "headrace_reward_hacking_alarm", "gauge", "1 while the monitor sees this sign", ("alarm",)
    ),
    MetricSpec(
        "headrace_model_batches_total",
        "counter",
        "Forwards of scoring models, by kind of model",
        ("scorer", "outcome"),
    ),
    MetricSpec(
        "headrace_model_batch_tokens",
        "histogram",
        "Tokens of one forward, shared prompts once",
        ("scorer",),
        _TOKENS,
    ),
    MetricSpec(
        "headrace_model_batch_seconds",
        "histogram",
        "Hand-over to answer of one forward",
        ("scorer",),
        _SECONDS,
    ),
    MetricSpec("headrace_model_sequences_total", "counter", "Answers scored", ("scorer",)),
    MetricSpec("headrace_model_tokens_total", "counter", "Tokens computed", ("scorer",)),
    MetricSpec(
        "headrace_model_compute_seconds_total", "counter", "Seconds inside forwards", ("scorer",)
    ),
    MetricSpec("headrace_model_weight_bytes", "gauge", "Weights on the device", ("scorer",)),
    MetricSpec(
        "headrace_judge_answers_total", "counter", "Answers of the generative judge", ("outcome",)
    ),
    MetricSpec("headrace_reward_mean", "gauge", "Mean reward of the last batch"),
    MetricSpec("headrace_accuracy_mean", "gauge", "Mean accuracy of the last batch"),
    MetricSpec(
        "headrace_response_length_tokens", "gauge", "Mean completion length of the last batch"
    ),
    MetricSpec("headrace_policy_lag_steps", "gauge", "Largest policy lag of the last batch"),
    MetricSpec("headrace_loss", "gauge", "Loss of the last batch"),
    MetricSpec("headrace_grad_norm", "gauge", "Gradient norm of the last batch, before clipping"),
    MetricSpec("headrace_entropy_nats", "gauge", "Mean token entropy of the last batch"),
    MetricSpec("headrace_clip_ratio", "gauge", "Share of tokens whose ratio was clipped"),
    MetricSpec("headrace_behavior_kl_nats", "gauge", "k3 KL between policy and behavior"),
    MetricSpec("headrace_trained_tokens_total", "counter", "Completion tokens trained on"),
    MetricSpec(
        "headrace_steps_skipped_total", "counter", "Batches refused: not finite, or a spike"
    ),
    MetricSpec(
        "headrace_learner_alarm", "gauge", "1 while a step's values cross a limit", ("alarm",)
    ),
    MetricSpec("headrace_reference_kl_nats", "gauge", "KL estimate of policy and reference"),
    MetricSpec("headrace_loss_policy", "gauge", "Part of the loss that the advantages make"),
    MetricSpec("headrace_loss_kl", "gauge", "Part of the loss that the reference makes"),
    MetricSpec("headrace_loss_entropy", "gauge", "Part of the loss that the entropy bonus makes"),
    MetricSpec("headrace_clip_low_ratio", "gauge", "Share of tokens clipped below 1 - clip_low"),
    MetricSpec("headrace_clip_high_ratio", "gauge", "Share of tokens clipped above 1 + clip_high"),
    MetricSpec("headrace_importance_ratio_mean", "gauge", "Mean of policy / behavior"),
    MetricSpec("headrace_importance_ratio_max", "gauge", "Largest policy / behavior of a token"),
    MetricSpec(
        "headrace_effective_sample_ratio", "gauge", "Kish's effective sample size, share of tokens"
    ),
    MetricSpec("headrace_zero_advantage_ratio", "gauge", "Share of groups with equal rewards"),
    MetricSpec("headrace_truncated_ratio", "gauge", "Share of answers cut off at max_tokens"),
    MetricSpec(
        "headrace_replayed_routing_ratio", "gauge", "Share of tokens whose experts were recorded"
    ),
    MetricSpec("headrace_response_length_right_tokens", "gauge", "Mean length of right answers"),
    MetricSpec("headrace_response_length_wrong_tokens", "gauge", "Mean length of wrong answers"),
    MetricSpec(
        "headrace_response_length_truncated_tokens", "gauge", "Mean length of answers cut off"
    ),
    MetricSpec("headrace_trained_tokens_per_second", "gauge", "Trained tokens over a step's time"),
    MetricSpec("headrace_mfu_ratio", "gauge", "Model FLOPs over what the devices could do"),
    MetricSpec("headrace_rss_peak_bytes", "gauge", "Peak resident memory of a learner rank"),
    MetricSpec("headrace_device_memory_peak_bytes", "gauge", "Peak allocation on an accelerator"),
    MetricSpec("headrace_lag_tokens", "gauge", "Trained tokens of the last batch", ("lag",)),
    MetricSpec("headrace_lag_kl_nats", "gauge", "k3 KL of policy and behavior", ("lag",)),
    MetricSpec(
        "headrace_lag_importance_ratio_mean", "gauge", "Mean of policy / behavior", ("lag",)
    ),
    MetricSpec("headrace_lag_importance_ratio_p99", "gauge", "99th percentile of it", ("lag",)),
    MetricSpec(
        "headrace_lag_effective_sample_ratio", "gauge", "Effective sample size, share", ("lag",)
    ),
    MetricSpec(
        "headrace_publish_seconds", "histogram", "Snapshot to end of transfer", (), _SECONDS
    ),
)


class Metrics:
    """The metrics of one process; a name or label outside the table is a ``KeyError``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._specs = {spec.name: spec for spec in METRICS}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def inc(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add ``amount`` (>= 0) to a counter."""
        if name not in self._counters:
            spec = self._spec(name, "counter")
            self._counters[name] = Counter(name, spec.help, spec.labels, registry=self.registry)
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        if name not in self._gauges:
            spec = self._spec(name, "gauge")
            self._gauges[name] = Gauge(name, spec.help, spec.labels, registry=self.registry)
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count ``value`` in a histogram."""
        if name not in self._histograms:
            spec = self._spec(name, "histogram")
            self._histograms[name] = Histogram(
                name, spec.help, spec.labels, registry=self.registry, buckets=spec.buckets
            )
        histogram = self._histograms[name]
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def _spec(self, name: str, kind: Kind) -> MetricSpec:
        spec = self._specs[name]
        if spec.kind != kind:
            raise KeyError(f"{name} is a {spec.kind}, not a {kind}")
        return spec
