r"""Find the answer in a text and parse it with math_verify.

The right answer of a row and a model's completion are read in the same way. The most explicit statement wins: a
`\boxed{}`, then what follows `####` (GSM8K), then what follows "The answer is" or "答案是", then the text's last
formula, with or without dollars. Every formula is passed to math_verify between dollars: without them it would parse
`10^{5}` as 10.

Importing this module needs math-verify.
"""

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.math_normalization import extract_boxed_content
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Integer

_SECONDS = 5  # for one formula, and for one comparison
_FORMULAS_TRIED = 4  # if a text marks no answer
# Full-width signs as ASCII, except those that end a sentence.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "！；？"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# Common spellings and their LaTeX; applied in this order.
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}"),
        (r"[−–]", "-"),
        (r"、", ","),
        (r"√\s*(\(?)(\w+)(\)?)", r"\\sqrt{\2}"),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"∪", r"\\cup "),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
        (r"×", r"\\times "),
        (r"÷", "/"),
        (r"½", r"\\frac{1}{2}"),
        (r"°\s*[CF]?", ""),
        (r"[€£¥￥₹]|\\\$", ""),
        (r"<<[^<>]*>>", ""),  # calculations in GSM8K
        (r"\*\*(?=\s*[\d({-])(?<=[\w)}]\*\*)", "^"),  # a power; the rest is Markdown
        (r"\*\*", ""),
        (r"(?<=\d)(?:\\[,;!]|[\u00a0\u2009\u202f])(?=\d)", ""),
        (r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d,])", lambda match: match[1].replace(" ", "")),
        (r"\\[,;!:]|\\ |~", " "),
        (r"(?<=\d)[eE]([+-]?\d+)(?![\d.])", r"\\times 10^{\1}"),
        (r"(?<![\d/.])(\d+)\s+(\d+)/(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),
        (r"(?<![\\A-Za-z])(pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}", ", "),
        (r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*|\s*[和或]\s*", ", "),
    )
)
_HASHES = re.compile(r"(?<!#)####(?!#|\s*[A-Za-z]{3})")  # not a heading
_IS = re.compile(r"(?i:\banswers?\s*(?:is|are|equals?)\s*[:=]?)|(?:答案|结果)\s*(?:应?[是为]|等于)\s*:?")
_COLON = re.compile(r"(?i:\banswers?\W{0,3}[:=])|(?:答案|结果|答)\s*:")
_ENDS = re.compile(r"[.。;；!?？](?:\s|$)|,?\s(?:because|since|which|where|when|as|so|if)\s|,?(?:因为|由于|所以)|\n")
_DELIMITED = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|rm)\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?")
# Separators of formulas: words, ends of sentences, new lines. Short runs of letters such as xy are products.
_SHORT_UNITS = "cm mm km kg hr ft lb oz ml mg mi pm am sq cu"
_SHORT_WORDS = f"is it to of in so an at by we he be if no on do go my us up me as {_SHORT_UNITS}"
_WORD = (
    r"(?<![\\A-Za-z{])(?![xyz]+(?![A-Za-z]))(?!(?:sqrt|inf|infty|infinity|frac)(?![A-Za-z]))"
    rf"(?:[A-Za-z]{{3,}}|(?i:{'|'.join(_SHORT_WORDS.split())})(?![A-Za-z]))[\w'’]*"
    r"|[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+"
)
_WORDS = re.compile(_WORD)
_BETWEEN = re.compile(rf"{_WORD}|[.;!?](?=\s|$)|:\s|\n")
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")  # a number, or a list of numbers
_IN_A_ROW = re.compile(r"[+-]?\d+(?:\.\d+)?(?:\s+[+-]?\d+(?:\.\d+)?)+")  # 3 1 2 is a list, not a product
_NUMBER = r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+|\d+/\d+|\\[dt]?frac\s*\{\d+\}\s*\{\d+\})(?:\s*\\?%)?"
_UNIT = rf"(?![xyz]|sqrt)(?:[A-Za-zµμ]{{3,}}|{_SHORT_UNITS.replace(' ', '|')}|[A-Za-z])(?![A-Za-z])(?:\^?\{{?[23]\}}?)?"
_WITH_UNIT = re.compile(rf"(?P<number>{_NUMBER})(?P<space>\s*)(?:{_UNIT}(?:\s*[/·*]\s*{_UNIT})*)")
_COUNTS = re.compile(r"\d|\\(?:pi|infty|sqrt|frac|emptyset|varnothing)|[∅]")


