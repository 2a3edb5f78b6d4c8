"""Price formulas: ``{token} * 0.001 + 10``, parsed once, evaluated exactly. Pure.

The language is the Credit SDK's, with the precedence of JavaScript, tightest first::

    ( )  number  {variable}     ! -     * /     + -     < <= > >=     == !=     &&     ||     ? :

Everything is a number. Comparisons and ``!`` give 1 or 0, a condition holds when it is not 0,
``&&`` and ``||`` give the operand that decided, and ``&&``, ``||`` and ``?:`` evaluate only what
they need. Arithmetic is exact: ``0.1 + 0.2`` is 0.3 and ``1 / 3 * 3`` is 1.

The parser is written by hand, as it must neither hang nor overflow the stack on any text. With
pyparsing, ``infix_notation`` of these eight levels takes minutes for ``((1))`` without
``enable_packrat()``, which alters every user of pyparsing in the process; a grammar of one rule per
level needs more than Python's default stack at 16 nested parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from fractions import Fraction
from operator import add, eq, ge, gt, le, lt, mul, ne, sub, truediv
from typing import Any, NamedTuple, TypeAlias

from credit_mongo.errors import FormulaEvaluationError, InvalidRequestError, MissingVariableError

__all__ = ["Formula", "FormulaSyntaxError", "exact_variables", "readable_variables"]

# More than a price needs, and still readable in an error message.
MAX_TEXT_LENGTH = 1000
# A level takes ten stack frames at most, so that two thirds of Python's 1,000 are the caller's.
MAX_DEPTH = 32
# Room for every decimal that one writes by hand (BSON's Decimal128 has 34 digits).
MAX_NUMBER_DIGITS = 40
# A call gives tokens, seconds, bytes: a handful. A formula that names more could never be priced.
MAX_VARIABLES = 50
# Of a variable and of a result: more than any count or price, less than the 2**63 of BSON's int64.
MAX_MAGNITUDE = 10**18
# The float 5e-324 has 324. A Decimal may have any number, and would fill the memory.
MAX_DECIMAL_PLACES = 400
# Fractions grow with each operation; bounded so, the slowest formula takes about 20 milliseconds.
MAX_INTERMEDIATE_BITS = 4096

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAME_RULE = "1 to 64 letters, digits and underscores, no digit first"
# Matches at every position, so that finditer passes over nothing.
_TOKEN = re.compile(
    r"[ \t\r\n]*(?:(?P<number>(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)"
    rf"|(?P<variable>\{{{_NAME.pattern}\}})"
    r"|(?P<symbol>&&|\|\||[<>=!]=|[-+*/<>!?:()])|(?P<end>\Z)|(?P<unknown>.))"
)

_Binary: TypeAlias = Callable[[Any, Any], Any]
_ARITHMETIC: dict[str, _Binary] = {"+": add, "-": sub, "*": mul, "/": truediv}
_COMPARISONS: dict[str, _Binary] = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq, "!=": ne}
# Loosest first; operators of one level associate to the left.
_LEVELS = (("||",), ("&&",), ("==", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/"))


class FormulaSyntaxError(ValueError):
    """The text is not a formula: ``reason`` says why, ``position`` (an index, from 0) where.

    The message counts characters from 1, as people do.
    """

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        return f"{self.reason}, at character {self.position + 1}"


class _Number(NamedTuple):
    value: Fraction

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:  # noqa: ARG002
        return self.value


class _Variable(NamedTuple):
    name: str

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        return variables[self.name]


class _Arithmetic(NamedTuple):
    """A chain such as ``a + b - c``, kept flat so that its length is no depth."""

    first: _Node
    rest: tuple[tuple[_Binary, _Node], ...]

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        value = self.first.evaluate(variables)
        for apply, operand in self.rest:
            value = apply(value, operand.evaluate(variables))
            # One test for both: the union of their bits is as long as the longer one.
            if (abs(value.numerator) | value.denominator).bit_length() > MAX_INTERMEDIATE_BITS:
                raise OverflowError
        return value


class _Comparison(NamedTuple):
    compare: _Binary
    left: _Node
    right: _Node

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        holds = self.compare(self.left.evaluate(variables), self.right.evaluate(variables))
        return _ONE.value if holds else _ZERO.value


class _Logical(NamedTuple):
    """A chain of ``||`` or ``&&``: the first operand that decides, or else the last."""

    decides: bool
    operands: tuple[_Node, ...]

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        for operand in self.operands[:-1]:
            value = operand.evaluate(variables)
            if bool(value) is self.decides:
                return value
        return self.operands[-1].evaluate(variables)


class _Conditional(NamedTuple):
    condition: _Node
    holds: _Node
    otherwise: _Node

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        chosen = self.holds if self.condition.evaluate(variables) else self.otherwise
        return chosen.evaluate(variables)


_Node: TypeAlias = _Number | _Variable | _Arithmetic | _Comparison | _Logical | _Conditional
_ZERO = _Number(Fraction(0))
_ONE = _Number(Fraction(1))


class _Parser:
    """Recursive descent over one text, one token ahead; never goes back, so time is linear."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.finditer(text)
        self.variables: dict[str, None] = {}  # a set that keeps the order of appearance
        self.depth = 0
        self.advance()

    def advance(self) -> None:
        """Read the next token; nothing asks for one after the end."""
        match = next(self.tokens)
        self.kind = match.lastgroup or ""
        self.word = match[self.kind]
        self.position = match.start(self.kind)
        if self.kind == "unknown":
            if self.word == "{":
                raise self.refusal(f"a variable is {{name}}: {_NAME_RULE}")
            if self.word.isalpha() or self.word == "_":
                raise self.refusal("a name stands in braces, as in {token}; there are no functions")
            raise self.refusal(f"unexpected {self.word!r}")

    def refusal(self, reason: str) -> FormulaSyntaxError:
        return FormulaSyntaxError(reason, self.position)

    def expected(self, what: str) -> FormulaSyntaxError:
        found = "the formula ends" if self.kind == "end" else f"found {self.word[:20]!r}"
        return self.refusal(f"expected {what}, but {found}")

    def nested(self, parse: Callable[[], _Node]) -> _Node:
        """What ``parse`` gives after this token, one level deeper."""
        if self.depth == MAX_DEPTH:
            raise self.refusal(f"more than {MAX_DEPTH} levels of parentheses, conditions and signs")
        self.advance()
        self.depth += 1
        node = parse()
        self.depth -= 1
        return node

    def conditional(self) -> _Node:
        """A chain of operators, or ``condition ? holds : otherwise``."""
        condition = self.chain(0)
        if self.word != "?":
            return condition
        holds = self.nested(self.conditional)
        if self.word != ":":
            raise self.expected("an operator or ':'")
        return _Conditional(condition, holds, self.nested(self.conditional))

    def chain(self, level: int) -> _Node:
        """Operators of this level between operands of the tighter ones."""
        if level == len(_LEVELS):
            return self.operand()
        first = self.chain(level + 1)
        rest: list[tuple[str, _Node]] = []
        while self.word in _LEVELS[level]:
            symbol = self.word
            if rest and symbol in _COMPARISONS:
                # In JavaScript 3 > 2 > 1 is false: it compares the 1 of 3 > 2 with 1.
                raise self.refusal("comparisons cannot be chained: write {a} < {b} && {b} < {c}")
            self.advance()
            rest.append((symbol, self.chain(level + 1)))
        if not rest:
            return first
        symbol, second = rest[0]
        if symbol in _COMPARISONS:
            return _Comparison(_COMPARISONS[symbol], first, second)
        if symbol in _ARITHMETIC:
            return _Arithmetic(first, tuple((_ARITHMETIC[name], node) for name, node in rest))
        return _Logical(symbol == "||", (first, *(node for _, node in rest)))

    def operand(self) -> _Node:
        """A number, a variable or parentheses, perhaps with ``!`` or ``-`` before it."""
        node: _Node
        if self.word == "!":
            return _Comparison(eq, self.nested(self.operand), _ZERO)
        if self.word == "-":
            return _Arithmetic(_ZERO, ((sub, self.nested(self.operand)),))
        if self.kind == "number":
            if len(self.word.replace(".", "")) > MAX_NUMBER_DIGITS:
                raise self.refusal(f"a number has at most {MAX_NUMBER_DIGITS} digits")
            node = _Number(Fraction(self.word))
        elif self.kind == "variable":
            node = _Variable(self.word[1:-1])
            self.variables[node.name] = None
            if len(self.variables) > MAX_VARIABLES:
                raise self.refusal(f"a formula has at most {MAX_VARIABLES} different variables")
        elif self.word == "(":
            node = self.nested(self.conditional)
            if self.word != ")":
                raise self.expected("an operator or ')'")
        else:
            raise self.expected("a number, a {variable} or '('")
        self.advance()
        return node


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed price formula; immutable, and safe to share between threads. Use :meth:`parse`.

    ``text`` is the formula as written, ``variables`` the names in it, each once, in order of
    appearance. Formulas are equal when their texts are; a pickle holds the text alone.
    """

    text: str
    variables: tuple[str, ...] = field(compare=False)
    _root: _Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Parse a formula of at most 1,000 characters, 32 levels deep, with 50 variables.

        Raises FormulaSyntaxError if the text is not a formula, or beyond these limits.
        """
        if len(text) > MAX_TEXT_LENGTH:
            raise FormulaSyntaxError(f"more than {MAX_TEXT_LENGTH:,} characters", MAX_TEXT_LENGTH)
        parser = _Parser(text)
        root = parser.conditional()
        if parser.kind != "end":
            raise parser.expected("an operator or the end")
        return cls(text, tuple(parser.variables), root)

    def __reduce__(self) -> tuple[Callable[[str], Formula], tuple[str]]:
        return Formula.parse, (self.text,)

    def evaluate(self, variables: Mapping[str, Fraction]) -> Fraction:
        """The exact value, in credits: not rounded, possibly negative, within ±10**18.

        ``variables`` comes from :func:`exact_variables`; names that the formula lacks are ignored.

        Raises MissingVariableError if any variable of the formula is not given, be it in a branch
        not taken, and FormulaEvaluationError for a division by zero, a result beyond ±10**18 or an
        intermediate one of more than 4,096 bits. That error's ``variables`` are the given ones as
        ``int``, or ``Decimal`` (to 34 digits) where they are not whole.
        """
        for name in self.variables:
            if name not in variables:
                raise MissingVariableError(self.text, name, sorted(variables))
        try:
            value = self._root.evaluate(variables)
        except ZeroDivisionError:
            cause = "division by zero"
        except OverflowError:
            cause = f"an intermediate result needs more than {MAX_INTERMEDIATE_BITS:,} bits"
        else:
            if abs(value.numerator) <= MAX_MAGNITUDE * value.denominator:
                return value
            cause = "the result is beyond ±10**18"
        # Raised here, not above: ZeroDivisionError's message has values, and would be the context.
        raise FormulaEvaluationError(self.text, readable_variables(variables), cause)


