"""Scores for text and source code: the worst of a few rules counts.

Each rule gives 1 where nothing is wrong, 0.5 at its limit, and close to 0 for most garbage.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from textwrap import dedent

from .duplicates import WORD


def quality_score(text: str) -> float:
    """Score of a text against the limits of web-text filters: 1 is clean, 0.5 is at a limit; the worst rule counts.

    The rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1) that need neither spaces nor sentences, so that
    they hold for Chinese, chats, code and formulas: at least 40% letters and digits; at most 20% of the characters in
    repeated lines, 15% repeated runs of ten words, 30% of lines that end with an ellipsis. Unlike Gopher's, a line or
    run counts from its third occurrence on, because answers quote their questions. Two rules are for broken extraction:
    at most 3% damaged characters, and 25% in dumps, keys and encoded data (after StarCoder2, arXiv 2402.19173).
    """
    visible = _visible(text)
    if not visible:
        return 0.0
    size = max(visible, 50)  # one odd word does not spoil a short answer
    lines, words = _lines(text), WORD.findall(text)
    runs = list(zip(*(words[start:] for start in range(10)), strict=False))
    return min(
        _at_least(0.4, 1 - len(_SYMBOL.findall(text)) / size),
        _at_most(0.2, _length(_repeated(lines)) / size),
        _at_most(0.15, len(_repeated(runs)) / max(len(runs), 50)),
        _at_most(0.3, sum(line.endswith(("...", "…")) for line in lines) / max(len(lines), 10)),
        _at_most(0.03, _length(_DAMAGED.findall(text)) / size),
        _at_most(0.25, _length(_encoded(text)) / size),
    )


def code_quality_score(text: str) -> float:
    """Score of source code against the limits of code filters: 1 is clean, 0.5 is at a limit; the worst rule counts.

    The rules of Codex (Chen et al. 2021, arXiv 2107.03374: lines of at most 1000 characters and 100 on average, not
    generated) and StarCoder (arXiv 2305.06161, 2402.19173: at least 25% letters, at most 50% encoded data); at most 20%
    of the characters in lines that occur for the third time or more; and at least 20% of lines that look like code, so
    that prose does not pass. In a text with fenced blocks only these count.
    """
    code = "\n".join(code_of(text))
    lines, visible = _lines(code), _visible(code)
    if not lines or _GENERATED.search("\n".join(lines[:5])):
        return 0.0
    lengths = [len(line) for line in code.splitlines() if line.strip()]
    return min(
        _at_most(1000, max(lengths)),
        _at_most(100, sum(lengths) / len(lengths)),
        _at_least(0.25, len(_LETTER.findall(code)) / visible),
        _at_most(0.5, _length(_encoded(code)) / max(visible, 50)),
        _at_most(0.2, _length(_repeated(lines)) / max(visible, 50)),
        _at_least(0.2, sum(_CODE_LINE.search(line) is not None for line in lines) / len(lines)),
    )


def code_ratio(text: str) -> float:
    """Share of a text's visible characters in fenced blocks and in lines that look like code."""
    fenced = "\n".join(body for _, body in _FENCE.findall(text))
    rest = _FENCE.sub("", text)
    code = [line for line in rest.splitlines() if _CODE_LINE.search(line.strip()) or _INDENTED.match(line)]
    return (_visible(fenced) + sum(map(_visible, code))) / max(_visible(fenced) + _visible(rest), 1)


_SYMBOL = re.compile(r"[^\w\s]|_")
_LETTER = re.compile(r"[^\W\d_]")
# Control characters, what no decoder could read, and UTF-8 that was read as Latin-1, Windows-1252 or GBK.
_TAIL = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_DAMAGED = re.compile(
    rf"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]|â€.?|[ÂÃÐÑ]{_TAIL}|[à-ð]{_TAIL}{{2}}|锟斤拷|烫烫"
)
# Bytes in hexadecimal; base64, or one endless word; keys and dumps in fours: letters after digits, unlike `index2`.
_ENCODED = re.compile(
    r"(?:(?:\\x|0x|\b)[0-9a-fA-F]{2}(?![0-9A-Za-z])[\s:,]*){8,}"
    r"|[A-Za-z0-9+/=]{64,}"
    r"|\b(?=[A-Za-z0-9]{4})[A-Za-z]*\d+[A-Za-z][A-Za-z0-9]*\b"
)
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?: {4}|\t)\s*\S")
_GENERATED = re.compile(r"auto-?generated|automatically generated|do not edit", re.IGNORECASE)
# A comment, tag or keyword at the start, an opened block or a statement's end, a call, an assignment, an operator.
_CODE_LINE = re.compile(
    r"^(?:#|//|/\*|<[\w/!]|@\w|(?:def|class|import|from|return|if|elif|else|for|while|try|except|with|print|public|"
    r"private|static|const|let|var|function|fn|func|int|void|struct|SELECT)\b)|[{}(\[;\\]$|\w\("
    r"|^[\w.\[\]\"']+(?:, *[\w.\[\]\"']+)*(?:: *[\w.\[\]]+)? *[-+*/|&:]?= *\S|[=!<>]=|->|::"
)


def _at_most(limit: float, value: float) -> float:
    return max(0.0, 1 - value / (2 * limit))


def _at_least(limit: float, value: float) -> float:
    return min(1.0, value / (2 * limit))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _visible(text: str) -> int:
    return _length(text.split())


def _length(parts: Iterable[str]) -> int:
    return sum(map(len, parts))


def _repeated(parts: list) -> list:
    return [part for part, count in Counter(parts).items() for _ in range(count - 2)]


def _encoded(text: str) -> list[str]:
    # Without a letter, two-digit numbers in a row are a list of numbers, not bytes.
    return [found for found in _ENCODED.findall(text) if _LETTER.search(found)]


def code_of(text: str, marks: tuple[str, ...] = ()) -> list[str]:
    blocks = [dedent(body) for mark, body in _FENCE.findall(text) if not marks or mark.lower() in marks]
    return blocks or [text]


def parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in strings
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
