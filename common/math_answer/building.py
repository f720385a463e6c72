"""Trees of functions and of sums with a sign that is two."""

from __future__ import annotations

from fractions import Fraction

from common.math_answer.tree import (
    Call,
    Constant,
    Expression,
    Number,
    PlusMinus,
    Power,
    quotient,
    total,
)


def is_factorial(node: Expression) -> bool:
    """Whether a ``!`` would make this a double factorial, which is another function."""
    return isinstance(node, Call) and node.function == "factorial"


def function_of(name: str, argument: Expression, base: Expression | None = None) -> Expression:
    """The known function ``name`` of ``argument``; ``base`` of a logarithm."""
    if name == "exp":
        return Power(Constant("e"), argument)
    if name == "lg":
        name, base = "log", base or Number(Fraction(10))
    if name == "log" and base is not None:
        return quotient(Call("ln", (argument,)), Call("ln", (base,)))
    return Call("ln" if name == "log" else name, (argument,))


def plus_term(left: PlusMinus, term: Expression) -> PlusMinus:
    """``left`` with ``term`` added to both of its readings."""
    return PlusMinus(total(left.left, term), left.right, left.upper_sign)
