"""Price formulas: their language, exactness and limits."""

from __future__ import annotations

import copy
import pickle
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from credit_mongo.core.formula import Formula, FormulaSyntaxError
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    FormulaEvaluationError,
    MissingVariableError,
)


def value_of(text: str, **variables: object) -> Fraction:
    """Return the formula's value for these variables."""
    return Formula.parse(text).evaluate(exact_variables(variables))


# --- The language ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{token} * 0.001 + 10", "11.5"),
        ("10", "10"),
        ("0", "0"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("{token}", "1500"),
        ("-{token}", "-1500"),
        ("(({token}))", "1500"),
        ("\t{token}\r\n+ 1 ", "1501"),
        ("1+2-3*4/5", "0.6"),
        ("!0", "1"),
        ("!7", "0"),
        ("!!7", "1"),
        ("1 < 2", "1"),
        ("2 < 2", "0"),
        ("2 <= 2", "1"),
        ("3 <= 2", "0"),
        ("3 > 2", "1"),
        ("2 > 2", "0"),
        ("2 >= 2", "1"),
        ("1 >= 2", "0"),
        ("2 == 2.0", "1"),
        ("2 == 3", "0"),
        ("2 != 3", "1"),
        ("2 != 2", "0"),
        ("0 || 5", "5"),
        ("3 || 5", "3"),
        ("0 || 0", "0"),
        ("0 || 0 || 4 || 1/0", "4"),
        ("3 && 5", "5"),
        ("0 && 5", "0"),
        ("3 && 4 && 5", "5"),
        ("3 && 0 && 1/0", "0"),
        ("2 ? 3 : 4", "3"),
        ("0 ? 3 : 4", "4"),
        ("-1 ? 3 : 4", "3"),
        ("{token} > 1000 ? {token} * 0.002 : {token} * 0.001", "3"),
        ("1.", "1"),
        ("1. + .5", "1.5"),
        ("1.5e-07", "0.00000015"),
        ("1E3", "1000"),
        ("1e+3", "1000"),
        ("1.e2", "100"),
        (".5e1", "5"),
        ("0e9", "0"),
        ("5e-324", "5e-324"),
        ("{token} * 2.8e-07", "0.00042"),
        ("{token}-1e-1", "1499.9"),
        ("+5", "5"),
        ("1 + + 1", "2"),
        ("-+-{token}", "1500"),
        ("7 % 2", "1"),
        ("-7 % 3", "-1"),
        ("7 % -3", "1"),
        ("7.5 % 2", "1.5"),
        ("{token} % 0.4", "0"),
        ("ceil(1.2)", "2"),
        ("ceil(-1.2)", "-1"),
        ("ceil({token} / 1000) * 1000", "2000"),
        ("floor(1.8)", "1"),
        ("floor(-1.2)", "-2"),
        ("round(2.4999)", "2"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-2"),
        ("round(-2.6)", "-3"),
        ("abs(-1.5)", "1.5"),
        ("abs(1.5)", "1.5"),
        ("min(3, 1, 2)", "1"),
        ("max(3)", "3"),
        ("max({token} * 1e-6, 0.01)", "0.01"),
        ("max (1, 1 ? 2 : 3)", "2"),
        ("ceil(floor(2.5) / max(2, min(4, 9)))", "1"),
        ("Math.ceil(1.2)", "2"),
        ("Math.floor(-1.2)", "-2"),
        ("Math.round(2.5) + Math.round(-2.5)", "1"),
        ("Math.abs(-1) + Math.sign(-9) + Math.trunc(-1.9)", "-1"),
        ("Math.max(Math.min(3, 2), 1)", "2"),
        ("sign(0) + sign(0.1)", "1"),
        ("trunc(-1.9) + trunc(1.9)", "0"),
        ("{token} === 1500 ? 5 : 7", "5"),
        ("{token} === 1 ? 5 : 7", "7"),
        ("{token} !== 1 ? 5 : 7", "5"),
        ("{token} !== 1500", "0"),
        ("0.1 + 0.2 === 0.3", "1"),
        ("({token} > 1) === ({token} > 2)", "1"),
        ("!{token} !== ({token} < 2)", "0"),
        ("({token} > 1 ? 3 : 4) === ({token} && 3)", "1"),
        ("{token} ** 2", "2250000"),
        ("2 ** 3 ** 2", "512"),
        ("2 ** -2", "0.25"),
        ("0.1 ** 3", "0.001"),
        ("(-2) ** 3", "-8"),
        ("0 ** 0", "1"),
        ("0 ** 5", "0"),
        ("2 ** (1 / 0.5)", "4"),
        ("2 ** !0", "2"),
        ("1 ** 1e300", "1"),
        ("(-1) ** (1e300 + 1)", "-1"),
        ("1.05 ** 24 > 3.225", "1"),
        ("\u00a0{token}\ufeff+\u20091\u2028", "1501"),
    ],
)
def test_gives_the_value(text: str, expected: str) -> None:
    """Every operator, literal form and kind of space gives its documented value."""
    assert value_of(text, token=1500) == Fraction(expected)


