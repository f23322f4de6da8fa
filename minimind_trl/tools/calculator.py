"""Arithmetic from text, by a parser that knows numbers, operators and a few functions, and nothing else.

A model writes the expressions, so no Python code is run: the expression's syntax tree is walked, and whatever is not
listed here is refused. Every operand, result and size is limited before it is computed, so that each step takes
microseconds.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable

MAX_LENGTH = 500  # characters of an expression
MAX_DEPTH = 50  # of nested operations
MAX_BITS = 1024  # of an integer; about 308 digits, as far as floats go
MAX_FACTORIAL = 170

Number = int | float

_SPELLINGS = str.maketrans({"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-", "（": "(", "）": ")", "，": ","})
_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}


class ExpressionError(ValueError):
    """An expression that is no arithmetic, or is beyond the limits."""


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression.

    Known are numbers, `+ - * / // % ** ( )`, also written `^ × ÷ −`, the constants pi, e and tau, and the functions in
    `FUNCTIONS`, with or without `math.` before them. A quotient of integers without a rest is an integer.

    Raises:
        ExpressionError: anything else is in the expression, or a limit of this module is passed.
    """
    if not isinstance(expression, str):
        raise ExpressionError("the expression must be a text")
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are allowed")
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python's parser, about what it would not run anyway
            tree = ast.parse(expression.translate(_SPELLINGS).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null byte, or too many digits
        raise ExpressionError("not an arithmetic expression") from None
    try:
        return _value(tree.body, MAX_DEPTH)
    except ZeroDivisionError:
        raise ExpressionError("division by zero") from None
    except OverflowError:
        raise ExpressionError("the result is too large") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError("not defined for these numbers") from None


def as_text(number: Number) -> str:
    """A number as people write it: integers whole, others with up to 15 digits."""
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise ExpressionError(f"nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Constant(value=bool() | None):
            raise ExpressionError(f"{node.value} is not a number")
        case ast.Constant(value=int() | float() as number):
            return _limited(number)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +_value(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth - 1)
        case ast.BinOp(left=left, op=op, right=right):
            return _limited(_combined(op, _value(left, depth - 1), _value(right, depth - 1)))
        case ast.Call(func=called, args=args, keywords=[]):
            function = FUNCTIONS.get(name := _called_name(called))
            if function is None:
                raise ExpressionError(f"no function {name:.20}")
            return _limited(function(*(_value(argument, depth - 1) for argument in args)))
        case ast.Name() | ast.Attribute():
            if (name := _called_name(node)) not in _CONSTANTS:
                raise ExpressionError(f"{name:.20} is not a number")
            return _CONSTANTS[name]
    raise ExpressionError(f"{type(node).__name__} is not arithmetic")


def _called_name(node: ast.expr) -> str:
    """`sqrt` of `sqrt` and `math.sqrt`. Nothing is looked up in a module."""
    match node:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="math"), attr=name):
            return name
    raise ExpressionError(f"{type(node).__name__} is not arithmetic")


def _limited(number: Number) -> Number:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ExpressionError("the result is not a real number")
    if isinstance(number, int):
        if number.bit_length() > MAX_BITS:
            raise ExpressionError(f"a number has more than {MAX_BITS} bits")
    elif not math.isfinite(number):
        raise ExpressionError("the result is too large")
    return number


def _combined(op: ast.operator, left: Number, right: Number) -> Number:
    if isinstance(op, ast.Pow):
        return _power(left, right)
    if isinstance(op, ast.Div):
        return _quotient(left, right)
    if type(op) not in _OPERATORS:
        raise ExpressionError(f"{type(op).__name__} is not arithmetic")
    return _OPERATORS[type(op)](left, right)


def _quotient(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right
    return left / right


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > 2 * MAX_BITS:
        raise ExpressionError(f"a power has more than {MAX_BITS} bits")
    return base**exponent


def _factorial(number: Number) -> int:
    if not 0 <= number <= MAX_FACTORIAL:
        raise ExpressionError(f"factorial is for 0 to {MAX_FACTORIAL}")
    return math.factorial(number)


def _rounded(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_BITS:
        raise ExpressionError("round takes a number and a count of digits")
    return round(number, digits) if digits else round(number)


FUNCTIONS: dict[str, Callable[..., Number]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "gcd")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "radians", "degrees")},
    **{"abs": abs, "min": min, "max": max, "round": _rounded, "factorial": _factorial, "pow": _power},
}
