"""Sets of reals as intervals in order, so that spellings of one set meet.

``x > 2``, ``(2, \\infty)`` and ``\\{x : 2 < x\\}`` are one region; touching intervals are joined,
``\\mathbb{R} \\setminus \\{1\\}`` is two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.verification.math.values import mentions, real_value, same_value, symbols
from common.math_answer import tree


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``low`` to ``high``, infinite where None; the flags say which ends belong to it."""

    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Disjoint intervals from left to right, and the variable that they are of, if it was named."""

    intervals: tuple[Interval, ...]
    variable: str = ""


class Ends:
    """The numbers at which intervals end: equal ones are one object, whatever their spelling."""

    def __init__(self) -> None:
        self._known: list[tuple[tree.Expression, Any]] = []

    def value(self, node: tree.Expression) -> Any | None:
        """A number to put in order; None when ``node`` is no real constant."""
        if symbols(node):
            return None
        for known, value in self._known:
            if same_value(node, known):
                return value
        value = real_value(node)
        if value is not None:
            self._known.append((node, value))
        return value


def regions_of(answer: tree.Answer, gold: tree.Answer) -> tuple[Region | None, Region | None]:
    """The sets of reals that both denote, None for what denotes none or not one of intervals.

    A bare list is no region: it is a list of values.
    """
    ends = Ends()
    other = _region_of(gold, ends)
    return (None if other is None else _region_of(answer, ends)), other


def _region_of(answer: tree.Answer, ends: Ends) -> Region | None:
    match answer:
        case tree.Brackets():
            interval = _interval(answer, ends)
            return None if interval is None else Region((interval,))
        case tree.NumberSet("R"):
            return Region((Interval(None, False, None, False),))
        case tree.Listing(items, True):
            return _region_of_points(items, ends)
        case tree.Listing():
            return _region_of_statements(answer, ends)
        case tree.Relation():
            return _region_of_relation(answer, ends)
        case tree.Combination("union", parts):
            return _union([_region_of(part, ends) for part in parts])
        case tree.Combination("minus", (whole, *removed)):
            return _without(
                _region_of(whole, ends), _union([_region_of(part, ends) for part in removed])
            )
    return None


def _region_of_statements(listing: tree.Listing, ends: Ends) -> Region | None:
    """Inequalities joined by "or" are a union, by "and" an intersection.

    With commas alone they are meant to hold together, unless they cannot.
    """
    if not all(isinstance(item, tree.Relation) for item in listing.items):
        return None
    regions = [_region_of(item, ends) for item in listing.items]
    union = _union(regions)
    if union is None or listing.joined == "or":
        return union
    together: Region | None = regions[0]
    for region in regions[1:]:
        together = _intersect(together, region)
    if together and (together.intervals or listing.joined == "and"):
        return together
    return union


def _interval(brackets: tree.Brackets, ends: Ends) -> Interval | None:
    if len(brackets.items) != 2 or brackets.opener == "<(":
        return None
    low, high = _end(brackets.items[0], -1, ends), _end(brackets.items[1], 1, ends)
    if low is None or high is None:
        return None
    interval = Interval(low[0], brackets.opener == "[", high[0], brackets.closer == "]")
    return interval if _is_proper(interval) else None


def _is_proper(interval: Interval) -> bool:
    if interval.low is None or interval.high is None:
        closed_end = interval.low_closed if interval.low is None else False
        return not closed_end and not (interval.high is None and interval.high_closed)
    return bool(interval.low < interval.high)


def _end(item: tree.Answer, infinite_sign: int, ends: Ends) -> tuple[Any] | None:
    """The end of an interval, (None,) for infinity; None when it is no real constant."""
    infinity = tree.Constant("infinity")
    expected = infinity if infinite_sign > 0 else tree.negated(infinity)
    if item == expected:
        return (None,)
    if not isinstance(item, tree.EXPRESSIONS) or isinstance(item, tree.PlusMinus):
        return None
    if mentions(item, "infinity"):
        return None
    value = ends.value(item)
    return None if value is None else (value,)


def _region_of_points(items: Sequence[tree.Answer], ends: Ends) -> Region | None:
    points = [_end(item, 0, ends) for item in items]
    if any(point is None or point[0] is None for point in points):
        return None
    return _union(
        [Region((Interval(point[0], True, point[0], True),)) for point in points if point]
    )


def _region_of_relation(relation: tree.Relation, ends: Ends) -> Region | None:
    """``a < x <= b`` and its shorter and turned forms, ``x != a`` and ``x \\in set``."""
    members, relations = relation.members, relation.relations
    if relations == ("in",):
        inner = _region_of(members[1], ends)
        name = members[0].name if isinstance(members[0], tree.Symbol) else ""
        return Region(inner.intervals, name) if inner and name else None
    places = [place for place, member in enumerate(members) if isinstance(member, tree.Symbol)]
    if len(places) != 1 or len(members) > 3 or (len(members) == 3 and places != [1]):
        return None
    variable = members[places[0]].name  # type: ignore[union-attr]
    region: Region | None = Region((Interval(None, False, None, False),), variable)
    for place, sign in enumerate(relations):
        turned = place + 1 == places[0]
        bound = members[place] if turned else members[place + 1]
        region = _intersect(region, _half_line(bound, _TURNED[sign] if turned else sign, ends))
    return region


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "=", "~": "~", "in": "in"}


def _half_line(bound: tree.Answer, sign: str, ends: Ends) -> Region | None:
    end = _end(bound, 0, ends)
    if end is None or end[0] is None:
        return None
    value = end[0]
    if sign in ("<", "<="):
        return Region((Interval(None, False, value, sign == "<="),))
    if sign in (">", ">="):
        return Region((Interval(value, sign == ">=", None, False),))
    if sign == "!=":
        return Region((Interval(None, False, value, False), Interval(value, False, None, False)))
    return None


def _intersect(left: Region | None, right: Region | None) -> Region | None:
    if left is None or right is None:
        return None
    found = [_common(mine, other) for mine in left.intervals for other in right.intervals]
    return Region(tuple(item for item in found if item), left.variable or right.variable)


def _common(mine: Interval, other: Interval) -> Interval | None:
    low, low_closed = max(_low_key(mine), _low_key(other))[1:]
    high, high_closed = min(_high_key(mine), _high_key(other))[1:]
    bounded = low is not None and high is not None
    if bounded and (low > high or (low == high and not (low_closed and high_closed))):
        return None
    return Interval(low, bool(low_closed), high, bool(high_closed))


def _low_key(interval: Interval) -> tuple[Any, Any, bool]:
    key = (0, 0, 0) if interval.low is None else (1, interval.low, not interval.low_closed)
    return key, interval.low, interval.low_closed


def _high_key(interval: Interval) -> tuple[Any, Any, bool]:
    key = (1, 0, 0) if interval.high is None else (0, interval.high, interval.high_closed)
    return key, interval.high, interval.high_closed


def _union(regions: Sequence[Region | None]) -> Region | None:
    known = [region for region in regions if region is not None]
    if len(known) < len(regions) or not known:
        return None
    variables = {region.variable for region in known if region.variable}
    if len(variables) > 1:
        return None
    pieces = sorted((piece for region in known for piece in region.intervals), key=_sort_key)
    joined: list[Interval] = []
    for piece in pieces:
        if joined and _touch(joined[-1], piece):
            joined[-1] = _joined(joined[-1], piece)
        else:
            joined.append(piece)
    return Region(tuple(joined), variables.pop() if variables else "")


def _sort_key(interval: Interval) -> Any:
    return _low_key(interval)[0]


def _touch(left: Interval, right: Interval) -> bool:
    if left.high is None or right.low is None:
        return True
    if left.high == right.low:
        return left.high_closed or right.low_closed
    return bool(left.high > right.low)


def _joined(left: Interval, right: Interval) -> Interval:
    higher = max(left, right, key=lambda interval: _high_key(interval)[0])
    return Interval(left.low, left.low_closed, higher.high, higher.high_closed)


def _without(whole: Region | None, removed: Region | None) -> Region | None:
    """``whole`` less points or intervals."""
    if whole is None or removed is None:
        return None
    rest: Region | None = whole
    for piece in removed.intervals:
        rest = _intersect(rest, _outside(piece))
    return rest


def _outside(piece: Interval) -> Region:
    sides = []
    if piece.low is not None:
        sides.append(Interval(None, False, piece.low, not piece.low_closed))
    if piece.high is not None:
        sides.append(Interval(piece.high, not piece.high_closed, None, False))
    return Region(tuple(sides))
