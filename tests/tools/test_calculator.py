"""The calculator computes, and runs nothing."""

import builtins
import os

import pytest

from minimind_trl.tools import OfferedTools, load_tools
from minimind_trl.tools.calculator import ExpressionError, as_text, evaluate

HOSTILE = [
    # code
    *("__import__('os').system('touch hacked')", "eval('1')", "exec('x=1')", "open('hacked', 'w')", "print(1)"),
    *("globals()", "locals()", "vars()", "dir()", "getattr(1, 'real')", "().__class__.__bases__[0].__subclasses__()"),
    *("(1).__class__", "math.__loader__", "math.sqrt.__self__", "sqrt.__globals__", "e.real", "os.system('ls')"),
    *("lambda: 1", "(lambda x: x)(1)", "[x for x in (1, 2)]", "{1: 2}", "{1, 2}", "(x := 5)", "1 if 1 else 2"),
    *("f'{open}'", "'a' * 10**9", "b'a' * 10**9", "[1] * 10**9", "(1, 2)", "*a", "yield 1", "await x", "x[0]"),
    *("import os", "x = 1", "1; 2", "breakpoint()", "input()", "True + True", "None", "...", "1j", "1 < 2", "not 1"),
    # what would take for ever, or all memory
    *("9**9**9**9", "10**10**10", "2**99999999", "pow(9, 9**9)", "factorial(10**9)", "factorial(171)", "1 << 10**9"),
    *("round(1.5, -10**9)", "9" * 400, "(" * 300, "-" * 400 + "1", "1" + "+1" * 300, "1\0", "((((" * 60 + "1"),
    *("1e999", "exp(1e9)", "10**308 * 10", "max(*[1])", "sqrt(x=4)", "~5", "1 @ 1", "9**9**9 % 7", "gcd(1.5, 2)"),
]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("123456789012345678901 * 9876543210", str(123456789012345678901 * 9876543210)),
        ("7 / 2", "3.5"),
        ("84 / 2", "42"),
        ("0.1 + 0.2", "0.3"),
        ("2^10 × 3 ÷ 4 − 1", "767"),
        ("（1 + 2）* 3", "9"),
        ("math.sqrt(16) + max(1, 2, 3)", "7"),
        ("-7 // 2", "-4"),
        ("round(pi, 4)", "3.1416"),
        ("factorial(20)", "2432902008176640000"),
    ],
)
def test_arithmetic(expression, value):
    assert as_text(evaluate(expression)) == value


def test_hostile_expressions_are_refused_and_none_is_run(monkeypatch, tmp_path):
    def run(*_, **__):
        raise AssertionError("an expression was run")

    for name in ("eval", "exec", "open", "compile", "__import__"):
        kept = getattr(builtins, name)
        monkeypatch.setattr(builtins, name, run if name not in ("compile", "__import__") else kept)
    monkeypatch.setattr(os, "system", run)
    monkeypatch.chdir(tmp_path)
    offered = OfferedTools(load_tools(["calculator"]).values(), result_length=100)
    assert len(HOSTILE) >= 50
    for expression in HOSTILE:
        with pytest.raises(ExpressionError):
            evaluate(expression)
        with pytest.raises(Exception) as told:
            offered["calculator"](expression=expression)
        assert len(str(told.value)) <= 100, expression
    assert offered.counts["errors"] == offered.counts["calls"] == len(HOSTILE)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("expression", [None, 5, ["1"], {"a": 1}, 1.5])
def test_what_is_no_text_is_refused(expression):
    with pytest.raises(ExpressionError, match="must be a text"):
        evaluate(expression)