def readable_variables(variables: Mapping[str, Fraction]) -> dict[str, int | Decimal]:
    """Exact variables as people write them: ``int``, or ``Decimal`` to 34 digits."""
    context = Context(prec=34)
    return {
        name: number.numerator
        if number.denominator == 1
        else context.divide(number.numerator, number.denominator)
        for name, number in variables.items()
    }


def exact_variables(variables: object) -> dict[str, Fraction]:
    """The variables of a call, checked and exact, for :meth:`Formula.evaluate`.

    ``variables`` is a mapping of at most 50 names (1 to 64 ASCII letters, digits and underscores,
    no digit first) to ``int``, ``float`` or ``Decimal`` (not ``bool``) within ±10**18, with at most
    400 decimal places. A float is the decimal number that it prints as: 0.1 is 1/10.

    Raises InvalidRequestError, of the field ``variables.NAME`` where a value is wrong and else of
    ``variables``. No value is in its message.
    """
    if not isinstance(variables, Mapping):
        raise InvalidRequestError("variables", "must be a mapping of names to numbers")
    if len(variables) > MAX_VARIABLES:
        raise InvalidRequestError("variables", f"at most {MAX_VARIABLES} can be given")
    exact: dict[str, Fraction] = {}
    for name, value in variables.items():
        # A name that is none stays out of the message: it may be anything.
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise InvalidRequestError("variables", f"a name is {_NAME_RULE}")
        try:
            exact[name] = _exact(value)
        except ValueError as error:
            raise InvalidRequestError(f"variables.{name}", str(error)) from None
    return exact


def _exact(value: object) -> Fraction:
    """The number; ``ValueError`` says why it is none, without its value."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"must be an int, a float or a Decimal, not {type(value).__name__}")  # noqa: TRY004
    if isinstance(value, int):
        number = Fraction(value)
    else:
        # float's own repr, as subclasses (NumPy's float64) print theirs with a type name.
        decimal = value if isinstance(value, Decimal) else Decimal(float.__repr__(value))
        if not decimal.is_finite():
            raise ValueError("must be a finite number")
        # Before the conversion, which would write out all the zeros of 1e999999 and 1e-999999.
        places = -int(decimal.as_tuple().exponent)
        if max(decimal.adjusted(), places) > MAX_DECIMAL_PLACES:
            raise ValueError(f"must be within ±10**18, with at most {MAX_DECIMAL_PLACES} places")
        number = Fraction(*decimal.as_integer_ratio())
    if abs(number.numerator) > MAX_MAGNITUDE * number.denominator:
        raise ValueError("must be within ±10**18")
    return number
