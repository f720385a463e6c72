"""When an answer is the gold answer: one rule for each structure (see docs/math-answers.md).

The gold answer decides the form: a list is right only where the gold answer is one, a percentage
only where it is one, an equation only where it is one or names the value. What an answer may add is
a name (``x = 5``), a unit, or braces around the one element of a solution set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.verification.math.expansion import expanded
from actors.verification.math.naming import (
    in_order_of_names,
    is_named,
    named_differently,
    named_values,
    relates_variables,
    same_name,
)
from actors.verification.math.quantities import in_radians, same_quantity, same_ratio
from actors.verification.math.regions import regions_of
from actors.verification.math.relations import same_relation
from actors.verification.math.spelling import is_spelled_by, spelled_differently
from actors.verification.math.values import same_value
from common.math_answer import tree
from common.math_answer.limits import AnswerError

_SETS = (tree.Brackets, tree.Combination, tree.Listing, tree.NumberSet)
_APPROXIMATE_DECIMALS = 1


def same_answer(answer: tree.Answer, gold: tree.Answer) -> bool:
    """Whether ``answer`` says what ``gold`` says.

    Raises :class:`AnswerError` when a value that must be compared does not exist or is too large.
    """
    if answer == gold:
        return True
    if isinstance(answer, tree.Number) and isinstance(gold, tree.Number):
        return same_value(answer, gold)
    if isinstance(answer, tree.Relation) or isinstance(gold, tree.Relation):
        return _same_with_relation(answer, gold)
    answer, gold = expanded(answer), expanded(gold)
    match gold:
        case tree.Listing():
            return _same_listing(answer, gold)
        case tree.Brackets():
            return _same_brackets(answer, gold)
        case tree.Combination() | tree.NumberSet():
            return _same_set(answer, gold)
        case tree.Matrix():
            return _same_matrix(answer, gold)
        case tree.Quantity():
            return same_quantity(answer, gold)
        case tree.Ratio():
            return isinstance(answer, tree.Ratio) and same_ratio(answer, gold)
        case tree.Words():
            return isinstance(answer, tree.Product) and is_spelled_by(answer, gold)
        case tree.Based():
            return False
    return isinstance(gold, tree.EXPRESSIONS) and _same_as_expression(answer, gold)


def _same_as_expression(answer: tree.Answer, gold: tree.Expression) -> bool:
    if isinstance(answer, tree.EXPRESSIONS):
        return not spelled_differently(answer, gold) and same_value(answer, gold)
    if isinstance(answer, tree.Words):
        return isinstance(gold, tree.Product) and is_spelled_by(gold, answer)
    if isinstance(answer, tree.Quantity) and answer.unit != "percent":
        return same_value(answer.value, gold) or (
            answer.unit == "degree" and same_value(in_radians(answer.value), gold)
        )
    if isinstance(answer, tree.Listing) and answer.braced and len(answer.items) == 1:
        return same_answer(answer.items[0], gold)
    return False


def _same_listing(answer: tree.Answer, gold: tree.Listing) -> bool:
    mine, other = regions_of(answer, gold) if _has_inequality(gold) else (None, None)
    if mine is not None and other is not None:
        return mine.intervals == other.intervals
    if isinstance(answer, tree.Brackets) and not gold.braced and _is_tuple(answer):
        return _all_same(answer.items, gold.items)
    if not isinstance(answer, tree.Listing):
        single = gold.braced and len(gold.items) == 1
        return single and same_answer(answer, gold.items[0])
    if named_differently(gold) and not all(map(is_named, answer.items)):
        return not any(map(is_named, answer.items)) and _all_same(answer.items, gold.items)
    if named_differently(answer) and not any(map(is_named, gold.items)):
        return in_order_of_names(answer) and _all_same(answer.items, gold.items)
    return _same_items(answer, gold)


def _same_items(answer: tree.Listing, gold: tree.Listing) -> bool:
    if answer.braced or gold.braced:
        return _covers(answer.items, gold.items) and _covers(gold.items, answer.items)
    return len(answer.items) == len(gold.items) and _one_to_one(answer.items, gold.items)


def _has_inequality(listing: tree.Listing) -> bool:
    relations = [item.relations for item in listing.items if isinstance(item, tree.Relation)]
    return any(not set(signs) <= {"=", "~", "in"} for signs in relations)


def _covers(items: Sequence[tree.Answer], others: Sequence[tree.Answer]) -> bool:
    """Whether each of ``others`` is among ``items``."""
    return all(any(_safely_same(item, other) for item in items) for other in others)


def _one_to_one(items: Sequence[tree.Answer], others: Sequence[tree.Answer]) -> bool:
    """Equality is transitive, so taking the first match is right."""
    left = list(items)
    for other in others:
        place = next((i for i, item in enumerate(left) if _safely_same(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _safely_same(item: tree.Answer, other: tree.Answer) -> bool:
    """A list may hold items of several kinds, one of which has no value."""
    try:
        return same_answer(item, other)
    except AnswerError:
        return False


def _all_same(items: Sequence[tree.Answer], others: Sequence[tree.Answer]) -> bool:
    pairs = zip(items, others, strict=False)
    return len(items) == len(others) and all(same_answer(mine, other) for mine, other in pairs)


def _is_tuple(brackets: tree.Brackets) -> bool:
    return (brackets.opener, brackets.closer) in (("(", ")"), ("<(", ")>"))


def _same_brackets(answer: tree.Answer, gold: tree.Brackets) -> bool:
    if isinstance(answer, tree.Brackets):
        alike = (answer.opener, answer.closer) == (gold.opener, gold.closer)
        if alike or (_is_tuple(answer) and _is_tuple(gold)):
            return _all_same(answer.items, gold.items)
        return False
    if isinstance(answer, tree.Listing) and _has_inequality(answer):
        return _same_set(answer, gold)
    if isinstance(answer, tree.Listing) and _is_tuple(gold):
        if answer.braced and not answer.invisible:
            return False
        return in_order_of_names(answer) and _all_same(answer.items, gold.items)
    if isinstance(answer, tree.Matrix) and _is_tuple(gold):
        return 1 in (len(answer.rows), len(answer.rows[0])) and _all_same(
            [entry for row in answer.rows for entry in row], gold.items
        )
    return isinstance(answer, tree.Combination) and _same_set(answer, gold)


def _same_set(answer: tree.Answer, gold: tree.Answer) -> bool:
    mine, other = regions_of(answer, gold)
    if mine is not None and other is not None:
        return mine.intervals == other.intervals
    if not (isinstance(answer, tree.Combination) and isinstance(gold, tree.Combination)):
        return False
    if answer.operation != gold.operation:
        return False
    match: Callable[[Sequence[tree.Answer], Sequence[tree.Answer]], bool]
    match = _all_same if gold.operation == "minus" else _one_to_one
    return len(answer.parts) == len(gold.parts) and match(answer.parts, gold.parts)


def _same_matrix(answer: tree.Answer, gold: tree.Matrix) -> bool:
    entries = [entry for row in gold.rows for entry in row]
    if isinstance(answer, tree.Matrix):
        same_shape = [len(row) for row in answer.rows] == [len(row) for row in gold.rows]
        return same_shape and _all_same([item for row in answer.rows for item in row], entries)
    is_vector = 1 in (len(gold.rows), len(gold.rows[0]))
    if isinstance(answer, tree.Brackets) and _is_tuple(answer):
        return is_vector and _all_same(answer.items, entries)
    return False


def _same_with_relation(answer: tree.Answer, gold: tree.Answer) -> bool:
    """Names are taken off first; what is left of a relation is compared as one."""
    name, values = named_values(answer)
    gold_name, gold_values = named_values(gold)
    if gold_name is None and isinstance(gold, tree.Relation):
        return _same_statement(answer, gold)
    value = gold_values[-1]
    if not isinstance(answer, tree.Relation):
        return same_answer(answer, value)
    if name is not None and isinstance(value, tree.Listing) and named_differently(value):
        return False
    if name is not None and (gold_name is None or same_name(name, gold_name)):
        return _chain_equals(answer.relations, values, value)
    if gold_name is None and set(answer.relations) <= {"=", "~"}:
        return _chain_equals(("=", *answer.relations), answer.members, value)
    if gold_name is not None and not relates_variables(gold_name, value):
        return isinstance(value, _SETS) and _same_statement(answer, gold)
    return _same_statement(answer, gold)


def _chain_equals(
    relations: Sequence[str], values: Sequence[tree.Answer], gold: tree.Answer
) -> bool:
    """Every value of a chain is the gold answer; after its exact form a decimal may be short."""
    exact_before = False
    for value, sign in zip(values, relations, strict=True):
        if sign == "~" and exact_before:
            if not _approximates(value, gold):
                return False
        elif not same_answer(value, gold):
            return False
        exact_before = True
    return True


def _approximates(value: tree.Answer, gold: tree.Answer) -> bool:
    if isinstance(value, tree.Quantity) and isinstance(gold, tree.Quantity):
        value, gold = value.value, gold.value
    if isinstance(value, tree.EXPRESSIONS) and isinstance(gold, tree.EXPRESSIONS):
        return same_value(value, gold, min_decimals=_APPROXIMATE_DECIMALS)
    return False


def _same_statement(answer: tree.Answer, gold: tree.Answer) -> bool:
    mine, other = regions_of(answer, gold)
    if mine is not None and other is not None:
        named_alike = not mine.variable or not other.variable or mine.variable == other.variable
        return named_alike and mine.intervals == other.intervals
    if isinstance(answer, tree.Relation) and isinstance(gold, tree.Relation):
        return same_relation(answer, gold)
    return False
