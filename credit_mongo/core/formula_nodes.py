"""The nodes of a parsed formula: a tree that evaluates itself, exactly. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil, floor, trunc
from operator import add, eq, ge, gt, le, lt, mul, ne, sub, truediv
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "ARITHMETIC",
    "COMPARISONS",
    "FUNCTIONS",
    "MAX_INTERMEDIATE_BITS",
    "ONE",
    "STRICT",
    "ZERO",
    "Arithmetic",
    "Call",
    "Comparison",
    "Conditional",
    "FractionalExponentError",
    "Function",
    "Logical",
    "Node",
    "Number",
    "Variable",
    "kinds_of",
    "value_without_variables",
]

# Fractions grow with each operation. With this limit, the slowest formula takes about 20 ms.
MAX_INTERMEDIATE_BITS: Final = 4096
_HALF: Final = Fraction(1, 2)

_Binary: TypeAlias = Callable[[Any, Any], Any]


def _remainder(dividend: Fraction, divisor: Fraction) -> Fraction:
    """The remainder as JavaScript's ``%`` defines it, with the sign of the dividend."""
    return dividend - divisor * trunc(dividend / divisor)


class FractionalExponentError(ArithmeticError):
    """An exponent isn't a whole number, so the power may have no exact value."""


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """The base to a whole exponent. ``0 ** 0`` is 1, as in JavaScript.

    Raises OverflowError before it computes a number with too many bits.
    """
    if exponent.denominator != 1:
        raise FractionalExponentError
    bits = max(abs(base.numerator), base.denominator).bit_length()
    # The power has more than (bits - 1) times the exponent bits.
    if (bits - 1) * abs(exponent.numerator) > MAX_INTERMEDIATE_BITS:
        raise OverflowError
    return Fraction(base**exponent.numerator)


class Function(NamedTuple):
    """A function for formulas. It takes exactly one number or, with ``takes_many``, any number."""

    apply: Callable[..., Fraction]
    takes_many: bool = False


ARITHMETIC: Final[Mapping[str, _Binary]] = {
    "+": add,
    "-": sub,
    "*": mul,
    "/": truediv,
    "%": _remainder,
    "**": _power,
}
COMPARISONS: Final[Mapping[str, _Binary]] = {
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
    "==": eq,
    "!=": ne,
    "===": eq,
    "!==": ne,
}
STRICT: Final = ("===", "!==")
"""The comparisons that, in JavaScript, never find a number equal to a condition."""
FUNCTIONS: Final[Mapping[str, Function]] = {
    "abs": Function(abs),
    "ceil": Function(lambda number: Fraction(ceil(number))),
    "floor": Function(lambda number: Fraction(floor(number))),
    "max": Function(lambda *numbers: max(numbers), takes_many=True),
    "min": Function(lambda *numbers: min(numbers), takes_many=True),
    # Half up, like the rounding of prices and like JavaScript's Math.round.
    "round": Function(lambda number: Fraction(floor(number + _HALF))),
    "sign": Function(lambda number: Fraction((number > 0) - (number < 0))),
    "trunc": Function(lambda number: Fraction(trunc(number))),
}


class Number(NamedTuple):
    """A number written in the formula."""

    value: Fraction

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:  # noqa: ARG002
        """Return the number."""
        return self.value


class Variable(NamedTuple):
    """A name in braces."""

    name: str

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Return the value that the call gave for this variable."""
        return variables[self.name]


class Arithmetic(NamedTuple):
    """A chain such as ``a + b - c``, kept flat so that a long chain isn't a deep tree."""

    first: Node
    rest: tuple[tuple[_Binary, Node], ...]

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Evaluate from left to right.

        Raises ZeroDivisionError, FractionalExponentError, and OverflowError for a result with too
        many bits.
        """
        value = self.first.evaluate(variables)
        for apply, operand in self.rest:
            value = apply(value, operand.evaluate(variables))
            # One test for both: their bitwise "or" is as long as the longer one.
            if (abs(value.numerator) | value.denominator).bit_length() > MAX_INTERMEDIATE_BITS:
                raise OverflowError
        return value


class Comparison(NamedTuple):
    """A comparison of two operands."""

    compare: _Binary
    left: Node
    right: Node

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Return 1 if the comparison holds, else 0."""
        holds = self.compare(self.left.evaluate(variables), self.right.evaluate(variables))
        return ONE.value if holds else ZERO.value


class Logical(NamedTuple):
    """A chain of ``||`` or ``&&``: the first operand that decides, or else the last."""

    decides: bool
    operands: tuple[Node, ...]

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Return the deciding operand's value, without evaluating the operands after it."""
        for operand in self.operands[:-1]:
            value = operand.evaluate(variables)
            if bool(value) is self.decides:
                return value
        return self.operands[-1].evaluate(variables)


class Conditional(NamedTuple):
    """``condition ? holds : otherwise``."""

    condition: Node
    holds: Node
    otherwise: Node

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Return the chosen branch's value, without evaluating the other branch."""
        chosen = self.holds if self.condition.evaluate(variables) else self.otherwise
        return chosen.evaluate(variables)


class Call(NamedTuple):
    """A function call. No function returns a number with more bits than its arguments."""

    function: Function
    arguments: tuple[Node, ...]

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """Return the function's value for its evaluated arguments."""
        return self.function.apply(*[each.evaluate(variables) for each in self.arguments])


Node: TypeAlias = Number | Variable | Arithmetic | Comparison | Logical | Conditional | Call
ZERO: Final = Number(Fraction(0))
ONE: Final = Number(Fraction(1))


def kinds_of(node: Node) -> frozenset[str]:
    """Return what a node's value is in JavaScript: a "number", a "condition", or maybe both."""
    if isinstance(node, Comparison):
        return frozenset({"condition"})
    if isinstance(node, Logical):
        return frozenset[str]().union(*map(kinds_of, node.operands))
    if isinstance(node, Conditional):
        return kinds_of(node.holds) | kinds_of(node.otherwise)
    return frozenset({"number"})


def value_without_variables(node: Node) -> Fraction | None:
    """Return the value of a node that needs no variables; None if it needs some or has no value."""
    try:
        return node.evaluate({})
    except (KeyError, ArithmeticError):
        return None