@pytest.mark.parametrize(
    ("text", "same_as", "not_as"),
    [
        ("-2 + 3", "(-2) + 3", "-(2 + 3)"),
        ("!0 + 1", "(!0) + 1", "!(0 + 1)"),
        ("!2 == 2", "(!2) == 2", "!(2 == 3)"),
        ("!0 * 5", "(!0) * 5", "!(0 * 5)"),
        ("2 + 3 * 4", "2 + (3 * 4)", "(2 + 3) * 4"),
        ("8 - 6 / 2", "8 - (6 / 2)", "(8 - 6) / 2"),
        ("10 - 4 - 3", "(10 - 4) - 3", "10 - (4 - 3)"),
        ("10 - 4 + 3", "(10 - 4) + 3", "10 - (4 + 3)"),
        ("24 / 4 / 2", "(24 / 4) / 2", "24 / (4 / 2)"),
        ("24 / 4 * 2", "(24 / 4) * 2", "24 / (4 * 2)"),
        ("7 + 5 % 3", "7 + (5 % 3)", "(7 + 5) % 3"),
        ("2 * 7 % 4", "(2 * 7) % 4", "2 * (7 % 4)"),
        ("7 % 4 * 2", "(7 % 4) * 2", "7 % (4 * 2)"),
        ("3 * 2 ** 2", "3 * (2 ** 2)", "(3 * 2) ** 2"),
        ("2 ** 3 ** 2", "2 ** (3 ** 2)", "(2 ** 3) ** 2"),
        ("2 ** -1 * 4", "(2 ** (-1)) * 4", "2 ** (-1 * 4)"),
        ("2 ** 2 % 3", "(2 ** 2) % 3", "2 ** (2 % 3)"),
        ("1 < 3 === 1 > 3", "(1 < 3) === (1 > 3)", "1"),
        ("1 && 2 === 2", "1 && (2 === 2)", "2"),
        ("-7 % 4", "(-7) % 4", "1"),
        ("1 + 2 < 2", "(1 + 2) < 2", "1 + (2 < 2)"),
        ("5 - 1 > 3", "(5 - 1) > 3", "5 - (1 > 3)"),
        ("2 == 1 < 3", "2 == (1 < 3)", "(2 == 1) < 3"),
        ("0 != 3 >= 4", "0 != (3 >= 4)", "(0 != 3) >= 1"),
        ("2 && 3 == 3", "2 && (3 == 3)", "(2 && 3) == 2"),
        ("1 || 0 && 0", "1 || (0 && 0)", "(1 || 0) && 0"),
        ("0 && 0 || 1", "(0 && 0) || 1", "0 && (0 || 1)"),
        ("1 || 0 ? 2 : 3", "(1 || 0) ? 2 : 3", "1 || (0 ? 2 : 3)"),
        ("1 ? 2 : 0 || 3", "1 ? 2 : (0 || 3)", "(1 ? 0 : 2) || 3"),
        ("1 ? 2 : 3 + 4", "1 ? 2 : (3 + 4)", "(1 ? 2 : 3) + 4"),
        ("1 ? 2 : 0 ? 3 : 4", "1 ? 2 : (0 ? 3 : 4)", "(1 ? 2 : 0) ? 3 : 4"),
        ("0 ? 1 ? 2 : 3 : 4", "0 ? (1 ? 2 : 3) : 4", "0 ? 1 : (2 ? 3 : 4)"),
    ],
)
def test_binds_as_in_javascript(text: str, same_as: str, not_as: str) -> None:
    """Precedence and associativity are JavaScript's, in cases where another reading differs."""
    assert value_of(text) == value_of(same_as) != value_of(not_as)


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "expected a number, a {variable}, a function or '(', but the formula ends"),
        ("   ", 3, "but the formula ends"),
        ("1 +", 3, "but the formula ends"),
        ("+", 1, "but the formula ends"),
        ("* 2", 0, "found '*'"),
        ("2 * * 3", 4, "found '*'"),
        ("2 **", 4, "but the formula ends"),
        ("2 *** 3", 4, "found '*'"),
        ("-2 ** 2", 3, "a sign before ** needs parentheses: (-{a}) ** 2 or -({a} ** 2)"),
        ("+2 ** 2", 3, "a sign before ** needs parentheses"),
        ("!2 ** 2", 3, "a sign before ** needs parentheses"),
        ("--{a} ** 2", 6, "a sign before ** needs parentheses"),
        ("2 ** -1 ** 2", 8, "a sign before ** needs parentheses"),
        ("-(2) ** 2", 5, "a sign before ** needs parentheses"),
        ("{a} ** 0.5", 4, "an exponent of ** must be a whole number"),
        ("2 ** (1 / 2)", 2, "an exponent of ** must be a whole number"),
        ("7 % % 2", 4, "found '%'"),
        ("1 ==== 1", 5, "unexpected '='"),
        ("1 => 1", 2, "unexpected '=': compare with == or ==="),
        ("({a} > 1) === 1", 10, "=== compares a number with a condition, which are never equal"),
        ("2 !== !{a}", 2, "!== compares a number with a condition"),
        ("({a} > 1 && 5) === 5", 15, "never equal in JavaScript: write =="),
        ("({a} ? 1 : {a} > 2) !== 5", 20, "write !="),
        ("1 === 1 === 1", 8, "comparisons cannot be chained"),
        ("{a} = 1", 4, "unexpected '=': compare with == or ==="),
        ("{a} // note", 4, "comments are not supported"),
        ("{a} /* note */", 4, "comments are not supported"),
        ("1 & 1", 2, "unexpected '&': write &&"),
        ("1 | 1", 2, "unexpected '|': write ||"),
        ("1 ^ 1", 2, "unexpected '^'"),
        ("~1", 0, "unexpected '~'"),
        ("1 ?? 2", 3, "found '?'"),
        ("1, 2", 1, "found ','"),
        ("(1, 2)", 2, "found ','"),
        ("1; 2", 1, "unexpected ';'"),
        ("'a'", 0, 'unexpected "\'"'),
        ("[1]", 0, "unexpected '['"),
        ("1\x00", 1, "unexpected '\\x00'"),
        ("1\u200b+ 1", 1, "unexpected '\\u200b'"),
        ("\u0663", 0, "unexpected '\u0663'"),
        ("token * 2", 0, "unknown name 'token': write variables in braces, such as {token}"),
        ("1 + _a", 4, "unknown name '_a'"),
        ("sqrt(4)", 0, "the functions are abs, ceil, floor, max, min, round, sign, trunc"),
        ("Ceil(1)", 0, "unknown name 'Ceil'"),
        ("Math.sqrt(4)", 0, "unknown name 'Math.sqrt'"),
        ("Math.PI", 0, "unknown name 'Math.PI'"),
        ("math.ceil(1)", 0, "unknown name 'math.ceil'"),
        ("Math.Math.ceil(1)", 0, "unknown name 'Math.Math.ceil'"),
        ("Math .ceil(1)", 0, "unknown name 'Math'"),
        ("Math.ceil", 9, "expected '(' after Math.ceil, but the formula ends"),
        ("max.of(1)", 0, "unknown name 'max.of'"),
        ("inf", 0, "unknown name 'inf'"),
        ("nan", 0, "unknown name 'nan'"),
        ("max", 3, "expected '(' after max, but the formula ends"),
        ("max * 2", 4, "expected '(' after max, but found '*'"),
        ("max()", 4, "found ')'"),
        ("max(1,)", 6, "found ')'"),
        ("max(,1)", 4, "found ','"),
        ("max(1 2)", 6, "expected an operator, ',' or ')', but found '2'"),
        ("max(1", 5, "expected an operator, ',' or ')', but the formula ends"),
        ("ceil(1, 2)", 6, "ceil takes one number"),
        ("ceil(1", 6, "expected an operator or ')', but the formula ends"),
        ("ceil{a}", 4, "expected '(' after ceil, but found '{a}'"),
        ("2 max(1)", 2, "expected an operator or the end, but found 'max'"),
        ("{a}(2)", 3, "expected an operator or the end, but found '('"),
        ("{a}.real", 3, "unexpected '.'"),
        ("{}", 0, "a variable is {name}"),
        ("{ a }", 0, "a variable is {name}"),
        ("{1a}", 0, "a variable is {name}"),
        ("{a-b}", 0, "a variable is {name}"),
        ("{a", 0, "a variable is {name}"),
        ("{é}", 0, "a variable is {name}"),
        ("{{a}}", 0, "a variable is {name}"),
        ("${a}", 0, "unexpected '$'"),
        ("1 }", 2, "unexpected '}'"),
        ("2 + {" + "a" * 65 + "}", 4, "1 to 64 letters"),
        (".", 0, "unexpected '.'"),
        ("1..", 2, "unexpected '.'"),
        ("1e", 1, "found 'e'"),
        ("1e-", 1, "found 'e'"),
        ("1e5.5", 3, "found '.5'"),
        ("e5", 0, "unknown name 'e5'"),
        ("1e{a}", 1, "found 'e'"),
        ("0x10", 1, "found 'x10'"),
        ("1_000", 1, "found '_000'"),
        ("1,000", 1, "found ','"),
        ("1e401", 0, "an exponent must be from -400 to 400"),
        ("2 + 1e-401", 4, "an exponent must be from -400 to 400"),
        ("0e999999999999", 0, "an exponent must be from -400 to 400"),
        ("010", 1, "expected an operator or the end, but found '10'"),
        ("1.2.3", 3, "found '.3'"),
        ("1 2", 2, "found '2'"),
        ("{a} {b}", 4, "found '{b}'"),
        ("()", 1, "expected a number"),
        ("(1", 2, "expected an operator or ')', but the formula ends"),
        ("(1 + 2 3)", 7, "expected an operator or ')', but found '3'"),
        ("1)", 1, "expected an operator or the end, but found ')'"),
        ("(1))", 3, "found ')'"),
        ("1 ? 2", 5, "expected an operator or ':', but the formula ends"),
        ("1 ? : 2", 4, "found ':'"),
        ("1 : 2", 2, "found ':'"),
        ("1 ? 2 : 3 : 4", 10, "found ':'"),
        ("!", 1, "but the formula ends"),
        ("1 < 2 < 3", 6, "comparisons cannot be chained"),
        ("1 < 2 >= 3", 6, "comparisons cannot be chained"),
        ("1 == 2 == 3", 7, "comparisons cannot be chained"),
        ("1 == 2 != 3", 7, "comparisons cannot be chained"),
    ],
)
def test_refuses_text_that_is_not_a_formula(text: str, position: int, reason: str) -> None:
    """Text outside the language is refused, and the error says where and why."""
    with pytest.raises(FormulaSyntaxError) as caught:
        Formula.parse(text)
    assert caught.value.position == position
    assert reason in caught.value.reason
    assert str(caught.value) == f"{caught.value.reason}, at character {position + 1}"


