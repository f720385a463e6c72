"""One structure for what may be written in several: values of ``\\pm``, lists in lists, unions."""

from __future__ import annotations

import dataclasses

from actors.verification.math.values import children
from common.math_answer import tree


def expanded(answer: tree.Answer) -> tree.Answer:
    """``a \\pm b`` as the list of its two values, a list in a list as one list."""
    if isinstance(answer, tree.EXPRESSIONS):
        values = _signs(answer)
        return answer if len(values) == 1 else tree.Listing(tuple(values))
    if not isinstance(answer, tree.Listing):
        if isinstance(answer, tree.Combination) and answer.operation == "union":
            return _finite_union(answer)
        return answer
    items: list[tree.Answer] = []
    for item in map(expanded, answer.items):
        nested = isinstance(item, tree.Listing) and not item.braced
        items.extend(item.items if isinstance(item, tree.Listing) and nested else (item,))
    return dataclasses.replace(answer, items=tuple(items))


def _finite_union(union: tree.Combination) -> tree.Answer:
    parts = [expanded(part) for part in union.parts]
    if not all(isinstance(part, tree.Listing) and part.braced for part in parts):
        return union
    items = [item for part in parts if isinstance(part, tree.Listing) for item in part.items]
    return tree.Listing(tuple(items), braced=True)


def _signs(node: tree.Expression) -> list[tree.Expression]:
    """The readings of ``node`` with all upper and with all lower signs; itself without ``\\pm``."""
    if not _has_sign(node):
        return [node]
    return [_with_sign(node, 1), _with_sign(node, -1)]


def _has_sign(node: tree.Expression) -> bool:
    return isinstance(node, tree.PlusMinus) or any(map(_has_sign, children(node)))


def _with_sign(node: tree.Expression, reading: int) -> tree.Expression:
    match node:
        case tree.PlusMinus(left, right, upper_sign):
            right = _with_sign(right, reading)
            signed = right if upper_sign * reading > 0 else tree.negated(right)
            return tree.total(_with_sign(left, reading), signed)
        case tree.Sum(terms):
            return tree.Sum(tuple(_with_sign(term, reading) for term in terms))
        case tree.Product(factors):
            return tree.Product(tuple(_with_sign(factor, reading) for factor in factors))
        case tree.Power(base, exponent):
            return tree.Power(_with_sign(base, reading), _with_sign(exponent, reading))
        case tree.Call(function, arguments):
            return tree.Call(function, tuple(_with_sign(item, reading) for item in arguments))
    return node