@lru_cache(maxsize=100_000)  # called with the same text for every completion of a prompt
def read_gold(text: str) -> list[Any]:
    """The right answer as input for math_verify's `verify`; empty if the text holds no mathematics."""
    return next(filter(None, (_read(formula, is_gold=True) for formula in _stated(text))), [])


def read_answer(text: str) -> list[Any]:
    """The same for a completion. A number with a unit is also read as a product, and a list as a number."""
    return next(filter(None, (_read(formula, is_gold=False) for formula in _stated(text))), [])


def agree(gold: list[Any], answer: list[Any]) -> bool:
    """Whether math_verify finds any reading of the answer equal to a reading of the right answer."""
    return bool(answer) and verify(gold, answer, timeout_seconds=_timeout())


def _stated(text: str) -> Iterator[str]:
    """Formulas that may be the text's answer, the most explicit first."""
    text = text.translate(_NARROW)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    boxed = extract_boxed_content(text, mode="last")
    if boxed != text:
        yield from _formulas(boxed)[:1]
        yield boxed.strip().rstrip(".")
    for marker in (_HASHES, _IS):
        if found := list(marker.finditer(text)):
            yield from _formulas(_ENDS.split(_after(found[-1]), maxsplit=1)[0])[:1]
    if found := list(_COLON.finditer(text)):  # the working may follow the colon
        line = _formulas(_after(found[-1]).partition("\n")[0])
        yield from line if len(line) == 1 else _formulas(_after(found[-1]))[-1:]
    yield from reversed(_formulas(text)[-_FORMULAS_TRIED:])


def _after(marker: re.Match) -> str:
    return marker.string[marker.end() :].strip(" \t\n:*")


def _formulas(text: str) -> list[str]:
    """The formulas of a text: those between dollars or, if there are none, the parts between words."""
    found = list(_DELIMITED.finditer(text))
    if found := [match for match in found if not _WORDS.search(_TEXT.sub("", match[0]))]:  # words: dollars are money
        return _joined(text, found)
    text = text.replace("$", "")
    alone = text.strip(" ,").rstrip(".")
    if _WITH_UNIT.fullmatch(alone) or _TEXT.fullmatch(alone):
        return [alone]
    parts = [_bare(part) for part in _BETWEEN.split(_TEXT.sub("", text))]
    parts = [part for part in parts if part]
    if len(parts) == 1 and not _BETWEEN.search(text.strip(" .")):
        return parts  # nothing else is there, so letters are variables
    return [part for part in parts if _COUNTS.search(part)]


def _joined(text: str, found: list[re.Match]) -> list[str]:
    """The contents of `$...$`; neighbours separated only by a comma are one list."""
    formulas: list[str] = []
    end = None
    for match in found:
        inside = match[0].strip("$").removeprefix(r"\(").removeprefix(r"\[").removesuffix(r"\)").removesuffix(r"\]")
        if end is not None and text[end : match.start()].strip(" ") == ",":
            formulas[-1] += f", {inside}"
        else:
            formulas.append(inside.strip(" .,"))
        end = match.end()
    return formulas


def _bare(part: str) -> str:
    part = re.sub(r"^\s*[aAI]\s+(?=\S)", "", part)  # a word, not a variable
    part = re.sub(r"^[\s*,:=?'\"\])}]+|^\.(?!\d)", "", part)
    return part.rstrip(" \t*,.:=?'\"([{")


def _read(formula: str, is_gold: bool) -> list[Any]:
    """Every reading of one formula."""
    formula = formula.replace("\n", " ").replace("$", "").strip()
    if not formula:
        return []
    if _INTEGER.fullmatch(formula):
        return [Integer(formula)]
    if _GROUPED.fullmatch(formula):
        return _parsed(formula) + _parsed(formula.replace(",", ", "))
    if _IN_A_ROW.fullmatch(formula):
        return _parsed(f"({', '.join(formula.split())})")
    if with_unit := _WITH_UNIT.fullmatch(formula):
        glued = not with_unit["space"] and not re.search(r"[A-Za-z]{2}", formula[with_unit.end("number") :])
        number, product = _parsed(with_unit["number"]), _parsed(formula) if glued or not is_gold else []
        return product if glued and is_gold else number + product
    return _parsed(formula)


def _parsed(formula: str) -> list[Any]:
    # With `units`, math_verify would read the t of 2x + 3t as tonnes.
    units = not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", _TEXT.sub("", formula)))
    cleaning = NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="none")
    how = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=cleaning)
    return parse(f"${formula}$", [how], fallback_mode="no_fallback", parsing_timeout=_timeout())


def _timeout() -> int | None:
    """The timeout in seconds; None outside the main thread, where math_verify's signals do not arrive."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
