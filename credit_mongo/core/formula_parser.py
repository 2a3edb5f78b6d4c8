"""From the text of a formula to its tree. Pure.

The parser is written by hand, as it must neither hang nor overflow the stack on any text. With
pyparsing, ``infix_notation`` of these eight levels takes minutes for ``((1))`` without
``enable_packrat()``, which alters every user of pyparsing in the process; a grammar of one rule per
level needs more than Python's default stack at 16 nested parentheses.
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
    ZERO,
    Arithmetic,
    Call,
    Comparison,
    Conditional,
    Logical,
    Node,
    Number,
    Variable,
)

__all__ = ["NAME", "NAME_RULE", "FormulaSyntaxError", "parse"]

# More than a price needs, and still readable in an error message.
MAX_TEXT_LENGTH: Final = 1000
# A level takes eleven stack frames at most, so that two thirds of Python's 1,000 are the caller's.
MAX_DEPTH: Final = 32
# Room for every decimal that one writes by hand (BSON's Decimal128 has 34 digits).
MAX_NUMBER_DIGITS: Final = 40
# Of 1.5e-07 it is -7. Floats go from 5e-324 to 1.8e308; what is longer would fill the memory.
MAX_EXPONENT: Final = 400
# A call gives tokens, seconds, bytes: a handful. A formula that names more could never be priced.
MAX_VARIABLES: Final = 50

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
NAME_RULE: Final = "1 to 64 letters, digits and underscores, no digit first"
_EXPONENT = r"(?:[eE][-+]?[0-9]+)?"
# Matches at every position, so that finditer passes over nothing.
_TOKEN = re.compile(
    rf"[ \t\r\n]*(?:(?P<number>(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+){_EXPONENT})"
    rf"|(?P<variable>\{{{NAME.pattern}\}})"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)"
    r"|(?P<symbol>&&|\|\||[<>=!]=|[-+*/%<>!?:(),])|(?P<end>\Z)|(?P<unknown>.))"
)
# Loosest first; operators of one level associate to the left.
_LEVELS: Final = (
    ("||",),
    ("&&",),
    ("==", "!="),
    ("<", "<=", ">", ">="),
    ("+", "-"),
    ("*", "/", "%"),
)


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


def parse(text: str) -> tuple[Node, tuple[str, ...]]:
    """The tree of a formula, and its variables in order of appearance.

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
                raise self.refusal(f"a variable is {{name}}: {NAME_RULE}")
            raise self.refusal(f"unexpected {self.word!r}")

    def refusal(self, reason: str) -> FormulaSyntaxError:
        return FormulaSyntaxError(reason, self.position)

    def expected(self, what: str) -> FormulaSyntaxError:
        found = "the formula ends" if self.kind == "end" else f"found {self.word[:20]!r}"
        return self.refusal(f"expected {what}, but {found}")

    def nested(self, parse: Callable[[], Node]) -> Node:
        """What ``parse`` gives after this token, one level deeper."""
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
        """A chain of operators, or ``condition ? holds : otherwise``."""
        condition = self.chain(0)
        if self.word != "?":
            return condition
        holds = self.nested(self.conditional)
        if self.word != ":":
            raise self.expected("an operator or ':'")
        return Conditional(condition, holds, self.nested(self.conditional))

    def chain(self, level: int) -> Node:
        """Operators of this level between operands of the tighter ones."""
        if level == len(_LEVELS):
            return self.operand()
        first = self.chain(level + 1)
        rest: list[tuple[str, Node]] = []
        while self.word in _LEVELS[level]:
            symbol = self.word
            if rest and symbol in COMPARISONS:
                # In JavaScript 3 > 2 > 1 is false: it compares the 1 of 3 > 2 with 1.
                raise self.refusal("comparisons cannot be chained: write {a} < {b} && {b} < {c}")
            self.advance()
            rest.append((symbol, self.chain(level + 1)))
        if not rest:
            return first
        symbol, second = rest[0]
        if symbol in COMPARISONS:
            return Comparison(COMPARISONS[symbol], first, second)
        if symbol in ARITHMETIC:
            return Arithmetic(first, tuple((ARITHMETIC[name], node) for name, node in rest))
        return Logical(symbol == "||", (first, *(node for _, node in rest)))

    def operand(self) -> Node:
        """A number, a variable, a function or parentheses, perhaps with ``! - +`` before it."""
        node: Node
        if self.word == "!":
            return Comparison(eq, self.nested(self.operand), ZERO)
        if self.word == "-":
            return Arithmetic(ZERO, ((sub, self.nested(self.operand)),))
        if self.word == "+":
            return self.nested(self.operand)
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
        """A number as people and programs write it: ``10``, ``.5``, ``1.``, ``1.5e-07``."""
        digits, _, exponent = self.word.lower().partition("e")
        if len(digits.replace(".", "")) > MAX_NUMBER_DIGITS:
            raise self.refusal(f"a number has at most {MAX_NUMBER_DIGITS} digits")
        # Before the conversion, which would write out all the zeros of 1e999999999.
        if exponent and abs(int(exponent)) > MAX_EXPONENT:
            raise self.refusal(f"an exponent is from -{MAX_EXPONENT} to {MAX_EXPONENT}")
        return Number(Fraction(self.word))

    def call(self) -> Node:
        """A function and its arguments, up to the closing parenthesis."""
        name = self.word
        function = FUNCTIONS.get(name)
        if function is None:
            raise self.refusal(
                f"unknown name {name[:20]!r}: a variable stands in braces, as in {{token}}, "
                f"and the functions are {', '.join(FUNCTIONS)}"
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
