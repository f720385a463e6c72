"""What must be known of a chunk before its gradients: by the models as the batch begins with them.

Nothing for one update without a critic, where the policy of the forward pass is the one that the
batch began with. Several updates anchor their clip at the log-probabilities from before the first;
a critic's values make the advantages. Both are computed as groups arrive, while others are waited
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from common.arrays import Float64Array
from common.config import Config, LearnerConfig
from common.types import RolloutId
from learner.batches.batch import Document, Microbatch
from learner.batches.chunk import Chunk, microbatches_of
from learner.models.critic import ValueModel, evaluate_critic
from learner.models.mesh import Mesh
from learner.models.model import AdaptersOff, PolicyModel, evaluate_policy
from learner.objectives.kl import kl_estimate
from learner.step.critic_update import gae_documents


def has_several_updates(learner: LearnerConfig) -> bool:
    """Whether the policy moves while a batch is computed."""
    return learner.updates_per_batch * learner.epochs_per_batch > 1


@dataclass(slots=True, kw_only=True)
class Preparation:
    """Models as the batch begins with them; methods are collectives over all ranks."""

    config: Config
    mesh: Mesh
    policy: PolicyModel
    reference: PolicyModel | AdaptersOff | None
    """None where the log-probabilities come with the documents, or nobody asks for them."""
    critic: ValueModel | None

    @property
    def is_needed(self) -> bool:
        """Whether a chunk has to be prepared at all."""
        return self.critic is not None or has_several_updates(self.config.learner)

    @property
    def evaluates_reference(self) -> bool:
        """Whether the reference is computed here, once, and not with each gradient."""
        return self.is_needed and self.reference is not None

    def prepared(self, chunk: Chunk) -> Chunk:
        """``chunk`` with the documents of its layout, and what they lack."""
        if not self.is_needed:
            return chunk
        documents: dict[RolloutId, Document] = {}
        for layout, microbatch in microbatches_of(chunk, self.mesh):
            logprobs, reference = self._logprobs(microbatch)
            values = None if self.critic is None else evaluate_critic(self.critic, microbatch)
            if layout is None:
                continue
            rollout_ids = [item for row in layout.rows for item in row]
            found = self._with_logprobs(
                [chunk.documents[item] for item in rollout_ids], logprobs, reference, microbatch
            )
            if values is not None:
                kl = self._rewarded_kl(logprobs, reference, microbatch)
                found = gae_documents(found, _rows(values, microbatch), kl, self.config.learner)
            documents |= zip(rollout_ids, found, strict=True)
        return replace(chunk, documents=documents)

    def _logprobs(self, microbatch: Microbatch) -> tuple[Tensor | None, Tensor | None]:
        """Of policy and reference, float32 [T] each, None where nobody asks."""
        temperature = self.config.actor.temperature
        logprobs, reference = None, microbatch.reference_logprobs
        if has_several_updates(self.config.learner) or self._has_kl_in_reward:
            logprobs = evaluate_policy(self.policy, microbatch, temperature)
        if self.reference is not None:
            reference = evaluate_policy(self.reference, microbatch, temperature)
        return logprobs, reference

    def _with_logprobs(
        self,
        documents: list[Document],
        logprobs: Tensor | None,
        reference: Tensor | None,
        microbatch: Microbatch,
    ) -> list[Document]:
        """Documents that hand them to every update; one update needs no log-probabilities."""
        if reference is not None:
            rows = _spread(documents, reference, microbatch)
            pairs = zip(documents, rows, strict=True)
            documents = [replace(item, reference_logprobs=row) for item, row in pairs]
        if logprobs is not None and has_several_updates(self.config.learner):
            rows = _spread(documents, logprobs, microbatch)
            pairs = zip(documents, rows, strict=True)
            documents = [replace(item, proximal_logprobs=row) for item, row in pairs]
        return documents

    def _rewarded_kl(
        self, logprobs: Tensor | None, reference: Tensor | None, microbatch: Microbatch
    ) -> list[Float64Array] | None:
        """The KL that the token rewards are lowered by, an array a document."""
        if not self._has_kl_in_reward or logprobs is None or reference is None:
            return None
        estimator = self.config.learner.loss.kl_estimator
        return _rows(kl_estimate(logprobs, reference, estimator=estimator), microbatch)

    @property
    def _has_kl_in_reward(self) -> bool:
        loss = self.config.learner.loss
        return self.critic is not None and loss.kl_in == "reward" and loss.kl_coefficient > 0


def _spread(
    documents: Sequence[Document], values: Tensor, microbatch: Microbatch
) -> list[npt.NDArray[np.float32]]:
    """float32 [L] a document, of ``values`` [T]."""
    rows = _rows(values, microbatch)
    return [
        document.spread_trained(row.astype(np.float32))
        for document, row in zip(documents, rows, strict=True)
    ]


def _rows(values: Tensor, microbatch: Microbatch) -> list[Float64Array]:
    """float64 [num_trained] a document, of ``values`` [T]."""
    ends = microbatch.lengths.cumsum(0).tolist()
    return np.split(values.double().cpu().numpy(), ends[:-1])
