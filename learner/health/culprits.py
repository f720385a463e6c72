"""Which groups make a batch not finite, which token of them, and which quantity (hop: broker ->
learner).

Each group of the batch is computed alone, as its part of the batch: what is not finite then is its
own doing. The others are kept and need not be pulled again. A collective: every rank computes its
share of every group, and all arrive at the same list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from learner.batches.chunk import Chunk
from learner.health.findings import Finding
from learner.metrics.token_view import TokenView
from learner.models.mesh import Mesh
from learner.step.training_batch import TrainingBatch
from learner.step.update import Updater

GRADIENT = "gradient"
"""The quantity where every number of the forward pass is finite."""


def find_culprits(updater: Updater, mesh: Mesh, batch: TrainingBatch) -> list[Finding]:
    """What is not finite in ``batch`` by group, in the batch's order; a collective.

    Empty when no group alone is to blame: their sum overflowed, or the weights are gone.
    """
    found: list[Finding] = []
    for group_id in batch.group_ids:
        detector = Detector()
        outcome = updater.probe(batch, [group_id], detector)
        if outcome.finite:
            continue
        shares = [
            msgspec.json.decode(item, type=list[Finding])
            for item in mesh.gather_over_data(msgspec.json.encode(detector.findings()))
        ]
        findings = [finding for share in shares for finding in share]
        found += [item for item in findings if item.quantity != GRADIENT] or _hardest(findings)
    return found


def without_groups(chunks: Sequence[Chunk], group_ids: Sequence[int]) -> list[Chunk]:
    """``chunks`` without those groups; chunks of nothing else are left out."""
    kept = (chunk.without(group_ids) for chunk in chunks)
    return [chunk for chunk in kept if chunk.layout.group_ids]


@dataclass(slots=True)
class Detector:
    """Looks at the tokens of one group for what is not finite."""

    _found: list[Finding] = field(default_factory=list)
    _largest: list[tuple[TokenView, list[Tensor]]] = field(default_factory=list)

    def __call__(self, view: TokenView) -> None:
        """Look at a microbatch."""
        self._found += _first_of_each_rollout(view)
        gradients: list[Tensor] = []
        if view.policy_logprobs.requires_grad:
            view.policy_logprobs.register_hook(lambda gradient: gradients.append(gradient.clone()))
        self._largest.append((view, gradients))

    def findings(self) -> list[Finding]:
        """Every rollout with a quantity that is not finite, else the one that pulls hardest."""
        if self._found:
            return self._found
        pulls = [pull for view, found in self._largest for pull in _pulls(view, found)]
        return _hardest(pulls)


def _first_of_each_rollout(view: TokenView) -> Iterator[Finding]:
    """Its first quantity, in the order of computation, that is not finite, and where."""
    broken = {name: ~torch.isfinite(values) for name, values in _quantities(view).items()}
    if not any(bool(mask.any()) for mask in broken.values()):
        return
    for rollout_id, place in view.documents():
        for name, mask in broken.items():
            tokens = torch.nonzero(mask[place]).flatten().tolist()
            if tokens:
                value = float(_quantities(view)[name][place][tokens[0]])
                yield Finding(
                    group_id=rollout_id.group_id,
                    index=rollout_id.index,
                    quantity=name,
                    problem=f"{value:g}",
                    start=tokens[0],
                    end=tokens[-1] + 1,
                )
                break


def _quantities(view: TokenView) -> Mapping[str, Tensor]:
    """[T] each, causes before their effects."""
    named = {
        "behavior_logprobs": view.microbatch.behavior_logprobs,
        "reference_logprobs": view.reference_logprobs,
        "advantages": view.microbatch.advantages,
        "policy_logprobs": view.policy_logprobs.detach(),
        "entropy": view.entropy.detach(),
        "importance_ratio": view.terms.behavior_ratio,
        "objective": view.terms.objective.detach(),
    }
    return {name: values for name, values in named.items() if values is not None}


def _pulls(view: TokenView, gradients: Sequence[Tensor]) -> Iterator[Finding]:
    """For each rollout the token with the largest d loss / d log-probability."""
    for gradient in gradients:
        for rollout_id, place in view.documents():
            token = int(gradient[place].abs().argmax())
            value = float(gradient[place][token])
            yield Finding(
                group_id=rollout_id.group_id,
                index=rollout_id.index,
                quantity=GRADIENT,
                problem=f"{value:g}",
                start=token,
                end=token + 1,
            )


def _hardest(pulls: Sequence[Finding]) -> list[Finding]:
    """The one with the largest gradient, if there is one; not a number is largest."""
    return sorted(pulls, key=lambda item: -_magnitude(item))[:1]


def _magnitude(pull: Finding) -> float:
    value = abs(float(pull.problem))
    return math.inf if math.isnan(value) else value
