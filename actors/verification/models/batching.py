"""Sequences -> trees that share a prefix -> packed batches under a token budget. Pure, no torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import Int32Array
from common.packing import pack_rows

MIN_SHARED_TOKENS = 8
"""A shorter common start is not worth the longer row that sharing makes."""
MAX_ROW_TOKENS = 4096
"""Rows are no longer, unless one sequence is: a dense attention mask costs the row's square."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences that begin with the same ``prefix_length`` tokens, which are computed once."""

    prefix_length: int
    members: tuple[int, ...]
    """Positions in the list of sequences that was planned."""
    lengths: tuple[int, ...]
    """Tokens of each member, prefix included; each is above ``prefix_length``."""

    @property
    def num_tokens(self) -> int:
        """The prefix once, and the rest of every member."""
        return self.prefix_length + sum(length - self.prefix_length for length in self.lengths)


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Rows of trees that are computed together."""

    row_length: int
    rows: tuple[tuple[Tree, ...], ...]

    @property
    def members(self) -> list[int]:
        """Sequences of the batch, in the order of their places."""
        return [member for row in self.rows for tree in row for member in tree.members]

    @property
    def num_places(self) -> int:
        """Rows times length: what the forward computes, padding included."""
        return self.row_length * len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Places that hold a token."""
        return sum(tree.num_tokens for row in self.rows for tree in row)


def plan_batches(
    sequences: Sequence[Int32Array],
    keys: Sequence[Hashable],
    *,
    budget_tokens: int,
    max_row_tokens: int = MAX_ROW_TOKENS,
    min_shared_tokens: int = MIN_SHARED_TOKENS,
) -> list[TreeBatch]:
    """Batches of at most ``budget_tokens`` places that hold every sequence exactly once.

    Sequences [at least 1 token each] of one key are looked through for a common start. Only a
    sequence that is longer than the budget makes a larger batch, and then it is alone.
    """
    row_tokens = min(budget_tokens, max_row_tokens)
    trees = [
        piece
        for tree in share_prefixes(sequences, keys, min_shared_tokens=min_shared_tokens)
        for piece in split_tree(tree, row_tokens)
    ]
    trees.sort(key=lambda tree: (-tree.num_tokens, tree.members))
    lengths = [tree.num_tokens for tree in trees]
    return [
        TreeBatch(packed.row_length, tuple(tuple(trees[n] for n in row) for row in packed.rows))
        for packed in pack_rows(lengths, row_tokens=0, budget_tokens=budget_tokens)
    ]


def share_prefixes(
    sequences: Sequence[Int32Array],
    keys: Sequence[Hashable],
    *,
    min_shared_tokens: int = MIN_SHARED_TOKENS,
) -> Iterator[Tree]:
    """One tree for each key whose sequences have a common start, single sequences for the rest.

    At least one token of each member stays outside the prefix.
    """
    families: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        families.setdefault(key, []).append(number)
    for members in families.values():
        shared = common_prefix_length([sequences[n] for n in members])
        if len(members) > 1 and shared >= max(1, min_shared_tokens):
            yield Tree(shared, tuple(members), tuple(len(sequences[n]) for n in members))
        else:
            yield from (Tree(0, (n,), (len(sequences[n]),)) for n in members)


def common_prefix_length(sequences: Sequence[Int32Array]) -> int:
    """Tokens that all sequences begin with, the last token of the shortest left out."""
    first = sequences[0]
    shared = min(len(sequence) for sequence in sequences) - 1
    for sequence in sequences[1:]:
        differing = np.flatnonzero(first[:shared] != sequence[:shared])
        shared = int(differing[0]) if differing.size else shared
    return shared


def split_tree(tree: Tree, max_tokens: int) -> Iterator[Tree]:
    """The tree in pieces of at most ``max_tokens``, each with the prefix; a single member may be
    longer, and then stands without one.
    """
    members: list[int] = []
    lengths: list[int] = []
    tokens = tree.prefix_length
    for member, length in zip(tree.members, tree.lengths, strict=True):
        own = length - tree.prefix_length
        if members and tokens + own > max_tokens:
            yield _tree(tree.prefix_length, members, lengths)
            members, lengths, tokens = [], [], tree.prefix_length
        members.append(member)
        lengths.append(length)
        tokens += own
    yield _tree(tree.prefix_length, members, lengths)


def _tree(prefix_length: int, members: Sequence[int], lengths: Sequence[int]) -> Tree:
    shared = prefix_length if len(members) > 1 else 0
    return Tree(shared, tuple(members), tuple(lengths))
