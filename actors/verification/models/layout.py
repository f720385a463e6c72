"""Where every token of a packed batch stands: numpy only, the same on both sides of the pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.verification.models.batching import Tree, TreeBatch
from actors.verification.models.frames import ForwardRequest, TreeShape
from common.arrays import Int32Array
from common.errors import DataError

Int64Array = npt.NDArray[np.int64]
_PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Arrays [R, L] of one packed batch; see :mod:`common.torch.attention` for the ids."""

    input_ids: Int64Array
    position_ids: Int64Array
    document_ids: Int64Array
    """Number of the tree in its row, -1 for padding."""
    branch_ids: Int64Array
    """0 in a prefix, then 1, 2, ... for the branches."""


def tree_shapes(batch: TreeBatch) -> tuple[tuple[TreeShape, ...], ...]:
    """Rows of ``batch`` as lengths alone."""
    return tuple(tuple(_shape(tree) for tree in row) for row in batch.rows)


def joined_tokens(batch: TreeBatch, sequences: Sequence[Int32Array]) -> Int32Array:
    """Token ids of ``batch`` in the order of their places, each prefix once."""
    parts = []
    for row in batch.rows:
        for tree in row:
            parts.append(sequences[tree.members[0]][: tree.prefix_length])
            parts += [sequences[member][tree.prefix_length :] for member in tree.members]
    return np.concatenate(parts)


def flat_places(batch: TreeBatch, wanted: Sequence[Int32Array]) -> list[Int32Array]:
    """For each member of ``batch``, in order, its ``wanted`` positions as flattened places."""
    places = []
    for number, row in enumerate(batch.rows):
        start = number * batch.row_length
        for tree in row:
            branch = start + tree.prefix_length
            for member, length in zip(tree.members, tree.lengths, strict=True):
                positions = wanted[member]
                inside = positions < tree.prefix_length
                moved = positions + np.where(inside, start, branch - tree.prefix_length)
                places.append(moved.astype(np.int32))
                branch += length - tree.prefix_length
            start += tree.num_tokens
    return places


def lay_out(request: ForwardRequest, token_ids: Int32Array) -> Layout:
    """The arrays of ``request``; raises :class:`DataError` where the token ids do not fit it."""
    shape = (len(request.rows), request.row_length)
    layout = Layout(
        np.full(shape, _PADDING_ID, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.full(shape, -1, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
    )
    taken = 0
    for row, trees in enumerate(request.rows):
        place = 0
        for document, tree in enumerate(trees):
            for branch, first_position, length in _segments(tree):
                part = (row, slice(place, place + length))
                chunk = token_ids[taken : taken + length]
                if place + length > request.row_length or len(chunk) != length:
                    raise DataError("the token ids do not fit the rows that the header describes")
                layout.input_ids[part] = chunk
                layout.position_ids[part] = np.arange(first_position, first_position + length)
                layout.document_ids[part] = document
                layout.branch_ids[part] = branch
                place += length
                taken += length
    if taken != len(token_ids):
        raise DataError(f"{len(token_ids)} token ids for {taken} places")
    return layout


def _segments(tree: TreeShape) -> Iterator[tuple[int, int, int]]:
    """(branch id, first position, length) of the prefix and of each branch."""
    if tree.prefix_length:
        yield 0, 0, tree.prefix_length
    numbers = range(1, len(tree.branch_lengths) + 1)
    for number, length in zip(numbers, tree.branch_lengths, strict=True):
        # a document without a prefix is all trunk: plain causal rows need no branch
        yield number if tree.prefix_length else 0, tree.prefix_length, length


def _shape(tree: Tree) -> TreeShape:
    return TreeShape(
        prefix_length=tree.prefix_length,
        branch_lengths=tuple(length - tree.prefix_length for length in tree.lengths),
    )
