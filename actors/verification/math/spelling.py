"""``CAB``: a product of variables, or letters in an order that means something."""

from __future__ import annotations

from common.math_answer import tree

_MIN_SPELLED = 3


def spelled_differently(answer: tree.Expression, gold: tree.Expression) -> bool:
    """``CAB`` may be an order or a name as well as a product: three capitals keep their order."""
    spelled = _capitals(gold)
    return len(spelled) >= _MIN_SPELLED and _capitals(answer) != spelled


def is_spelled_by(product: tree.Product, words: tree.Words) -> bool:
    """``CAB`` and ``\\text{CAB}``."""
    spelled = _capitals(product)
    return len(spelled) >= _MIN_SPELLED and spelled == words.text.upper()


def _capitals(node: tree.Expression) -> str:
    """The letters of a product of nothing but capitals, else nothing."""
    factors = node.factors if isinstance(node, tree.Product) else ()
    names = [factor.name for factor in factors if isinstance(factor, tree.Symbol)]
    are_capitals = len(names) == len(factors) and all(
        len(name) == 1 and name.isupper() for name in names
    )
    return "".join(names) if are_capitals else ""
