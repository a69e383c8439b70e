"""Arithmetic from text that nobody trusts: a small parser, exact numbers, and bounds on all that could grow.

Nothing is evaluated by Python. The grammar, lowest first: + -, * / // %, unary + -, ** and ^ (from the right),
numbers, brackets, sqrt(x), abs(x). Numbers are fractions, so 0.1 + 0.2 is 0.3; only a root that is not one is a float.
"""

from __future__ import annotations

import decimal
import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from dacheng.errors import DachengError

Number = Fraction | float
MAX_CHARACTERS = 400
MAX_DEPTH = 40
MAX_BITS = 8192  # of a numerator or denominator: some 2,400 digits
_SHOWN_DIGITS = 12  # significant
_SHOWN_WHOLE = 40  # digits of a whole number, all shown

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?|\.\d+(?:[eE][+-]?\d{1,3})?)|(\*\*|//|[-+*/%^()])|([a-z]+))"
)
_RAISED, _LOWERED = re.compile("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"), re.compile("[₀-₉]")
_SAME = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "∗": "*", "√": " sqrt ", "[": "(", "]": ")"})


class NotArithmetic(DachengError):
    """The text is no expression of this grammar, or its value is too large or not defined."""


def calculate(text: str) -> Number:
    """The value of an expression, such as "3 * (4 + 1.5) ** 2". Raises NotArithmetic, always with a reason."""
    if len(text) > MAX_CHARACTERS:
        raise NotArithmetic("an expression too long", value=len(text), remedy=f"at most {MAX_CHARACTERS} characters")
    text = _LOWERED.sub("_", _RAISED.sub(lambda match: f"**({match[0]})", text))  # NFKC alone makes 32 of 3²
    parser = _Parser(unicodedata.normalize("NFKC", text).translate(_SAME))
    value = parser.sum()
    if parser.kind:
        raise parser.wrong()
    return value


def shown(value: Number) -> str:
    """A number as text: whole, with its decimals where they end soon, else to 12 significant digits."""
    with decimal.localcontext(decimal.Context(prec=_SHOWN_DIGITS)) as context:
        exact = Fraction(value)
        quotient = Decimal(exact.numerator) / Decimal(exact.denominator)
        rounded = Fraction(quotient)
        if rounded != exact and exact.denominator == 1 and len(str(abs(exact.numerator))) <= _SHOWN_WHOLE:
            return str(exact.numerator)
        if rounded == 0 or -7 <= quotient.adjusted() < _SHOWN_WHOLE:
            return f"{quotient.normalize(context):f}"
        return f"{quotient.normalize(context):e}"


class Calculator:
    """`calculate` as a `protocols.Tool`: answers with the value, or with "error: " and why."""

    name = "calculator"
    description = "Works out arithmetic: + - * / // % ** ( ) sqrt abs."
    parameters: dict[str, Any] = {  # noqa: RUF012 - the protocol's field
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "such as 12 * (3 + 4.5)"}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    def __call__(self, **arguments: Any) -> str:
        expression = arguments.get("expression")
        if not isinstance(expression, str) or len(arguments) != 1:
            return "error: the one argument is expression, a text"
        try:
            return shown(calculate(expression))
        except NotArithmetic as error:
            return f"error: {error.problem}"


class _Parser:
    """Recursive descent over tokens (kind, text); kind: "number", "sign", "name", "" at the end."""

    def __init__(self, text: str) -> None:
        self.tokens = self._read(text)
        self.at, self.depth = 0, 0

    @staticmethod
    def _read(text: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise NotArithmetic(f"unexpected {text[at:].strip()[:1]!r}", field="expression", value=text)
            kind = ("number", "sign", "name")[(match.lastindex or 1) - 1]
            tokens.append((kind, match[match.lastindex or 1]))
            at = match.end()
        return [*tokens, ("", "the end")]

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def word(self) -> str:
        return self.tokens[self.at][1]

    def wrong(self) -> NotArithmetic:
        return NotArithmetic(
            f"unexpected {self.word}", field="expression", value=" ".join(t for _, t in self.tokens[:-1])
        )

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def sum(self) -> Number:
        value = self.product()
        while self.word in ("+", "-"):
            value = _apply(self.take(), value, self.product())
        return value

    def product(self) -> Number:
        value = self.unary()
        while self.word in ("*", "/", "//", "%"):
            value = _apply(self.take(), value, self.unary())
        return value

    def unary(self) -> Number:
        negative = False
        while self.word in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Number:
        value = self.atom()
        if self.word not in ("**", "^"):
            return value
        self.take()
        self.enter()
        value = _apply("**", value, self.unary())  # from the right, and 2 ** -1
        self.depth -= 1
        return value

    def atom(self) -> Number:
        if self.kind == "number":
            return _bounded(Fraction(self.take()))
        if self.kind == "name":
            if self.word not in ("sqrt", "abs"):
                raise NotArithmetic(f"no such function: {self.word[:20]}", field="expression", value=self.word)
            rooted = self.take() == "sqrt"
            if self.word != "(" and self.kind != "number":
                raise self.wrong()
            value = self.atom()
            return _root(value) if rooted else value if value >= 0 else -value
        if self.word != "(":
            raise self.wrong()
        self.take()
        self.enter()
        value = self.sum()
        self.depth -= 1
        if self.word != ")":
            raise self.wrong()
        self.take()
        return value

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotArithmetic("nested too deeply", field="expression", remedy=f"at most {MAX_DEPTH} brackets")


def _divide(a: Any, b: Any) -> Any:
    return a / b


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "//": lambda a, b: Fraction(a // b),
    "%": lambda a, b: a % b,
}


def _apply(sign: str, a: Number, b: Number) -> Number:
    try:
        return _bounded(_power(a, b) if sign == "**" else _OPERATIONS[sign](a, b))
    except ZeroDivisionError:
        raise NotArithmetic("division by zero", field="expression") from None
    except OverflowError:
        raise NotArithmetic("too large", field="expression") from None


def _power(a: Number, b: Number) -> Number:
    """The size is known before the work: no power is worked out that would not be kept."""
    if isinstance(a, float) or isinstance(b, float) or b.denominator != 1:
        base, exponent = float(a), float(b)
        if base < 0 or (base == 0 and exponent < 0):
            raise NotArithmetic("no real power", field="expression")
        return base**exponent
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if bits > 1 and abs(b.numerator) * (bits - 1) > MAX_BITS:
        raise NotArithmetic("too large", field="expression")
    return a**b.numerator  # of 0, 1 and -1 without a bound: they do not grow


def _root(value: Number) -> Number:
    if value < 0:
        raise NotArithmetic("the root of a negative number", field="expression")
    if isinstance(value, Fraction):
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    try:
        return math.sqrt(value)
    except OverflowError:  # a float holds no fraction above 1.8e308
        raise NotArithmetic("too large", field="expression") from None


def _bounded(value: Any) -> Number:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotArithmetic("too large", field="expression")
        return value
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotArithmetic("too large", field="expression")
    return value
