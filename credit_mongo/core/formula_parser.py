"""Parses the text of a formula into a tree. Pure.

The parser is written by hand because no text may make it hang or overflow the stack. pyparsing's
``infix_notation`` with so many levels takes minutes for ``((1))`` unless ``enable_packrat()``
is called, which affects every user of pyparsing in the process. A pyparsing grammar with one rule
per level overflows Python's default stack at 16 nested parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from operator import eq, sub
from typing import Final

from credit_mongo.core.formula_nodes import (
    ARITHMETIC,
    COMPARISONS,
    FUNCTIONS,
    STRICT,
    ZERO,
    Arithmetic,
    Call,
    Comparison,
    Conditional,
    Logical,
    Node,
    Number,
    Variable,
    kinds_of,
    value_without_variables,
)

__all__ = ["NAME", "NAME_RULE", "FormulaSyntaxError", "parse"]

# More than a price needs, yet still readable in an error message.
MAX_TEXT_LENGTH: Final = 1000
# A level takes at most eleven stack frames, so two thirds of Python's 1,000 remain for the caller.
MAX_DEPTH: Final = 32
# Room for every decimal that people write by hand (BSON's Decimal128 has 34 digits).
MAX_NUMBER_DIGITS: Final = 40
# The exponent of 1.5e-07 is -7. Floats range from 5e-324 to 1.8e308. A huge exponent would fill
# the memory with zeros.
MAX_EXPONENT: Final = 400
# A price depends on a handful of variables, such as tokens, seconds and bytes.
MAX_VARIABLES: Final = 50

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
NAME_RULE: Final = "1 to 64 letters, digits and underscores, not starting with a digit"
_EXPONENT = r"(?:[eE][-+]?[0-9]+)?"
# JavaScript's, which people paste from web pages.
_SPACE = "[\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]"
# Matches at every position, so that finditer never skips text.
_TOKEN = re.compile(
    rf"{_SPACE}*(?:(?P<number>(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+){_EXPONENT})"
    rf"|(?P<variable>\{{{NAME.pattern}\}})"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)"
    r"|(?P<comment>//|/\*)"
    r"|(?P<symbol>&&|\|\||[=!]==?|[<>]=|\*\*|[-+*/%<>!?:(),])|(?P<end>\Z)|(?P<unknown>.))",
    re.DOTALL,
)
# Loosest first. Operators of the same level associate to the left. Only ``**`` is tighter, and
# associates to the right: `_Parser.operand` parses it.
_LEVELS: Final = (
    ("||",),
    ("&&",),
    ("==", "!=", "===", "!=="),
    ("<", "<=", ">", ">="),
    ("+", "-"),
    ("*", "/", "%"),
)


_SIGNS: Final = ("!", "-", "+")
# What people write instead of these in other languages, or by a slip.
_INSTEAD: Final = {"=": "compare with == or ===", "&": "write &&", "|": "write ||"}


class FormulaSyntaxError(ValueError):
    """The text is not a formula. ``reason`` says why, ``position`` where (an index from 0).

    The message counts characters from 1, as people do.
    """

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        return f"{self.reason}, at character {self.position + 1}"


def parse(text: str) -> tuple[Node, tuple[str, ...]]:
    """Return the tree of a formula, and its variables in order of appearance.

    Raises FormulaSyntaxError.
    """
    if len(text) > MAX_TEXT_LENGTH:
        raise FormulaSyntaxError(f"more than {MAX_TEXT_LENGTH:,} characters", MAX_TEXT_LENGTH)
    parser = _Parser(text)
    root = parser.conditional()
    if parser.kind != "end":
        raise parser.expected("an operator or the end")
    return root, tuple(parser.variables)


class _Parser:
    """A recursive descent parser for one text.

    It looks one token ahead and never goes back, so its time is linear in the text's length.
    """

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.finditer(text)
        self.variables: dict[str, None] = {}  # a set that keeps the order of appearance
        self.depth = 0
        self.advance()

    def advance(self) -> None:
        """Read the next token. Never called after the end."""
        match = next(self.tokens)
        self.kind = match.lastgroup or ""
        self.word = match[self.kind]
        self.position = match.start(self.kind)
        if self.kind == "comment":
            raise self.refusal("comments are not supported: remove it")
        if self.kind == "unknown":
            if self.word == "{":
                raise self.refusal(f"a variable is {{name}}, with a name of {NAME_RULE}")
            instead = _INSTEAD.get(self.word)
            raise self.refusal(f"unexpected {self.word!r}{f': {instead}' if instead else ''}")

    def refusal(self, reason: str) -> FormulaSyntaxError:
        return FormulaSyntaxError(reason, self.position)

    def expected(self, what: str) -> FormulaSyntaxError:
        found = "the formula ends" if self.kind == "end" else f"found {self.word[:20]!r}"
        return self.refusal(f"expected {what}, but {found}")

    def nested(self, parse: Callable[[], Node]) -> Node:
        """Skip this token and parse what follows, one level deeper."""
        if self.depth == MAX_DEPTH:
            raise self.refusal(
                f"more than {MAX_DEPTH} levels of parentheses, functions, conditions and signs"
            )
        self.advance()
        self.depth += 1
        node = parse()
        self.depth -= 1
        return node

    def conditional(self) -> Node:
        """Parse a chain of operators, or ``condition ? holds : otherwise``."""
        condition = self.chain(0)
        if self.word != "?":
            return condition
        holds = self.nested(self.conditional)
        if self.word != ":":
            raise self.expected("an operator or ':'")
        return Conditional(condition, holds, self.nested(self.conditional))

    def chain(self, level: int) -> Node:
        """Parse operators of this level and their operands, which are of tighter levels."""
        is_tightest = level + 1 == len(_LEVELS)
        first = self.operand() if is_tightest else self.chain(level + 1)
        rest: list[tuple[str, Node]] = []
        while self.word in _LEVELS[level]:
            symbol = self.word
            if rest and symbol in COMPARISONS:
                # In JavaScript, 3 > 2 > 1 is false: 3 > 2 gives 1, and 1 > 1 is false.
                raise self.refusal("comparisons cannot be chained: write {a} < {b} && {b} < {c}")
            position = self.position
            self.advance()
            rest.append((symbol, self.operand() if is_tightest else self.chain(level + 1)))
            if symbol in STRICT:
                self.check_strict(symbol, position, first, rest[-1][1])
        if not rest:
            return first
        symbol, second = rest[0]
        if symbol in COMPARISONS:
            return Comparison(COMPARISONS[symbol], first, second)
        if symbol in ARITHMETIC:
            return Arithmetic(first, tuple((ARITHMETIC[name], node) for name, node in rest))
        return Logical(symbol == "||", (first, *(node for _, node in rest)))

    def check_strict(self, symbol: str, position: int, left: Node, right: Node) -> None:
        """Refuse ``===`` of a number and a condition.

        Here a condition is 1 or 0, and 1 equals 1. In JavaScript, true is not 1.
        """
        kinds = kinds_of(left) | kinds_of(right)
        if len(kinds) > 1:
            raise FormulaSyntaxError(
                f"{symbol} compares a number with a condition, which are never equal in "
                f"JavaScript: write {symbol[:2]}",
                position,
            )

    def operand(self) -> Node:
        """Parse an operand of ``* / %``: a power, or an operand with a sign before it."""
        if self.word == "!":
            return Comparison(eq, self.nested(self.signed), ZERO)
        if self.word == "-":
            return Arithmetic(ZERO, ((sub, self.nested(self.signed)),))
        if self.word == "+":
            return self.nested(self.signed)
        base = self.primary()
        if self.word != "**":
            return base
        position = self.position
        exponent = self.nested(self.operand)
        value = value_without_variables(exponent)
        if value is not None:
            if value.denominator != 1:
                raise FormulaSyntaxError("an exponent of ** must be a whole number", position)
            exponent = Number(value)  # so that nested exponents are computed once
        return Arithmetic(base, ((ARITHMETIC["**"], exponent),))

    def signed(self) -> Node:
        """Parse what follows a sign. Refuse ``-2 ** 2``, as JavaScript does."""
        node = self.operand() if self.word in _SIGNS else self.primary()
        if self.word == "**":
            raise self.refusal("a sign before ** needs parentheses: (-{a}) ** 2 or -({a} ** 2)")
        return node

    def primary(self) -> Node:
        """Parse a number, variable, function or parentheses."""
        node: Node
        if self.kind == "number":
            node = self.number()
        elif self.kind == "variable":
            node = Variable(self.word[1:-1])
            self.variables[node.name] = None
            if len(self.variables) > MAX_VARIABLES:
                raise self.refusal(f"a formula has at most {MAX_VARIABLES} different variables")
        elif self.kind == "name":
            node = self.call()
        elif self.word == "(":
            node = self.nested(self.conditional)
            if self.word != ")":
                raise self.expected("an operator or ')'")
        else:
            raise self.expected("a number, a {variable}, a function or '('")
        self.advance()
        return node

    def number(self) -> Node:
        """Parse a number such as ``10``, ``.5``, ``1.`` or ``1.5e-07``."""
        digits, _, exponent = self.word.lower().partition("e")
        if len(digits.replace(".", "")) > MAX_NUMBER_DIGITS:
            raise self.refusal(f"a number has at most {MAX_NUMBER_DIGITS} digits")
        # Check before the conversion, which would write out all the zeros of 1e999999999.
        if exponent and abs(int(exponent)) > MAX_EXPONENT:
            raise self.refusal(f"an exponent must be from -{MAX_EXPONENT} to {MAX_EXPONENT}")
        return Number(Fraction(self.word))

    def call(self) -> Node:
        """Parse a function and its arguments, up to the closing parenthesis."""
        name = self.word
        function = FUNCTIONS.get(name.removeprefix("Math."))
        if function is None:
            raise self.refusal(
                f"unknown name {name[:20]!r}: write variables in braces, such as {{token}}; "
                f"the functions are {', '.join(FUNCTIONS)}, with Math. before them or without"
            )
        self.advance()
        if self.word != "(":
            raise self.expected(f"'(' after {name}")
        arguments = [self.nested(self.conditional)]
        while self.word == ",":
            if not function.takes_many:
                raise self.refusal(f"{name} takes one number")
            arguments.append(self.nested(self.conditional))
        if self.word != ")":
            what = "an operator, ',' or ')'" if function.takes_many else "an operator or ')'"
            raise self.expected(what)
        return Call(function, tuple(arguments))