def test_compares_comparisons_in_parentheses() -> None:
    """Parentheses or ``&&`` express what chained comparisons would mean."""
    assert value_of("(3 > 2) > 1") == 0
    assert value_of("3 > 2 && 2 > 1") == 1
    assert value_of("1 < 2 == 3 < 4") == 1


def test_lists_variables_once_in_order_of_appearance() -> None:
    """``variables`` has each name once, in the order of the text. ``text`` is unchanged."""
    formula = Formula.parse(" {b} + {a} * {b} - {_c9}")
    assert formula.variables == ("b", "a", "_c9")
    assert formula.text == " {b} + {a} * {b} - {_c9}"
    assert Formula.parse("1").variables == ()


# --- Random expressions ---------------------------------------------------------------------------

Tree = tuple[Any, ...]
VARIABLES: dict[str, int | Decimal] = {"a": 3, "b": Decimal("0.25"), "zero": 0, "long_name_2": -7}
COMPARISONS = {"<", "<=", ">", ">=", "==", "!=", "===", "!=="}
STRICT = {"===", "!=="}
FUNCTIONS = ["abs", "ceil", "floor", "round", "sign", "trunc", "max", "min", "Math.ceil"]
# How tightly the root of a tree binds; leaves bind tightest. A sign can't be before a power, so
# a power is looser.
TIGHTNESS = {
    "?": 0, "||": 1, "&&": 2, "==": 3, "!=": 3, "===": 3, "!==": 3, "<": 4, "<=": 4, ">": 4,
    ">=": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6, "**": 6.5, "negative": 7, "positive": 7,
    "!": 7, "leaf": 8, **dict.fromkeys(FUNCTIONS, 8),
}  # fmt: skip
SIGNS = {"negative": "-", "positive": "+", "!": "!"}
BINARY = [name for name, tightness in TIGHTNESS.items() if 0 < tightness < 6.5]

