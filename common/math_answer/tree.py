"""What the grammar builds: expressions, and the structures that hold them.

All nodes are immutable and hashable, and equal exactly when they are written alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational; ``decimals`` counts the digits after its point, None without a point."""

    value: Fraction
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """``pi``, ``e``, ``i``, ``infinity``, or ``degree`` (pi/180)."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, with its subscript and decoration in the name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    """Two or more terms."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Two or more factors; a quotient is a product with a power of -1."""

    factors: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Power:
    """``base`` to the ``exponent``."""

    base: Expression
    exponent: Expression


@dataclass(frozen=True, slots=True)
class Call:
    """A known function of its arguments (see :mod:`common.math_answer.vocabulary`)."""

    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """A function that the task named (``f(2)``), of which nothing is known."""

    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class PlusMinus:
    """``left`` plus or minus ``right``; ``upper_sign`` is the sign of the upper reading."""

    left: Expression
    right: Expression
    upper_sign: int


Expression: TypeAlias = (
    Number | Constant | Symbol | Sum | Product | Power | Call | Apply | PlusMinus
)


@dataclass(frozen=True, slots=True)
class Words:
    """A verbal answer, lower case with single blanks."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit; the units ``percent`` and ``degree`` have a value of their own."""

    value: Expression
    unit: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base, as in ``204_5``."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Parts separated by colons: proportions, and times of day with their ``am`` or ``pm``."""

    parts: tuple[Expression, ...]
    half: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Items in any order; ``braced`` when written as a set, where an item counts once.

    ``joined`` is the word between the last two, if there is one: ``and`` or ``or``. LaTeX shows
    nothing of ``invisible`` braces, which may hold a tuple as well.
    """

    items: tuple[Answer, ...]
    braced: bool = False
    joined: str = ""
    invisible: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Brackets:
    """Items in order between ``opener`` and ``closer``: a tuple, a vector or an interval."""

    opener: str
    items: tuple[Answer, ...]
    closer: str


@dataclass(frozen=True, slots=True)
class NumberSet:
    """A set with a letter of its own, such as R or Z."""

    name: str


@dataclass(frozen=True, slots=True)
class Combination:
    """Sets joined by ``union``, ``intersection`` or ``minus``."""

    operation: str
    parts: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain ``members[0] relations[0] members[1] ...`` of ``= < > <= >= != ~ in``."""

    members: tuple[Answer, ...]
    relations: tuple[str, ...]


Answer: TypeAlias = (
    Expression
    | Words
    | Quantity
    | Based
    | Ratio
    | Listing
    | Brackets
    | NumberSet
    | Combination
    | Matrix
    | Relation
)

EXPRESSIONS = (Number, Constant, Symbol, Sum, Product, Power, Call, Apply, PlusMinus)
ONE, MINUS_ONE = Number(Fraction(1)), Number(Fraction(-1))


def negated(node: Expression) -> Expression:
    """Minus ``node``."""
    if isinstance(node, Number):
        return Number(-node.value, node.decimals)
    return product(MINUS_ONE, node)


def product(*factors: Expression) -> Expression:
    """The product, flattened."""
    flat: list[Expression] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def total(*terms: Expression) -> Expression:
    """The sum, flattened."""
    flat: list[Expression] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Sum) else (term,))
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def quotient(numerator: Expression, denominator: Expression) -> Expression:
    """``numerator`` over ``denominator``."""
    return product(numerator, Power(denominator, MINUS_ONE))
