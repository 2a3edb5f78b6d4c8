"""Price formulas such as ``{token} * 1.5e-07 + 10``: parsed once, evaluated exactly. Pure.

The language is the Credit SDK's, with JavaScript's precedence, tightest first::

    ( )  number  {variable}  function( )     **     ! - +     * / %     + -     < <= > >=
    == != === !==     &&     ||     ? :

Every value is a number. Comparisons and ``!`` give 1 or 0. A condition holds if it isn't 0.
``&&`` and ``||`` give the operand that decided. ``&&``, ``||`` and ``?:`` evaluate only what they
need. The functions are ``abs``, ``ceil``, ``floor``, ``max``, ``min``, ``round`` (half up, to a
whole number), ``sign`` and ``trunc``, also as ``Math.abs`` and so on. ``%`` takes the sign of the
dividend: ``-7 % 3`` is -1. Exponents are whole numbers, and ``2 ** 3 ** 2`` is ``2 ** (3 ** 2)``.
Arithmetic is exact: ``0.1 + 0.2`` is 0.3, and ``1 / 3 * 3`` is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from credit_mongo.core.formula_nodes import (
    MAX_INTERMEDIATE_BITS,
    FractionalExponentError,
    Node,
)
from credit_mongo.core.formula_parser import FormulaSyntaxError, parse
from credit_mongo.core.variables import MAX_MAGNITUDE, Unusable, Variables, readable_variables
from credit_mongo.errors import FormulaEvaluationError, InvalidRequestError, MissingVariableError

__all__ = ["Formula", "FormulaSyntaxError"]


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed price formula. Use :meth:`parse` to create one.

    Formulas are immutable and safe to share between threads. ``text`` is the formula as written.
    ``variables`` are the names in it, each once, in order of appearance. Two formulas are equal if
    their texts are. A pickle contains only the text.
    """

    text: str
    variables: tuple[str, ...] = field(compare=False)
    _root: Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Parse a formula.

        A formula has at most 1,000 characters, 32 levels and 50 different variables. A number has
        at most 40 digits, and an exponent from -400 to 400.

        Raises FormulaSyntaxError if the text is not a formula or exceeds these limits.
        """
        root, variables = parse(text)
        return cls(text, variables, root)

    def __reduce__(self) -> tuple[Callable[[str], Formula], tuple[str]]:
        return Formula.parse, (self.text,)

    def evaluate(self, variables: Variables) -> Fraction:
        """Return the exact value in credits: not rounded, possibly negative, within ±10**18.

        ``variables`` comes from ``exact_variables``. Names that the formula doesn't use are
        ignored.

        Raises MissingVariableError if any variable of the formula is missing, even in a branch not
        taken. Raises InvalidRequestError (field ``variables.NAME``) if one isn't a number. Raises
        FormulaEvaluationError for a division by zero, an exponent that isn't whole, a result beyond
        ±10**18, or an intermediate result of more than 4,096 bits. That error's ``variables`` are
        those of the formula, each an ``int`` if whole, otherwise a ``Decimal`` with up to 34
        digits.
        """
        used = self._used(variables)
        try:
            value = self._root.evaluate(used)
        except ZeroDivisionError:
            cause = "division by zero"
        except FractionalExponentError:
            cause = "an exponent of ** is not a whole number"
        except OverflowError:
            cause = f"an intermediate result needs more than {MAX_INTERMEDIATE_BITS:,} bits"
        else:
            if abs(value.numerator) <= MAX_MAGNITUDE * value.denominator:
                return value
            cause = "the result is beyond ±10**18"
        # Raised here, so that ZeroDivisionError, whose message has values, is not its context.
        raise FormulaEvaluationError(self.text, readable_variables(used, self.variables), cause)

    def _used(self, variables: Variables) -> dict[str, Fraction]:
        used: dict[str, Fraction] = {}
        for name in self.variables:
            value = variables.get(name)
            if value is None:
                raise MissingVariableError(self.text, name, sorted(variables))
            if isinstance(value, Unusable):
                raise InvalidRequestError(f"variables.{name}", value.reason)
            used[name] = value
        return used