leaves = st.one_of(
    st.sampled_from([f"{{{name}}}" for name in VARIABLES]),
    st.sampled_from(["0", "1", "0.1", ".5", "1000000000", "1.", "2.5e-07", "1E3"]),
    st.integers(0, 99).map(str),
).map(lambda text: ("leaf", text))
exponents = st.one_of(
    st.sampled_from(["0", "1", "2", "{a}", "{zero}", "{long_name_2}"]).map(lambda t: ("leaf", t)),
    st.sampled_from(["1", "2"]).map(lambda text: ("negative", ("leaf", text))),
    st.tuples(st.just("**"), st.just(("leaf", "2")), st.just(("leaf", "3"))),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(BINARY), inner, inner),
        st.tuples(st.just("**"), inner, exponents),
        st.tuples(st.sampled_from([*SIGNS, *FUNCTIONS]), inner),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner, inner),
        st.tuples(st.just("?"), inner, inner, inner),
    ),
    max_leaves=16,
)


def kinds(tree: Tree) -> set[str]:
    """Return what the tree may be in JavaScript: a number, a condition, or both."""
    kind, *parts = tree
    if kind in COMPARISONS or kind == "!":
        return {"condition"}
    if kind in ("||", "&&", "?"):
        return kinds(parts[-2]) | kinds(parts[-1])
    return {"number"}


