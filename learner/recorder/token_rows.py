"""What every token of a step contributed, as plain rows, and sums of them by rollout and group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from torch import Tensor

from common.types import RolloutId
from learner.batches.batch import Document
from learner.metrics.token_view import TokenView


class TokenRow(msgspec.Struct, kw_only=True):
    """One trained token; with several updates of a batch, one each that looked at it.

    None stands for what JSON cannot say: a value that is not finite, or that there is not.
    """

    group_id: int
    index: int
    """Of the rollout in its group."""
    visit: int
    """0 for the first update that looked at it."""
    position: int
    """Place in the completion."""
    token_id: int
    text: str = ""
    policy_logprob: float | None
    behavior_logprob: float | None
    reference_logprob: float | None
    ratio: float | None
    """policy / behavior."""
    clipped: bool
    """The clip took its gradient, or bounded its weight."""
    capped: bool
    """Its off-policy weight was truncated or masked."""
    weight: float | None
    """Off-policy weight, after its cap."""
    advantage: float | None
    entropy: float | None
    lag: int
    loss: float | None
    """Its share of the loss: the shares of an update add up to its loss."""
    gradient: float | None = None
    """d loss / d policy_logprob: below 0 the step makes the token likelier."""


class TokenSums(msgspec.Struct, kw_only=True):
    """Sums over some rows."""

    num_tokens: int = 0
    loss: float = 0.0
    gradient: float = 0.0
    """Below 0 the step makes the whole likelier."""
    pull: float = 0.0
    """Sum of |gradient|."""
    num_clipped: int = 0
    num_capped: int = 0
    largest_ratio: float = 0.0
    largest_gap: float = 0.0
    """|policy - behavior| log-probability, nats."""

    def add(self, row: TokenRow) -> None:
        """Take one row in."""
        self.num_tokens += 1
        self.loss += row.loss or 0.0
        self.gradient += row.gradient or 0.0
        self.pull += abs(row.gradient or 0.0)
        self.num_clipped += row.clipped
        self.num_capped += row.capped
        self.largest_ratio = max(self.largest_ratio, row.ratio or 0.0)
        if row.policy_logprob is not None and row.behavior_logprob is not None:
            gap = abs(row.policy_logprob - row.behavior_logprob)
            self.largest_gap = max(self.largest_gap, gap)


@dataclass(slots=True)
class TokenRecorder:
    """Keeps a row of every token that it sees; the backward pass adds the gradients."""

    documents: Mapping[RolloutId, Document]
    """Of this rank."""
    _rows: list[tuple[float, TokenRow]] = field(default_factory=list)
    """With what the sums of its update are divided by, as far as that was known."""
    _visits: dict[RolloutId, int] = field(default_factory=dict)

    def __call__(self, view: TokenView) -> None:
        """Look at one microbatch."""
        rows: list[TokenRow] = []
        for rollout_id, place in view.documents():
            rows += self._rows_of(view, rollout_id, place)
        self._rows += [(view.denominator, row) for row in rows]
        if view.policy_logprobs.requires_grad:
            view.policy_logprobs.register_hook(lambda gradient: _fill(rows, gradient))

    def rows(self, denominator: float | None) -> list[TokenRow]:
        """All rows, loss and gradient as shares of the mean that the loss is.

        ``denominator`` is that of the batch, None where each update has its own.
        """
        for own, row in self._rows:
            divisor = own if denominator is None else denominator
            row.loss = None if row.loss is None else row.loss / divisor
            row.gradient = None if row.gradient is None else row.gradient / divisor
        rows = [row for _, row in self._rows]
        self._rows = []
        return sorted(rows, key=lambda row: (row.group_id, row.index, row.visit, row.position))

    def _rows_of(self, view: TokenView, rollout_id: RolloutId, place: slice) -> Iterator[TokenRow]:
        visit = self._visits.get(rollout_id, 0)
        self._visits[rollout_id] = visit + 1
        trained = self.documents[rollout_id].trained
        length = len(self.documents[rollout_id].completion_token_ids)
        positions = np.arange(length) if trained is None else np.flatnonzero(trained)
        columns = {name: values[place].tolist() for name, values in _columns(view).items()}
        for number, position in enumerate(positions.tolist()):
            own = {name: values[number] for name, values in columns.items()}
            yield TokenRow(
                group_id=rollout_id.group_id,
                index=rollout_id.index,
                visit=visit,
                position=position,
                token_id=own["token_id"],
                policy_logprob=_finite(own["policy_logprob"]),
                behavior_logprob=_finite(own["behavior_logprob"]),
                reference_logprob=_finite(own.get("reference_logprob")),
                ratio=_finite(own["ratio"]),
                clipped=bool(own["clipped"]),
                capped=bool(own["capped"]),
                weight=_finite(own["weight"]),
                advantage=_finite(own["advantage"]),
                entropy=_finite(own["entropy"]),
                lag=own["lag"],
                loss=_finite(own["loss"]),
            )


def sums_by_rollout(rows: Sequence[TokenRow]) -> dict[tuple[int, int], TokenSums]:
    """Sums by (group_id, index)."""
    found: dict[tuple[int, int], TokenSums] = {}
    for row in rows:
        found.setdefault((row.group_id, row.index), TokenSums()).add(row)
    return found


def sums_by_group(rows: Sequence[TokenRow]) -> dict[int, TokenSums]:
    """Sums by group."""
    found: dict[int, TokenSums] = {}
    for row in rows:
        found.setdefault(row.group_id, TokenSums()).add(row)
    return found


def _columns(view: TokenView) -> dict[str, Tensor]:
    """[T] each."""
    microbatch, terms = view.microbatch, view.terms
    columns = {
        "token_id": microbatch.target_ids,
        "policy_logprob": view.policy_logprobs.detach(),
        "behavior_logprob": microbatch.behavior_logprobs,
        "ratio": terms.behavior_ratio,
        "clipped": terms.clipped,
        "capped": terms.capped,
        "weight": terms.weight.expand_as(terms.behavior_ratio),
        "advantage": microbatch.advantages,
        "entropy": view.entropy.detach(),
        "lag": microbatch.lags,
        "loss": -(terms.objective.detach() * microbatch.weights),
    }
    if view.reference_logprobs is not None:
        columns["reference_logprob"] = view.reference_logprobs
    return columns


def _fill(rows: Sequence[TokenRow], gradient: Tensor) -> None:
    for row, value in zip(rows, gradient.tolist(), strict=True):
        row.gradient = _finite(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
