"""Regular expressions from users, in the syntax of Python's `re`, with a timeout against endless backtracking."""

import functools
import re

import regex

SECONDS = 5.0
"""Timeout of one search."""
_LITERAL = re.compile(r"(?:(?:[\w\-/:,;@#%&=~<>\"'! ]|\\[^\w\s])\??)+")


@functools.cache
def compile_pattern(pattern: str, flags: int = 0) -> regex.Pattern:
    """A compiled pattern whose `search` and `fullmatch` take a `timeout` in seconds and raise TimeoutError.

    Args:
        flags: flags of `re`.

    Raises:
        ValueError: `re` does not accept the pattern.
    """
    try:
        re.compile(pattern, flags)  # `regex` accepts more, but only the syntax of `re` is documented
        return regex.compile(pattern, int(flags))
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error


def is_literal(pattern: str) -> bool:
    """Whether a pattern is a few characters, some of which may be missing (`https?://`).

    It means the same in `re` and `regex` and cannot backtrack for long, so that it needs no timeout, which takes twice
    as long as the search itself.
    """
    return len(pattern) < 100 and pattern.count("?") < 8 and _LITERAL.fullmatch(pattern) is not None