def is_ever_unequal(tree: Tree) -> bool:
    """Whether a strict comparison in the tree compares a number with a condition."""
    kind, *parts = tree
    if kind == "leaf":
        return False
    if kind in STRICT and len(kinds(parts[0]) | kinds(parts[1])) > 1:
        return True
    return any(map(is_ever_unequal, parts))


def render(tree: Tree, space: str, *, fully: bool) -> str:
    """Write the tree as text, with all possible parentheses or only those it needs."""
    kind, *parts = tree
    own = TIGHTNESS[kind]

    def part(index: int, least: float) -> str:
        text = render(parts[index], space, fully=fully)
        return f"({text})" if fully or TIGHTNESS[parts[index][0]] < least else text

    if kind == "leaf":
        return str(parts[0])
    if kind in FUNCTIONS:
        arguments = [part(index, 0) for index in range(len(parts))]
        return f"{kind}{space}({f'{space},{space}'.join(arguments)})"
    if kind in SIGNS:
        return f"{SIGNS[kind]}{space}{part(0, own)}"
    if kind == "?":
        return space.join([part(0, own + 1), "?", part(1, own), ":", part(2, own)])
    if kind == "**":
        return space.join([part(0, TIGHTNESS["leaf"]), kind, part(1, own)])
    left_least = own + 1 if kind in COMPARISONS else own
    return space.join([part(0, left_least), kind, part(1, own + 0.5)])


def bounded(value: Fraction) -> Fraction:
    """Return the value. Raises OverflowError for too many bits."""
    if max(abs(value.numerator), value.denominator).bit_length() > 4096:
        raise OverflowError
    return value


