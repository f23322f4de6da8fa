"""Regular expressions from users, in the syntax of Python's `re`, with a timeout against endless backtracking."""

import functools
import re

import regex

SECONDS = 5.0
"""Timeout of one search."""


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
