"""The reference policy of the KL term: which weights it has, and how it becomes the policy.

DeepSeek-R1 replaces its reference by the latest policy every 400 steps (Nature 645, Methods;
iterative GRPO, DeepSeekMath, arXiv 2402.03300, Algorithm 1). The weights of each reference but the
first, which is the model directory, are written to ``references/<version>/`` as float32 before a
step is computed with them: a resumed learner and every verifier find the same bits there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from common.errors import CheckpointError, WeightTransferError
from common.torch.digest import digest_text, tensor_digest
from common.torch.weight_files import (
    read_manifest,
    read_tensors,
    version_directory,
    write_version,
)
from common.types import INITIAL_VERSION, WeightVersion
from common.weight_layout import TensorSpec, WeightManifest
from learner.checkpoints.digests import weight_digests
from learner.models.mesh import Mesh
from learner.models.model import AdaptersOff, PolicyModel


@dataclass(slots=True, kw_only=True)
class Reference:
    """The reference policy on one rank; methods are collectives over all ranks."""

    root: Path
    """Directory of the versions."""
    mesh: Mesh
    load_initial: Callable[[], PolicyModel]
    """Loads the model directory again."""
    model: PolicyModel | AdaptersOff | None
    """None where verifiers compute the log-probabilities; ``AdaptersOff`` is always initial."""
    version: WeightVersion = INITIAL_VERSION
    """The weight version that the reference is; the initial one is the model directory."""

    def become(self, policy: PolicyModel, version: WeightVersion) -> None:
        """Make ``policy`` the reference under ``version``; repeating it changes nothing.

        Raises :class:`CheckpointError` on every rank when rank 0 cannot write the weights.
        """
        save_weights(self.root, version, policy, self.mesh)
        if isinstance(self.model, PolicyModel):
            _copy_weights(policy, self.model)
        self.version = version

    def go_back(self, version: WeightVersion) -> None:
        """Be the reference that a checkpoint names; raises :class:`CheckpointError`."""
        if version == self.version:
            return
        if isinstance(self.model, AdaptersOff):
            raise CheckpointError(
                f"the checkpoint goes on with the reference {version}, but adapters switched off "
                "are the initial one (set learner.reference_reset_every as it was)"
            )
        if self.model is not None and version == INITIAL_VERSION:
            _copy_weights(self.load_initial(), self.model)
        elif self.model is not None:
            load_weights(self.root, version, self.model)
        self.version = version


def save_weights(root: Path, version: WeightVersion, policy: PolicyModel, mesh: Mesh) -> None:
    """Write the float32 weights of ``policy`` durably; a collective, one tensor at a time.

    Raises :class:`CheckpointError` on every rank when rank 0 cannot.
    """
    digests = weight_digests(policy.merged_weights(), mesh)
    specs = tuple(
        TensorSpec(
            name=name,
            dtype="float32",
            shape=tuple(weight.shape),
            digest=digest_text(digests[name]),
        )
        for name, weight in policy.merged_weights()
    )
    whole, problem = _whole_weights(policy), b""
    if mesh.is_main:
        try:
            write_version(root, WeightManifest(version=version, tensors=specs), whole)
        except CheckpointError as error:
            problem = str(error).encode()
    for _ in whole:  # gathered by all ranks, also past what rank 0 could not write
        pass
    if problem := mesh.broadcast(problem):
        raise CheckpointError(problem.decode())


def load_weights(root: Path, version: WeightVersion, model: PolicyModel) -> None:
    """Fill ``model`` with a version that :func:`save_weights` wrote; a collective.

    Raises :class:`CheckpointError` when it is gone, damaged, or of another model.
    """
    directory = version_directory(root, version)
    own = dict(model.merged_weights())
    try:
        manifest = read_manifest(directory)
        if manifest.version != version or {spec.name for spec in manifest.tensors} != own.keys():
            raise WeightTransferError(f"it holds {manifest.version} of another model")
        for spec, tensor in read_tensors(directory, manifest):
            if digest_text(tensor_digest(tensor)) != spec.digest:
                raise WeightTransferError(f"{spec.name} is damaged")
            _fill(own[spec.name], tensor)
    except WeightTransferError as error:
        raise CheckpointError(
            f"{directory}: the reference policy cannot be loaded: {error} (restore the directory, "
            "or go on from a checkpoint with an older reference)"
        ) from None


def _whole_weights(policy: PolicyModel) -> Iterator[Tensor]:
    """Every weight, whole, flat, on the CPU; a collective."""
    for _, weight in policy.merged_weights():
        value = weight.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        yield whole.to(device="cpu", dtype=torch.float32).contiguous().view(-1)


@torch.no_grad()
def _copy_weights(source: PolicyModel, target: PolicyModel) -> None:
    """Both are sharded alike, so each rank copies its own part."""
    pairs = zip(source.merged_weights(), target.merged_weights(), strict=True)
    for (_, new), (_, weight) in pairs:
        weight.copy_(new)


@torch.no_grad()
def _fill(weight: Tensor, whole: Tensor) -> None:
    if isinstance(weight, DTensor):
        placed = whole.to(weight.device)
        weight.copy_(distribute_tensor(placed, weight.device_mesh, weight.placements))
    else:
        weight.copy_(whole)