def calculate(tree: Tree) -> Fraction:  # noqa: C901, PLR0911, PLR0912
    """Compute the tree's value from its definition, not from any text."""
    kind, *parts = tree
    match kind:
        case "leaf":
            text: str = parts[0]
            return Fraction(VARIABLES[text[1:-1]] if text.startswith("{") else text)
        case "?":
            return calculate(parts[1]) if calculate(parts[0]) != 0 else calculate(parts[2])
        case "||":
            return calculate(parts[0]) or calculate(parts[1])
        case "&&":
            return calculate(parts[0]) and calculate(parts[1])
    values = [calculate(part) for part in parts]
    match kind:
        case "!":
            return Fraction(values[0] == 0)
        case "negative":
            return bounded(-values[0])
        case "positive":
            return values[0]
        case "abs":
            return max(values[0], -values[0])
        case "floor":
            return Fraction(values[0] // 1)
        case "ceil" | "Math.ceil":
            return Fraction(-(-values[0] // 1))
        case "trunc":
            return Fraction(int(values[0]))
        case "sign":
            return Fraction(0 if values[0] == 0 else values[0] / abs(values[0]))
        case "round":
            return Fraction((2 * values[0] + 1) // 2)
        case "max" | "min":
            return sorted(values)[-1 if kind == "max" else 0]
        case "+":
            return bounded(values[0] + values[1])
        case "-":
            return bounded(values[0] - values[1])
        case "*":
            return bounded(values[0] * values[1])
        case "/":
            return bounded(values[0] / values[1])
        case "%":
            # JavaScript's remainder: it has the dividend's sign.
            rest = abs(values[0]) % abs(values[1])
            return bounded(rest if values[0] > 0 else -rest)
        case "**":
            # Exponents are small here.
            return bounded(Fraction(values[0] ** int(values[1])))
    order = (values[0] > values[1]) - (values[0] < values[1])
    holding = {"<": {-1}, "<=": {-1, 0}, ">": {1}, ">=": {0, 1}, "==": {0}, "!=": {-1, 1}}
    return Fraction(order in holding[kind.replace("===", "==").replace("!==", "!=")])


@given(trees, st.sampled_from(["", " ", "\n\t "]), st.booleans())
def test_any_expression_means_what_its_tree_means(tree: Tree, space: str, fully: bool) -> None:
    """Random expressions, with all or only the needed parentheses, equal their tree's value."""
    text = render(tree, space, fully=fully)
    assume(len(text) <= 1000)
    if is_ever_unequal(tree):
        with pytest.raises(FormulaSyntaxError, match="never equal in JavaScript"):
            Formula.parse(text)
        return
    formula = Formula.parse(text)
    variables = exact_variables(VARIABLES)
    try:
        expected = calculate(tree)
    except ZeroDivisionError:
        with pytest.raises(FormulaEvaluationError, match="division by zero"):
            formula.evaluate(variables)
    except OverflowError:
        with pytest.raises(FormulaEvaluationError, match="4,096 bits"):
            formula.evaluate(variables)
    else:
        assume(abs(expected) <= 10**18)
        assert formula.evaluate(variables) == expected


@given(st.text(alphabet="(){}abc019.e +-*/<>=!&|?:%,maxilMth", max_size=60) | st.text(max_size=20))
def test_any_text_is_a_formula_or_a_syntax_error(text: str) -> None:
    """No text raises anything but FormulaSyntaxError, with a position in or just after it."""
    refused_at = None
    try:
        Formula.parse(text)
    except FormulaSyntaxError as error:
        refused_at = error.position
    assert refused_at is None or 0 <= refused_at <= len(text)


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0.1 + 0.2 == 0.3",
        "{tenth} + {fifth} == {three_tenths}",
        "1 / 3 * 3 == 1",
        "{tenth} == 1 / 10",
        "{large} + 1 - {large} == 1",
        "0.1 * 3 - 0.3 == 0",
    ],
)
def test_arithmetic_is_exact(text: str) -> None:
    """Decimals and thirds are exact, and small numbers are not lost beside large ones."""
    assert value_of(text, tenth=0.1, fifth=0.2, three_tenths=0.3, large=10**18 - 1) == 1


def test_is_not_rounded() -> None:
    """The value is the exact fraction. Only the price rounds, and only once."""
    assert value_of("10 / 3") == Fraction(10, 3)


@pytest.mark.parametrize(
    "text", ["{n} == 0 ? 0 : 100 / {n}", "{n} && 100 / {n}", "!{n} || 1 / {n}"]
)
def test_evaluates_only_what_is_needed(text: str) -> None:
    """A branch that is not taken may divide by zero."""
    assert value_of(text, n=0) in (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        "1 % 0",
        "ceil(1 / {n} - 1 / 0)",
        "{n} / ({n} - {n})",
        "1 ? 1 / 0 : 2",
        "0 || 1 / 0",
        "1 / (0 && 1)",
    ],
)
def test_division_by_zero_is_an_evaluation_error(text: str) -> None:
    """The typed error has the formula and the variables. Its message has no values."""
    with pytest.raises(FormulaEvaluationError, match="division by zero") as caught:
        value_of(text, n=987654, half=0.5)
    assert caught.value.formula == text
    assert caught.value.variables == ({"n": 987654} if "{n}" in text else {})
    assert caught.value.cause == "division by zero"
    assert "987654" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_missing_variable_is_named() -> None:
    """The error names the first missing variable and lists the given names, without values."""
    with pytest.raises(MissingVariableError) as caught:
        value_of("{b} + {x} + {y}", b=123456, a=1)
    assert caught.value.formula == "{b} + {x} + {y}"
    assert caught.value.missing_variable == "x"
    assert caught.value.provided_variables == ("a", "b")
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("text", ["1 ? 2 : {x}", "1 || {x}", "0 && {x}", "{x} / 0"])
def test_variables_of_untaken_branches_are_required(text: str) -> None:
    """A forgotten variable shows at once, not only when its branch is first taken."""
    with pytest.raises(MissingVariableError, match="'x'"):
        value_of(text)


def test_ignores_variables_that_the_formula_lacks() -> None:
    """One call can give the variables of all tiers' formulas."""
    assert value_of("{a} + 1", a=1, b=2) == 2


# --- Limits ---------------------------------------------------------------------------------------


FIFTY = "+".join(f"{{v{index}}}" for index in range(50))


@pytest.mark.parametrize(
    ("accepted", "refused"),
    [
        ("+".join(["1"] * 500) + " ", "+".join(["1"] * 500) + "  "),
        ("(" * 32 + "1" + ")" * 32, "(" * 33 + "1" + ")" * 33),
        ("-" * 32 + "1", "-" * 33 + "1"),
        ("!" * 32 + "1", "!" * 33 + "1"),
        ("1 ? 1 : " * 32 + "1", "1 ? 1 : " * 33 + "1"),
        ("1 ? " * 32 + "1" + " : 1" * 32, "1 ? " * 33 + "1" + " : 1" * 33),
        ("-(" * 16 + "1" + ")" * 16, "-(" * 16 + "!1" + ")" * 16),
        ("+" * 32 + "1", "+" * 33 + "1"),
        ("abs(" * 32 + "1" + ")" * 32, "abs(" * 33 + "1" + ")" * 33),
        ("2**" * 32 + "0", "2**" * 33 + "0"),
        ("max(1," * 32 + "1" + ")" * 32, "max(1," * 33 + "1" + ")" * 33),
        ("1e400", "1e401"),
        ("1e-400", "1e-401"),
        ("9" * 40 + "e400", "9" * 41 + "e1"),
        ("9" * 40, "9" * 41),
        ("0." + "0" * 39, "0." + "0" * 40),
        (f"{FIFTY}+{{v0}}", f"{FIFTY}+{{v50}}"),
        ("{" + "a" * 64 + "}", "{" + "a" * 65 + "}"),
    ],
)
def test_reaches_its_limits_and_no_further(accepted: str, refused: str) -> None:
    """Length, depth, digits, variables and names may reach their limits but not exceed them."""
    Formula.parse(accepted)
    with pytest.raises(FormulaSyntaxError):
        Formula.parse(refused)


def test_depth_counts_nesting_and_not_siblings() -> None:
    """Parentheses side by side are no deeper than one pair."""
    assert value_of("+".join(["(1)", "-1", "!1", "(1?1:1)"] * 40)) == 40


@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "&&", "||"])
def test_long_chains_are_not_deep(operator: str) -> None:
    """A chain as long as the text may be needs no more stack than a short one."""
    text = operator.join(["1"] * (1000 // (1 + len(operator))))
    assert value_of(text) in (500, -498, 1)


HOSTILE = [
    *(piece * (1000 // len(piece)) for piece in ["(", "-", "!", "1?", "1?1:", "{", " ", "9", "1<"]),
    *(
        piece * (1000 // len(piece))
        for piece in ["-(", "!(", "1?(", "(1+", "1*(", "abs(", "max(1,", "0||1&&1==1<1+1*ceil("]
    ),
    "(" * 500 + "1" + ")" * 499,
    ("1*(" * 32 + "1" + ")" * 32 + "+") * 7,
    "(" * 32 + "1" + ")" * 31,
    "{" + "a" * 990,
    "1e" + "9" * 990,
    "a" * 999,
    "a." * 499,
    "(" * 1_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_text_is_refused_at_once(text: str) -> None:
    """Text made to exhaust time or stack is an ordinary syntax error."""
    started = time.perf_counter()
    with pytest.raises(FormulaSyntaxError):
        Formula.parse(text)
    assert time.perf_counter() - started < 5  # a hang, not a speed


def frames_needed(action: Callable[[], object]) -> int:
    """Return how many stack frames the action uses."""
    deepest = current = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal deepest, current
        current += {"call": 1, "return": -1}.get(event, 0)
        deepest = max(deepest, current)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return deepest


def test_the_deepest_formula_leaves_most_of_the_stack() -> None:
    """Parsing and evaluating at the depth limit takes a small part of Python's 1,000 frames."""
    text = "0||1&&1==1<1+1*max(" * 32 + "1" + ")" * 32
    formula = Formula.parse(text)
    assert frames_needed(lambda: Formula.parse(text)) < 400
    assert frames_needed(lambda: formula.evaluate({})) < 400


PRODUCTS = [f"{{{first}}}*{{{second}}}" for first, second in pairwise("abcdefgh" * 16)]


@pytest.mark.parametrize(
    "text",
    [
        "*".join(["{a}"] * 250),
        "+".join(PRODUCTS[:124]),
        "/".join(["{a}", "{b}"] * 125),
        "%".join(["{a}", "{b}"] * 125),
        "+".join(["{a}**2**{c}"] * 80),
        "+".join(["2**2**2**2**2"] * 70),
        "+".join(["1**(9**1290)"] * 70),
        "(" * 28 + "2" + "**(1+0*0.1**400))" * 28,
    ],
    ids=[
        *("product", "sum of products", "quotients", "remainders"),
        *("powers", "towers", "huge exponents", "nested exponents"),
    ],
)
def test_the_longest_numbers_evaluate_soon(text: str) -> None:
    """Full-length formulas of the longest variables end soon, with a value or an error."""
    long = {
        name: Decimal(f"0.{str(7**473)[:398]}{index}1") for index, name in enumerate("abcdefgh")
    }
    formula, variables = Formula.parse(text), exact_variables(long)
    started = time.perf_counter()
    with suppress(FormulaEvaluationError):
        formula.evaluate(variables)
    assert time.perf_counter() - started < 10  # a hang, not a speed


@pytest.mark.parametrize("sign", ["", "-"])
def test_results_are_bounded(sign: str) -> None:
    """Results up to ±10**18 are allowed. The least fraction more is an error."""
    assert abs(value_of(f"{sign}{{large}}", large=10**18)) == 10**18
    with pytest.raises(FormulaEvaluationError, match="beyond ±10") as caught:
        value_of(f"{sign}({{large}} + 0.001)", large=10**18)
    assert str(10**18) not in str(caught.value)


@pytest.mark.parametrize("exponent", ["{half}", "{whole} / 2", "{half} * 3"])
def test_an_exponent_must_be_whole(exponent: str) -> None:
    """Other powers may have no exact value."""
    with pytest.raises(FormulaEvaluationError, match="an exponent of \\*\\* is not a whole number"):
        value_of(f"4 ** ({exponent})", half=0.5, whole=3)
    assert value_of(f"4 ** (2 * {exponent})", half=1.5, whole=3) in (64, 4**9)


def test_intermediate_results_are_bounded_by_size_not_value() -> None:
    """Intermediate values may exceed the limit for results. Only absurd precision is refused."""
    assert value_of("{a} * {a} * {a} / {a} / {a}", a=10**18) == 10**18
    assert value_of("2 ** 4095 / 2 ** 4094") == 2
    for text in (
        "*".join(["{a}"] * 100) + "* 0",
        "2 ** 4096 * 0",
        "2 ** -4096 * 0",
        "3 ** 2600 * 0",
        "2 ** {a} * 0",
        "{b} ** -{a} * 0",
        "{b} * {b} * {b} * {b}",
        "-{b} * {b} * {b} * {b}",
    ):
        with pytest.raises(FormulaEvaluationError, match="4,096 bits"):
            value_of(text, a=10**18 - 1, b=Decimal("1e-400"))


def test_errors_show_variables_readably() -> None:
    """The error's variables are ints if whole, else decimals of at most 34 digits."""
    with pytest.raises(FormulaEvaluationError) as caught:
        value_of(
            "1 / 0 + {whole} + {tenth} + {long}",
            whole=2.0,
            tenth=0.1,
            long=Decimal("0." + "3" * 100),
        )
    shown = caught.value.variables
    assert shown == {"whole": 2, "tenth": Decimal("0.1"), "long": Decimal("0." + "3" * 34)}
    assert [type(value) for value in shown.values()] == [int, Decimal, Decimal]


# --- Formulas as values ---------------------------------------------------------------------------


def pickled(formula: Formula) -> Formula:
    """Return the formula as another process gets it."""
    twin: Formula = pickle.loads(pickle.dumps(formula))  # noqa: S301
    return twin


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_survives_copies_and_pickling(copied: Callable[[Formula], Formula]) -> None:
    """A formula that crossed a process is equal to the original and evaluates the same."""
    formula = Formula.parse("{n} > 10 && !{m} ? -{n} * 0.5 : {m} || 3")
    twin = copied(formula)
    assert twin == formula
    assert hash(twin) == hash(formula)
    assert twin.variables == ("n", "m")
    assert twin.evaluate(exact_variables({"n": 12, "m": 0})) == -6
    assert twin.evaluate(exact_variables({"n": 2, "m": 0})) == 3


def test_syntax_errors_survive_pickling() -> None:
    """The error keeps its reason and position across processes, and is a ValueError."""
    with pytest.raises(ValueError, match="unexpected '~'") as caught:
        Formula.parse("1 ~ 2")
    twin = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (type(twin), str(twin)) == (FormulaSyntaxError, str(caught.value))
    assert (twin.reason, twin.position) == ("unexpected '~'", 2)


def test_is_immutable_and_equal_by_text() -> None:
    """Formulas can be shared and used as keys: they never change, and their text decides."""
    formula = Formula.parse("1 + {a}")
    with pytest.raises(FrozenInstanceError):
        formula.text = "2"  # type: ignore[misc]
    assert formula == Formula.parse("1 + {a}")
    assert formula != Formula.parse("1+{a}")
    assert repr(formula) == "Formula(text='1 + {a}', variables=('a',))"
