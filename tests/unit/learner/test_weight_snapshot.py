"""How ranks cut tensors, and how their parts become whole again."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

import pytest
import torch

from common.torch.digest import tensor_digest
from common.types import WeightVersion
from common.weight_layout import Canary, TensorSpec
from learner.publication.weight_snapshot import (
    Part,
    ShardedTensor,
    Snapshot,
    SnapshotBuffer,
    bucket_positions,
    gather_bucket,
    gather_digests,
    row_parts,
    take_snapshot,
)

_VERSION = WeightVersion(incarnation=0, policy_step=3)
_CANARY = Canary(token_ids=(), logprobs=(), tolerance=0.1)


class Mailbox:
    """The group of rank ``rank``; sends are kept until they are received."""

    def __init__(self, rank: int, num_ranks: int, post: dict[int, deque[torch.Tensor]]) -> None:
        self._rank = rank
        self._num_ranks = num_ranks
        self._post = post

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    def send(self, tensor: torch.Tensor, rank: int) -> None:
        assert rank == 0
        self._post[self._rank].append(tensor.clone())

    def receive(self, tensor: torch.Tensor, rank: int) -> None:
        sent = self._post[rank].popleft()
        assert sent.shape == tensor.shape
        tensor.copy_(sent)


def _snapshots(
    tensors: dict[str, torch.Tensor], num_ranks: int
) -> tuple[list[Snapshot], list[Mailbox]]:
    layout = tuple(
        ShardedTensor(
            TensorSpec(name=name, dtype="float32", shape=tuple(tensor.shape), digest="0" * 16),
            row_parts(tensor.shape, num_ranks),
        )
        for name, tensor in tensors.items()
    )
    post: dict[int, deque[torch.Tensor]] = defaultdict(deque)
    snapshots = []
    for rank in range(num_ranks):
        cuts = [item.parts[rank] for item in layout]
        shards = tuple(
            tensor.view(-1)[cut.start : cut.stop].clone()
            for tensor, cut in zip(tensors.values(), cuts, strict=True)
        )
        snapshots.append(
            Snapshot(version=_VERSION, canary=_CANARY, layout=layout, shards=shards, taken_at_s=0.0)
        )
    return snapshots, [Mailbox(rank, num_ranks, post) for rank in range(num_ranks)]


def _tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"embed": (7, 3), "norm": (5,), "bias": (1,), "head": (4, 2, 2)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def test_rows_are_cut_as_torch_chunk_does() -> None:
    assert row_parts((7, 3), 3) == (Part(0, 9), Part(9, 18), Part(18, 21))
    assert row_parts((1,), 3) == (Part(0, 1), Part(1, 1), Part(1, 1))
    for num_rows in range(1, 12):
        for num_ranks in range(1, 6):
            lengths = [len(chunk) for chunk in torch.arange(num_rows).chunk(num_ranks)]
            lengths += [0] * (num_ranks - len(lengths))
            parts = row_parts((num_rows, 2), num_ranks)
            assert [part.num_elements for part in parts] == [2 * length for length in lengths]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_parts_of_all_ranks_gather_to_the_whole_tensors(num_ranks: int) -> None:
    tensors = _tensors()
    snapshots, groups = _snapshots(tensors, num_ranks)
    for positions in (range(0, 2), range(2, 4)):
        for rank in reversed(range(num_ranks)):
            flat = gather_bucket(snapshots[rank], positions, groups[rank])
        assert flat is not None
        whole = [list(tensors.values())[position].view(-1) for position in positions]
        assert torch.equal(flat, torch.cat(whole))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_digests_of_parts_merge_to_the_digest_of_the_whole(num_ranks: int) -> None:
    tensors = _tensors()
    snapshots, groups = _snapshots(tensors, num_ranks)
    for rank in reversed(range(num_ranks)):
        digests = gather_digests(snapshots[rank], groups[rank])
    assert digests == [tensor_digest(tensor) for tensor in tensors.values()]


def test_bucket_positions_follow_the_plan() -> None:
    specs = [TensorSpec(name=name, dtype="float32", shape=(1,), digest="0" * 16) for name in "abcd"]
    assert list(bucket_positions([specs[:1], specs[1:3], specs[3:]])) == [
        range(0, 1),
        range(1, 3),
        range(3, 4),
    ]


class OneLayer(torch.nn.Module):
    """A policy of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).view(3, 2) / 7)
        self.bias = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def published_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_parameters()


def _take(policy: OneLayer, dtype: str, buffer: SnapshotBuffer) -> Snapshot:
    return take_snapshot(
        policy,
        _VERSION,
        _CANARY,
        dtype=dtype,
        rank=0,
        num_ranks=1,
        buffer=buffer,
    )


def test_a_snapshot_keeps_the_weights_of_its_moment() -> None:
    policy = OneLayer()
    before = policy.weight.detach().clone()
    snapshot = _take(policy, "float32", SnapshotBuffer())
    with torch.no_grad():
        policy.weight.add_(1.0)
    assert [item.spec.name for item in snapshot.layout] == ["weight", "bias"]
    assert torch.equal(snapshot.shards[0], before.view(-1))
    assert snapshot.shards[1].tolist() == [1.0, 2.0, 3.0]


def test_a_snapshot_is_in_the_published_element_type() -> None:
    snapshot = _take(OneLayer(), "bfloat16", SnapshotBuffer())
    expected = (torch.arange(6.0) / 7).to(torch.bfloat16)
    assert torch.equal(snapshot.shards[0], expected)
    assert snapshot.layout[0].spec.dtype == "bfloat16"


def test_a_buffer_is_reused_while_the_sizes_stay() -> None:
    buffer = SnapshotBuffer()
    policy = OneLayer()
    first = _take(policy, "float32", buffer).shards[0].data_ptr()
    assert _take(policy, "float32", buffer).shards[0].data_ptr() == first
