"""Price formulas: ``{token} * 1.5e-07 + 10``, parsed once, evaluated exactly. Pure.

The language is the Credit SDK's, with the precedence of JavaScript, tightest first::

    ( )  number  {variable}  function( )     ! - +     * / %     + -     < <= > >=     == !=
    &&     ||     ? :

Everything is a number. Comparisons and ``!`` give 1 or 0, a condition holds when it is not 0,
``&&`` and ``||`` give the operand that decided, and ``&&``, ``||`` and ``?:`` evaluate only what
they need. The functions are ``abs``, ``ceil``, ``floor``, ``max``, ``min`` and ``round`` (half up,
to a whole number). ``%`` has the sign of the dividend: ``-7 % 3`` is -1. Arithmetic is exact:
``0.1 + 0.2`` is 0.3 and ``1 / 3 * 3`` is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from credit_mongo.core.formula_nodes import MAX_INTERMEDIATE_BITS, Node
from credit_mongo.core.formula_parser import FormulaSyntaxError, parse
from credit_mongo.core.variables import MAX_MAGNITUDE, Unusable, Variables, readable_variables
from credit_mongo.errors import FormulaEvaluationError, InvalidRequestError, MissingVariableError

__all__ = ["Formula", "FormulaSyntaxError"]


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed price formula; immutable, and safe to share between threads. Use :meth:`parse`.

    ``text`` is the formula as written, ``variables`` the names in it, each once, in order of
    appearance. Formulas are equal when their texts are; a pickle holds the text alone.
    """

    text: str
    variables: tuple[str, ...] = field(compare=False)
    _root: Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Parse a formula of at most 1,000 characters, 32 levels deep, with 50 variables.

        A number has at most 40 digits, and an exponent from -400 to 400.

        Raises FormulaSyntaxError if the text is not a formula, or beyond these limits.
        """
        root, variables = parse(text)
        return cls(text, variables, root)

    def __reduce__(self) -> tuple[Callable[[str], Formula], tuple[str]]:
        return Formula.parse, (self.text,)

    def evaluate(self, variables: Variables) -> Fraction:
        """The exact value, in credits: not rounded, possibly negative, within ±10**18.

        ``variables`` comes from ``exact_variables``; names that the formula lacks are ignored.

        Raises MissingVariableError if any variable of the formula is not given, be it in a branch
        not taken, InvalidRequestError (of the field ``variables.NAME``) if one is no number, and
        FormulaEvaluationError for a division by zero, a result beyond ±10**18 or an intermediate
        one of more than 4,096 bits. That error's ``variables`` are those of the formula, as
        ``int``, or ``Decimal`` (to 34 digits) where they are not whole.
        """
        used = self._used(variables)
        try:
            value = self._root.evaluate(used)
        except ZeroDivisionError:
            cause = "division by zero"
        except OverflowError:
            cause = f"an intermediate result needs more than {MAX_INTERMEDIATE_BITS:,} bits"
        else:
            if abs(value.numerator) <= MAX_MAGNITUDE * value.denominator:
                return value
            cause = "the result is beyond ±10**18"
        # Raised here, not above: ZeroDivisionError's message has values, and would be the context.
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
