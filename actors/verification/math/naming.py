"""Names that answers give to their values: ``x = 5``, ``x = 1, y = 2``."""

from __future__ import annotations

from collections.abc import Sequence

from actors.verification.math.values import symbols
from common.math_answer import tree

_NAMES = (tree.Symbol, tree.Words, tree.Apply)
_SETS = (tree.Brackets, tree.Combination, tree.Listing, tree.NumberSet)


def is_named(item: tree.Answer) -> bool:
    """Whether ``item`` is a relation, as ``x = 1`` is."""
    return isinstance(item, tree.Relation)


def _names(listing: tree.Listing) -> list[str]:
    names = [named_values(item)[0] for item in listing.items if is_named(item)]
    return [name.name for name in names if isinstance(name, tree.Symbol)]


def named_differently(listing: tree.Listing) -> bool:
    """``x = 1, y = 2``, not ``x_1 = 1, x_2 = 2``, which are two values of one."""
    return len({name.partition("_")[0] for name in _names(listing)}) > 1


def in_order_of_names(listing: tree.Listing) -> bool:
    """``x = 1, y = 2`` for (1, 2); a list without names, or in LaTeX's invisible braces, too."""
    names = _names(listing)
    return not any(map(is_named, listing.items)) or (
        len(names) == len(listing.items) and names == sorted(set(names))
    )


def named_values(answer: tree.Answer) -> tuple[tree.Answer | None, Sequence[tree.Answer]]:
    """The name and the values of ``x = 5``, ``5 = x``, ``x = 2 + 3 = 5`` and ``x \\in S``."""
    if not isinstance(answer, tree.Relation):
        return None, (answer,)
    members, relations = answer.members, answer.relations
    in_set = relations == ("in",) and isinstance(members[1], _SETS)
    if not set(relations) <= {"=", "~"} and not in_set:
        return None, members
    if isinstance(members[0], _NAMES):
        return members[0], members[1:]
    if len(members) == 2 and relations == ("=",) and isinstance(members[1], tree.Symbol):
        return members[1], members[:1]
    return None, members


def same_name(name: tree.Answer, gold_name: tree.Answer) -> bool:
    """A name in words may stand for a letter."""
    spelled = isinstance(name, tree.Words) or isinstance(gold_name, tree.Words)
    return name == gold_name or spelled


def relates_variables(name: tree.Answer, value: tree.Answer) -> bool:
    """``y = 2x + 3`` is a relation of variables; ``x = 5`` says what x is, and must be solved."""
    if not isinstance(name, tree.Symbol) or not isinstance(value, tree.EXPRESSIONS):
        return False
    return bool(symbols(value))
