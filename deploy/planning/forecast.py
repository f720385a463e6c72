"""What one split of a cluster comes to: step time, lag, idle shares, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.planning.law import StepTimes, mean_lag, needed_lag
from deploy.planning.problem import Problem
from deploy.planning.sync import Publication, publication

Bottleneck = Literal["generation", "training", "lag bound", "publication"]
_HALVINGS = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A split and what to expect of it."""

    num_actors: int
    num_ranks: int
    step_s: float
    bottleneck: Bottleneck
    sequences: float
    """Running in one engine on average."""
    capacity: int
    """Sequences that one engine could run."""
    latency_s: float
    """Of a mean answer."""
    generate_s: float
    """A batch, by engines that are full."""
    train_s: float
    """A batch, by a learner that never waits."""
    bound_s: float
    """The shortest step that the lag bound allows at this latency."""
    publication: Publication
    mean_lag: float
    needed_lag: int
    """The least bound that would cost nothing."""
    full_tokens_per_s: float
    """Sampled by one engine that is full."""
    rollouts_per_step: int
    mean_tokens: float

    @property
    def steps_per_hour(self) -> float:
        """Training batches an hour."""
        return 3600 / self.step_s

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens a second, sampled and trained."""
        return self.rollouts_per_step * self.mean_tokens / self.step_s

    @property
    def rollouts_per_s(self) -> float:
        """Answers a second."""
        return self.rollouts_per_step / self.step_s

    @property
    def in_flight(self) -> float:
        """Rollouts being sampled, by Little's law."""
        return self.sequences * self.num_actors

    @property
    def actor_idle_ratio(self) -> float:
        """Share of what the engines could sample that is not used."""
        return max(0.0, 1 - self.generate_s / self.step_s)

    @property
    def learner_idle_ratio(self) -> float:
        """Share of its time that the learner waits."""
        return max(0.0, 1 - self.train_s / self.step_s)

    @property
    def busy_ratio(self) -> float:
        """Share of all GPUs' time that is used."""
        idle = self.num_actors * self.actor_idle_ratio + self.num_ranks * self.learner_idle_ratio
        return 1 - idle / (self.num_actors + self.num_ranks)


class Splitting:
    """One split while its step time is looked for."""

    def __init__(self, problem: Problem, num_actors: int, num_ranks: int) -> None:
        self.problem = problem
        self.num_actors = num_actors
        self.num_ranks = num_ranks
        self.publication = publication(
            problem.weight_bytes,
            problem.config.weights,
            problem.links,
            num_ranks=num_ranks,
            num_engines=num_actors,
            load_s=problem.cluster.measured.load_s,
        )
        self.train_s = problem.trainer.step_s(num_ranks) + self.publication.snapshot_s
        self.capacity = problem.engine.max_sequences

    @property
    def floor_s(self) -> float:
        """No step is shorter, whatever the bound does."""
        full_s = self.times(self.capacity).generate_s
        return max(self.train_s, self.publication.background_s, full_s)

    def latency_s(self, sequences: float) -> float:
        """Of a mean answer while an engine runs ``sequences``; less than one is one at times."""
        return self.problem.engine.answer_s(max(1.0, sequences), self.problem.lengths.mean)

    def times(self, sequences: float) -> StepTimes:
        """The parts of a step with ``sequences`` running in each engine, which also loads once."""
        latency_s = self.latency_s(sequences)
        waves = self.problem.config.rollouts_per_step / (self.num_actors * sequences)
        return StepTimes(
            generate_s=waves * latency_s + self.publication.load_s,
            train_s=self.train_s,
            latency_s=latency_s,
            tail_ratio=self.problem.kappa,
            publish_s=self.publication.total_s,
            verify_s=self.problem.verify_s,
        )

    def bound_s(self, times: StepTimes) -> float:
        """Seconds a step by the lag bound."""
        return times.bound_s(self.problem.config.learner.max_policy_lag, self.problem.waits)

    def others_s(self, times: StepTimes) -> float:
        """What a step takes at least, generation apart."""
        return max(self.train_s, self.publication.background_s, self.bound_s(times))


def forecast(problem: Problem, num_actors: int, num_ranks: int) -> Forecast:
    """The steady state of a split.

    Engines that would be faster than the rest run fewer sequences at once, which also answers
    sooner: the number is found where generation takes as long as the slowest other part.
    """
    return _forecast(Splitting(problem, num_actors, num_ranks))


def _forecast(split: Splitting) -> Forecast:
    problem = split.problem
    sequences = _sequences(split)
    times = split.times(sequences)
    full_s = split.times(split.capacity).generate_s
    step_s = max(split.others_s(times), full_s)
    lag = problem.config.learner.max_policy_lag
    return Forecast(
        num_actors=split.num_actors,
        num_ranks=split.num_ranks,
        step_s=step_s,
        bottleneck=_bottleneck(split, times, full_s),
        sequences=sequences,
        capacity=split.capacity,
        latency_s=times.latency_s,
        generate_s=full_s,
        train_s=split.train_s,
        bound_s=split.bound_s(times),
        publication=split.publication,
        mean_lag=mean_lag(times, step_s, lag, problem.waits),
        needed_lag=needed_lag(split.times(split.capacity), split.floor_s, problem.waits),
        full_tokens_per_s=problem.engine.tokens_per_s(split.capacity, problem.lengths.mean),
        rollouts_per_step=problem.config.rollouts_per_step,
        mean_tokens=problem.lengths.mean,
    )


def _sequences(split: Splitting) -> float:
    """Running in one engine: all that fit, or as many as keep up with the rest, by bisection."""
    low, high = 0.0, float(split.capacity)
    if _is_slow(split, high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _is_slow(split, middle):
            low = middle
        else:
            high = middle
    return high


def _is_slow(split: Splitting, sequences: float) -> bool:
    """Whether generation takes longer than everything else."""
    times = split.times(sequences)
    return times.generate_s > split.others_s(times)


def _bottleneck(split: Splitting, times: StepTimes, full_s: float) -> Bottleneck:
    parts: dict[Bottleneck, float] = {
        "training": split.train_s,
        "lag bound": split.bound_s(times),
        "publication": split.publication.background_s,
        "generation": full_s,
    }
    return max(parts, key=lambda name: parts[name])
